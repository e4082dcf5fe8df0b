"""The options of the command line, and which of them go together."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Settings in a picture that --from-png gives back to the command line.
RESTORED = {
    "negative_prompt": "--negative-prompt",
    "seed": "--seed",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "scheduler": "--scheduler",
    "eta": "--eta",
    "height": "--height",
    "width": "--width",
    "num_images": "--num-images",
    "image": "--image",
    "strength": "--strength",
    "mask": "--mask",
}
REPEATED = {"lora": "--lora", "textual_inversion": "--textual-inversion"}
SWITCHES = {"grid": "--grid", "weighted": "--weighted"}


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line."""

    def error(self, message: str) -> NoReturn:
        hint = f"`python -m {self.prog} --help` lists all options"
        self.exit(2, f"{self.prog}: error: {message}; {hint}\n")


def between(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """A type for argparse: a number in [low, high]."""

    def number(text: str) -> Any:
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)

    number.__name__ = kind.__name__
    return number


def seed(text: str) -> int | None:
    """A type for argparse: the seed, None where it is left empty."""
    return between(int, 0, 2**63 - 1)(text) if text else None


def lora_file(argument: str) -> tuple[str, float]:
    """A type for argparse: FILE:SCALE, or FILE at scale 1; the colon of "C:\\x" is the file's."""
    match = re.fullmatch(r"(.{2,}):([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", argument)
    return (match[1], float(match[2])) if match else (argument, 1.0)


def embedding_file(argument: str) -> tuple[str, str | None]:
    """A type for argparse: FILE:TOKEN, or FILE, which says its token itself."""
    match = re.fullmatch(r"(.{2,}):([^:/\\]+)", argument)
    return (match[1], match[2]) if match and not Path(argument).exists() else (argument, None)


def text(argument: str) -> str:
    """A type for argparse: letters, and no bytes that the terminal could not read as letters."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        message = "the text is not UTF-8; does the terminal use another encoding?"
        raise argparse.ArgumentTypeError(message) from error
    return argument


def build_parser() -> Parser:
    """The options, in the groups that --help shows."""
    parser = Parser(prog="minisd", description="A prompt becomes a picture.")
    add = parser.add_argument
    add("prompt", nargs="?", type=text, help='what to draw, for example "a red boat at sunset"')
    add("-o", "--output", metavar="PATH", help="the PNG to write, or a folder; replaces the file")
    add(
        "--prompts",
        metavar="FILE",
        help="one prompt a line; -o is the folder; resumes, and shares the work under torchrun",
    )
    add("--from-png", metavar="FILE", help="draw again what a picture of minisd shows")
    add("--words", action="store_true", help="list what the picture-book model knows")
    model = parser.add_argument_group("model").add_argument
    model("--weights", metavar="PATH", help="a model's folder (default: the picture-book model)")
    model("--tokenizer", metavar="PATH",
          help="for a single file, which carries none: a folder or OpenAI's table")  # fmt: skip
    model("--lora", type=lora_file, action="append", metavar="FILE:SCALE",
          help="a LoRA file and how strongly to use it (default: 1); may be repeated")  # fmt: skip
    model("--textual-inversion", type=embedding_file, action="append", metavar="FILE:TOKEN",
          help="a learned word, and its name in prompts (default: the file's)")  # fmt: skip
    model("--device", help="auto, cpu, cuda or mps (default: auto)")
    model("--dtype", help="float32, float16 or bfloat16 (default: float16 on CUDA, else float32)")
    picture = parser.add_argument_group("picture (what is left out is the model's own)")
    add = picture.add_argument
    add("--negative-prompt", type=text, metavar="TEXT", help="what not to draw")
    add("--weighted", action="store_true",
        help="(red:1.3) counts more and [red] less; prompts of any length")  # fmt: skip
    add("--seed", type=seed, metavar="N", help="the same seed, the same picture")
    add("--steps", type=int, dest="num_inference_steps", metavar="N", help="denoising steps")
    add("--guidance-scale", type=float, metavar="X", help="how closely to follow the prompt")
    add("--scheduler", metavar="NAME", help="ddim, ddpm, euler, dpm++, ...")
    add("--eta", type=between(float, 0, 1), help="DDIM's fresh noise, 0 (none) to 1")
    add("--height", type=int, metavar="PIXELS", help="a multiple of 8")
    add("--width", type=int, metavar="PIXELS", help="a multiple of 8")
    add("--image", metavar="FILE", help="start from this picture, not from noise alone")
    add("--strength", type=between(float, 0, 1), help="how much of it to draw anew, 0 to 1")
    add("--mask", metavar="FILE", help="draw anew only where this picture is white")
    add("--num-images", type=between(int, 1, 4096), metavar="N", help="seeds s, s + 1, ...")
    add("--grid", action="store_true", help="several pictures on one sheet")
    add("--save-steps", metavar="DIR", help="x_t and x_0 of every step, decoded, as pictures")
    return parser


def check(parser: Parser, args: argparse.Namespace) -> None:
    """Stop with one line where options do not go together."""
    if args.words:
        return
    if args.prompt is None and args.prompts is None and args.from_png is None:
        parser.error('give a prompt, for example "a red boat at sunset"')
    if args.prompts is not None and (args.prompt is not None or args.from_png is not None):
        parser.error("--prompts brings the prompts; leave out PROMPT and --from-png")
    if args.image is None and args.from_png is None and {args.strength, args.mask} != {None}:
        parser.error("--strength and --mask need a picture to start from: --image FILE")
    if args.tokenizer is not None and args.weights is None:
        parser.error("--tokenizer belongs to a single file: --weights FILE")
    if args.prompts is not None and args.output is None:
        parser.error("--prompts needs a folder for its pictures: -o DIR")
    if args.prompts is not None and args.save_steps is not None:
        parser.error("--save-steps shows one prompt; leave out --prompts")
    if not in_folder(args) and Path(args.output).suffix.lower() not in ("", ".png"):
        parser.error(f"minisd writes PNG files; {args.output} does not end in .png")


def restore(parser: Parser, argv: Sequence[str], args: argparse.Namespace) -> argparse.Namespace:
    """The settings inside the --from-png picture, and over them what the command line says."""
    from minisd import images

    settings = images.read_settings(args.from_png)
    old = [f"{flag}={settings[name]}" for name, flag in RESTORED.items() if name in settings]
    old += [flag for name, flag in SWITCHES.items() if settings.get(name)]
    for name, flag in REPEATED.items():
        if getattr(args, name) is None:
            old += [f"{flag}={value}" for value in settings.get(name, [])]
    restored = parser.parse_args([*old, *argv])
    restored.prompt = str(settings.get("prompt", "")) if args.prompt is None else args.prompt
    restored.made_by = settings.get("model")
    return restored


def in_folder(args: argparse.Namespace) -> bool:
    """Whether the pictures get their own names, rather than the one after -o."""
    return (
        args.output is None
        or args.prompts is not None
        or args.output.endswith(("/", os.sep))
        or Path(args.output).is_dir()
    )
