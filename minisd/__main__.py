"""The command line: `python -m minisd "a red boat at sunset"`.

PyTorch takes seconds to load, so it is imported inside functions, after the first line is out.
"""

import os
import re
import secrets
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minisd import __version__
from minisd.options import RESTORED, Parser, build_parser, check, in_folder

if TYPE_CHECKING:
    from minisd.pipeline import StableDiffusionPipeline


class Target(NamedTuple):
    """A file to write, and the seeds of the pictures on it: one, or those of a grid."""

    path: Path
    seeds: tuple[int, ...]


def say(message: str) -> None:
    print(message, flush=True)


def warn(message: str) -> None:
    print(f"minisd: warning: {message}", file=sys.stderr, flush=True)


def announce(args: Namespace) -> None:
    if args.prompt is not None:
        what = f'"{args.prompt}"'
    else:
        what = f"again what {args.from_png} shows" if args.from_png else f"all of {args.prompts}"
    say(f"minisd {__version__} draws {what} (loading PyTorch ...)")


def list_words() -> None:
    from minisd.picturebook import language

    say("The picture-book model knows these words:")
    for group, words in language.words().items():
        say(textwrap.fill(f"{group}: {', '.join(words)}", 88, subsequent_indent="  "))


def make_writable(folder: Path) -> None:
    """Raises OSError before any work is done if no picture could be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to; choose another place with -o")


def restore(parser: Parser, argv: Sequence[str], args: Namespace) -> Namespace:
    """The settings inside the --from-png picture, and over them what the command line says."""
    from minisd import images

    settings = images.read_settings(args.from_png)
    old = [f"{flag}={settings[name]}" for name, flag in RESTORED.items() if name in settings]
    if args.lora is None:
        old += [f"--lora={lora}" for lora in settings.get("lora", [])]
    restored = parser.parse_args([*old, *argv])
    restored.grid = restored.grid or bool(settings.get("grid"))
    restored.prompt = str(settings.get("prompt", "")) if args.prompt is None else args.prompt
    restored.made_by = settings.get("model")
    return restored


def open_model(args: Namespace) -> "StableDiffusionPipeline":
    from minisd import memory
    from minisd.pipeline import StableDiffusionPipeline
    from minisd.schedulers import by_name

    device = memory.pick_device(args.device or "auto")
    dtype = memory.pick_dtype(args.dtype, device)
    pipe = StableDiffusionPipeline.from_pretrained(args.weights, torch_dtype=dtype).to(device)
    if args.scheduler is not None:
        pipe.scheduler = by_name(args.scheduler, pipe.scheduler.config)
    for file, scale in args.lora or []:
        pipe.load_lora_weights(file, scale=scale)
    return pipe


def common_settings(pipe: "StableDiffusionPipeline", args: Namespace) -> dict[str, Any]:
    """Everything that decides the picture but its prompt and seed."""
    from minisd.schedulers import name_of

    defaults = dict(vars(pipe.defaults))
    source = {name: getattr(args, name) for name in ("image", "strength", "mask")}
    if args.image is not None:  # whose size is the picture's, unless the command line says one
        defaults |= {"height": None, "width": None}
    given = {name: getattr(args, name) for name in defaults}
    chosen = {name: defaults[name] if value is None else value for name, value in given.items()}
    return {
        "negative_prompt": args.negative_prompt or "",
        **{name: value for name, value in {**chosen, **source}.items() if value is not None},
        "scheduler": name_of(pipe.scheduler),
        "eta": args.eta or 0.0,
        **({"lora": [f"{file}:{scale}" for file, scale in args.lora]} if args.lora else {}),
        "model": pipe.hash,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "version": __version__,
    }


def drawing(pipe: "StableDiffusionPipeline", common: dict[str, Any]) -> Callable[..., Any]:
    """The pipeline's call for these settings: text, image to image, or inpainting."""
    if "image" not in common:
        return pipe
    from PIL import Image

    pictures = {"image": Image.open(common["image"])}
    if "mask" in common:
        pictures["mask_image"] = Image.open(common["mask"])
    if "strength" in common:
        pictures["strength"] = common["strength"]
    return partial(pipe.inpaint if "mask" in common else pipe.image_to_image, **pictures)


def settings_on(target: Target, prompt: str, common: dict[str, Any]) -> dict[str, Any]:
    """The settings to write into a target."""
    n = len(target.seeds)
    sheet = {"num_images": n, "grid": True} if n > 1 else {}
    return {"prompt": prompt, **common, "seed": target.seeds[0], **sheet}


def span(seeds: Sequence[int], to: str) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}{to}{seeds[-1]}"


def free_path(folder: Path, target: Target, prompt: str, common: dict[str, Any]) -> Target:
    """The target in this folder, under a name that no picture with other settings has."""
    from minisd import images

    number = 1
    while True:
        ending = f"-{number}.png" if number > 1 else ".png"
        path = folder / f"{target.path.name}{ending}"
        try:
            if images.read_settings(path) == settings_on(target, prompt, common):
                return Target(path, target.seeds)
        except FileNotFoundError:
            return Target(path, target.seeds)
        except (ValueError, OSError):  # somebody else's file
            pass
        number += 1


def find_targets(args: Namespace, prompt: str, common: dict[str, Any]) -> list[Target]:
    """The files to write: -o as it stands, out_0.png, ... for several, or names of our own."""
    seeds = tuple(range(args.seed, args.seed + (args.num_images or 1)))
    groups = [seeds] if args.grid else [(seed,) for seed in seeds]
    if not in_folder(args):
        path = Path(args.output).with_suffix(".png")
        several = len(groups) > 1
        return [
            Target(path.with_stem(f"{path.stem}_{i}") if several else path, group)
            for i, group in enumerate(groups)
        ]
    slug = "-".join(re.findall(r"\w+", prompt.lower()))[:60].rstrip("-") or "picture"
    names = [f"{slug}-seed-{span(g, '-to-')}" for g in groups]
    return [
        free_path(Path(args.output or "."), Target(Path(name), group), prompt, common)
        for name, group in zip(names, groups)
    ]


def step_saver(folder: Path) -> Callable[..., dict[str, Any]]:
    """A callback that writes what each step sees and what it predicts."""
    from minisd import images

    def save(pipe: Any, index: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        for name in ("x_t", "x_0"):
            pictures = images.to_pil(pipe.decode_latents(tensors[name]))
            path = folder / f"step-{index:03}-{name}.png"
            images.save_png(images.grid(pictures), path, {"step": index, "t": t})
        return {}

    return save


def draw(
    pipe: "StableDiffusionPipeline",
    args: Namespace,
    prompt: str,
    common: dict[str, Any],
) -> None:
    """One prompt to its pictures on disk; with --prompts, only to those not there yet."""
    import torch

    from minisd import images

    if pipe.family == "picture-book":
        from minisd.picturebook.language import explain

        if message := explain(prompt):
            warn(message)
    targets = find_targets(args, prompt, common)
    if args.prompts is not None:
        for target in [target for target in targets if target.path.exists()]:
            say(f"{target.path} is there already")
            targets.remove(target)
    seeds = [seed for target in targets for seed in target.seeds]
    if not seeds:
        return
    passed = ("negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "eta")
    pictures = drawing(pipe, common)(
        prompt,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        callback_on_step_end=step_saver(Path(args.save_steps)) if args.save_steps else None,
        **{name: common[name] for name in passed if name in common},
    ).images
    for target in targets:
        here, pictures = pictures[: len(target.seeds)], pictures[len(target.seeds) :]
        sheet = here[0] if len(here) == 1 else images.grid(here)
        images.save_png(sheet, target.path, settings_on(target, prompt, common))
        say(f"wrote {target.path} (seed {span(target.seeds, ' to ')})")


def read_prompts(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} holds no prompts, expected one a line")
    return prompts


def run(parser: Parser, args: Namespace, argv: Sequence[str]) -> None:
    if args.words:
        return list_words()
    announce(args)
    make_writable(Path(args.output or ".") if in_folder(args) else Path(args.output).parent)
    if args.save_steps is not None:
        make_writable(Path(args.save_steps))
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    if args.from_png is not None:
        args = restore(parser, argv, args)
        prompts = [args.prompt]
    if args.seed is None:  # a fixed one lets --prompts go on where it stopped
        args.seed = secrets.randbelow(1_000_000) if args.prompts is None else 0
        say(f"seed {args.seed} (--seed chooses another)")
    pipe = open_model(args)
    common = common_settings(pipe, args)
    size = "{height} x {width} pixels" if args.image is None else "from {image}"
    say(
        f"{pipe.family} model {common['model']} on {pipe.device} in {common['dtype']}, "
        "{num_inference_steps} steps of {scheduler}, guidance {guidance_scale:g}, ".format(**common)
        + size.format(**common)
    )
    if getattr(args, "made_by", None) not in (None, common["model"]):
        warn(f"{args.from_png} was made by model {args.made_by}; this picture will differ")
    for prompt in prompts:
        draw(pipe, args, prompt, common)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 (no memory), 2 (wrong input), 130."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a console may lack the prompt's letters
        stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    try:
        run(parser, args, argv)
        return 0
    except KeyboardInterrupt:
        problem, code = "stopped; no picture was left half-written", 130
    except ModuleNotFoundError as error:
        problem, code = f"error: {error}; python -m pip install -r requirements.txt", 2
    except OSError as error:
        place = f"{error.filename}: {error.strerror}" if error.filename else error
        problem, code = f"error: {place}", 2
    except ValueError as error:
        problem, code = f"error: {error}", 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        problem, code = "error: out of memory; try fewer --num-images or a smaller size", 1
    # The except clause is over, and with its traceback the progress bar went: the line is free.
    print(f"minisd: {' '.join(problem.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
