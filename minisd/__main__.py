"""The command line: `python -m minisd "a red boat at sunset"`.

PyTorch takes seconds to load, so it is imported inside functions, after the first line is out.
"""

import os
import secrets
import sys
import textwrap
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisd import __version__
from minisd.options import Parser, build_parser, check, in_folder, restore
from minisd.targets import Target, settings_on, share, span

if TYPE_CHECKING:
    from minisd.pipeline import StableDiffusionPipeline


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


def open_model(args: Namespace) -> "StableDiffusionPipeline":
    """The model of the command line on its device, with scheduler, LoRAs and learned words."""
    from minisd import memory
    from minisd.pipeline import StableDiffusionPipeline
    from minisd.schedulers import by_name

    memory.reuse_memory()
    device = memory.pick_device(args.device or "auto")
    dtype = memory.pick_dtype(args.dtype, device)
    if args.tokenizer is None:
        pipe = StableDiffusionPipeline.from_pretrained(args.weights, torch_dtype=dtype)
    else:
        pipe = StableDiffusionPipeline.from_single_file(
            args.weights, torch_dtype=dtype, tokenizer=args.tokenizer
        )
    pipe.to(device)
    if args.scheduler is not None:
        pipe.scheduler = by_name(args.scheduler, pipe.scheduler.config)
    for file, scale in args.lora or []:
        pipe.load_lora_weights(file, scale=scale)
    for file, token in args.textual_inversion or []:
        say(f"{file} is {pipe.load_textual_inversion(file, token)} in prompts")
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
    used = {
        "lora": [f"{file}:{scale}" for file, scale in args.lora or []],
        "textual_inversion": [":".join(filter(None, one)) for one in args.textual_inversion or []],
        "weighted": args.weighted,
    }
    return {
        "negative_prompt": args.negative_prompt or "",
        **{name: value for name, value in {**chosen, **source}.items() if value is not None},
        "scheduler": name_of(pipe.scheduler),
        "eta": args.eta or 0.0,
        **{name: value for name, value in used.items() if value},
        "model": pipe.hash,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "version": __version__,
    }


def drawing(pipe: "StableDiffusionPipeline", common: dict[str, Any]) -> Callable[..., Any]:
    """The pipeline's call for these settings: text, image to image, or inpainting."""
    if "image" not in common:
        return pipe
    from minisd.images import open_picture

    pictures = {"image": open_picture(common["image"])}
    if "mask" in common:
        pictures["mask_image"] = open_picture(common["mask"])
    if "strength" in common:
        pictures["strength"] = common["strength"]
    return partial(pipe.inpaint if "mask" in common else pipe.image_to_image, **pictures)


def texts(
    pipe: "StableDiffusionPipeline", prompt: str, negative_prompt: str, weighted: bool
) -> dict[str, Any]:
    """The arguments that say what to draw: the prompts, or their embeddings with weights."""
    if not weighted:
        return {"prompt": prompt, "negative_prompt": negative_prompt}
    from minisd.prompts import encode

    cond, uncond = encode(pipe, prompt, negative_prompt)
    return {"prompt_embeds": cond, "negative_prompt_embeds": uncond}


def warn_of_unknown_words(pipe: "StableDiffusionPipeline", prompt: str, weighted: bool) -> None:
    """Say which words of the prompt the picture book lacks, and what to try instead."""
    from minisd.picturebook.language import explain
    from minisd.prompts import parse

    words = "".join(text for text, _ in parse(prompt)) if weighted else prompt
    for token in pipe.tokenizer.added:
        words = words.lower().replace(token.lower(), "")
    if message := explain(words):
        warn(message)


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
    targets: list[Target],
    common: dict[str, Any],
) -> None:
    """One prompt to its pictures on disk; with --prompts, only to those not there yet."""
    import torch

    from minisd import images

    if pipe.family == "picture-book":
        warn_of_unknown_words(pipe, prompt, args.weighted)
    if args.prompts is not None:
        for target in [target for target in targets if target.path.exists()]:
            say(f"{target.path} is there already")
            targets.remove(target)
    seeds = [seed for target in targets for seed in target.seeds]
    if not seeds:
        return
    passed = ("height", "width", "num_inference_steps", "guidance_scale", "eta")
    pictures = drawing(pipe, common)(
        **texts(pipe, prompt, common["negative_prompt"], args.weighted),
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
    """All that the command line does; wrong input is an exception."""
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
    for prompt, targets in share(args, prompts, common):
        draw(pipe, args, prompt, targets, common)


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
