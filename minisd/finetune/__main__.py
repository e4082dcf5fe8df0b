"""The command line of fine-tuning: python -m minisd.finetune lora --images DIR --prompt TEXT.

A run that was killed goes on where it was when the same command is given again.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minisd.checkpoint import read_json, write_json
from minisd.finetune import methods
from minisd.finetune.pictures import Captioned, read_folder
from minisd.memory import pick_device, pick_dtype
from minisd.options import Parser, between, text
from minisd.pipeline import StableDiffusionPipeline
from minisd.training import TrainConfig

# Tried out for the shipped model; for Stable Diffusion, where diffusers' examples begin.
PLANS = {
    ("lora", "picture-book"): TrainConfig(200, 8, 1e-3, warmup_steps=20),
    ("lora", "sd-1"): TrainConfig(500, 1, 1e-4),
    ("textual-inversion", "picture-book"): TrainConfig(200, 8, 2e-2, warmup_steps=20),
    ("textual-inversion", "sd-1"): TrainConfig(3000, 1, 5e-4),
}
FREE = ("out", "steps", "save_every", "device", "gradient_checkpointing")  # may change on the way


def build_parser() -> Parser:
    """The options of both methods, and those of each."""
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--images", required=True, metavar="DIR", help="the folder of the pictures to learn from")
    add("--prompt", type=text, help="what they show; name.txt beside a picture is its own")
    add("--weights", metavar="PATH", help="a model's folder (default: the picture-book model)")
    add("--out", type=Path, metavar="DIR", help="where to write (default: runs/METHOD)")
    add("--steps", type=between(int, 1, 10**7), metavar="N", help="more of them go on with a run")
    add("--batch-size", type=between(int, 1, 4096), metavar="N", help="pictures a step")
    add("--learning-rate", type=between(float, 0, 10), metavar="X",
        help="this, steps and batch size depend on method and model")  # fmt: skip
    add("--save-every", type=between(int, 1, 10**7), metavar="N",
        help="each save draws a sheet of pictures (default: steps / 4)")  # fmt: skip
    add("--seed", type=between(int, 0, 2**31), default=0, metavar="N", help="(default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", choices=("float32", "bfloat16"), default="float32",
        help="bfloat16 halves the memory; what is trained stays float32")  # fmt: skip
    add("--gradient-checkpointing", action="store_true", help="less memory, a third slower")
    parser = Parser(prog="minisd.finetune", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="method", required=True)
    lora = kinds.add_parser("lora", parents=[shared], help="thin matrices beside the attention")
    lora.add_argument("--rank", type=between(int, 1, 4096), default=8, metavar="N",
                      help="how thin: more learn more, and more by heart (default: 8)")  # fmt: skip
    lora.add_argument("--text-encoder", action="store_true", help="adapt the text encoder as well")
    token = kinds.add_parser("textual-inversion", parents=[shared], help="vectors of a new word")
    token.add_argument("--token", required=True, type=text, help='the new word, like "<toy>"')
    token.add_argument("--init-word", required=True, type=text, help="a known word to start from")
    token.add_argument("--vectors", type=between(int, 1, 75), default=1, metavar="N",
                       help="of the word (default: 1)")  # fmt: skip
    return parser


def plan(args: argparse.Namespace, family: str) -> TrainConfig:
    """The method's numbers for this family of models, unless the command line says others."""
    default = PLANS.get((args.method, family), PLANS[args.method, "sd-1"])
    given = {name: getattr(args, name) for name in ("steps", "batch_size", "learning_rate")}
    chosen = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(default, **chosen, seed=args.seed)
    return dataclasses.replace(config, save_every=args.save_every or -(-config.steps // 4))


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what a run was started with. Raises ValueError if the folder holds another run."""
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    kept = read_json(path)
    for name in settings:
        if kept.get(name) != settings[name]:
            raise ValueError(
                f"{folder} holds a run with {name} {kept.get(name)!r}, now it is "
                f"{settings[name]!r}; choose another --out, or delete {folder} to begin anew"
            )


def settings_of(
    args: argparse.Namespace, config: TrainConfig, examples: Sequence[Captioned], model: str
) -> dict[str, Any]:
    """Everything that decides the result, but for how long it trains."""
    given = {name: value for name, value in vars(args).items() if name not in FREE}
    chosen = {name: getattr(config, name) for name in ("batch_size", "learning_rate")}
    return {**given, **chosen, "captions": [e.caption for e in examples], "model": model}


def run(args: argparse.Namespace) -> None:
    """Read, train, write, and say how to use the result; wrong input is an exception."""
    examples = read_folder(args.images, args.prompt)
    device = pick_device(args.device)
    precision = pick_dtype(args.precision, device)
    pipe = StableDiffusionPipeline.from_pretrained(args.weights, torch_dtype=precision).to(device)
    pipe.set_progress_bar_config(disable=True)
    config = plan(args, pipe.family)
    folder = args.out or Path("runs") / args.method
    keep_settings(folder, settings_of(args, config, examples, pipe.hash))
    if args.gradient_checkpointing:
        methods.recompute_stages(pipe.unet)
    say(
        f"{args.method} on {len(examples)} pictures, {config.steps} steps of {config.batch_size}, "
        f"rate {config.learning_rate:g}, {device}, {args.precision}; writing to {folder}"
    )
    names = ("rank", "text_encoder", "token", "init_word", "vectors")
    more = {name: value for name, value in vars(args).items() if name in names}
    train = methods.train_lora if args.method == "lora" else methods.train_word
    path = train(pipe, examples, config, folder, precision=precision, **more)
    say(f"wrote {path}; the sheets look-*.png beside it show how it came")
    say(usage(args, examples[0].caption, path))


def usage(args: argparse.Namespace, prompt: str, path: Path) -> str:
    """A line to copy that draws with what was learned."""
    weights = ["--weights", args.weights] if args.weights else []
    return shlex.join(["python", "-m", "minisd", prompt, f"--{args.method}", str(path), *weights])


def say(message: str) -> None:
    print(message, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 (it failed), 2 (wrong input), 130."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
        return 0
    except KeyboardInterrupt:
        problem, code = "stopped; the same command goes on from the last save", 130
    except FloatingPointError as error:
        problem, code = f"error: {error}; try a lower --learning-rate", 1
    except (ValueError, OSError) as error:
        problem, code = f"error: {error}", 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        advice = "--batch-size 1, --gradient-checkpointing or --precision bfloat16"
        problem, code = f"error: out of memory; try {advice}", 1
    print(f"minisd.finetune: {' '.join(problem.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
