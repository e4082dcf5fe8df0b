"""Convert, describe or verify a model: python -m weights_convert SRC [DST] --help"""

import argparse
import logging
import sys
from pathlib import Path

import weights_convert
from minisd.memory import DTYPES
from minisd.pipeline import StableDiffusionPipeline
from weights_convert import info, verify
from weights_convert.tokenizer_source import bare_tokenizer


def parser() -> argparse.ArgumentParser:
    """The options."""
    about = argparse.ArgumentParser(
        "python -m weights_convert",
        description="Convert a model from one layout to another, describe it, or compare it with "
        "diffusers.",
    )
    add = about.add_argument
    add("source", help="a single file, a diffusers folder, a minisd folder, or owner/name")
    add("target", nargs="?", help="a folder that is new or empty, or a new .safetensors file")
    add("--to", choices=weights_convert.LAYOUTS, default="minisd", dest="layout")
    add("--dtype", choices=DTYPES, help="default: each tensor as it is stored")
    add("--variant", help="read the files of a folder that have this in their names, as fp16")
    add("--ema", action=argparse.BooleanOptionalAction,
        help="read a single file's averaged weights, or its plain ones (the default)")  # fmt: skip
    add("--prediction-type", choices=("epsilon", "v_prediction"),
        help="of a single file; left out, SD 2.x is tried")  # fmt: skip
    add("--tokenizer", metavar="PATH", help="the tokenizer's folder, or bpe_simple_vocab_16e6.txt"
        ".gz, for a source that has none")  # fmt: skip
    add("--vae", metavar="PATH", help="a file or folder with the autoencoder to put in")
    add("--info", action="store_true", help="say what the model is; writes nothing")
    add("--verify", action="store_true", help="compare it with diffusers; writes nothing")
    return about


def say(message: str) -> None:
    print(message, flush=True)


def read(given: argparse.Namespace, place: Path) -> StableDiffusionPipeline:
    """The model; a single file that is only looked at needs no tokenizer."""
    looked_at = given.info or given.verify
    tokenizer = given.tokenizer
    if looked_at and tokenizer is None and place.is_file():
        tokenizer = bare_tokenizer()
    dtype = DTYPES["float32"] if given.verify else DTYPES.get(given.dtype)
    say(f"reading {place} ...")
    return weights_convert.open(
        place,
        torch_dtype=dtype,
        variant=given.variant,
        tokenizer=tokenizer,
        vae=given.vae,
        ema=given.ema,
        prediction_type=given.prediction_type,
    )


def report(pipe: StableDiffusionPipeline) -> int:
    """Print how far the networks are from diffusers'; returns 0 if they agree, else 1."""
    errors = verify.compare(pipe.networks)
    for what, error in errors.items():
        say(f"{what:<22}{error:.1e}")
    apart = [what for what, error in errors.items() if not error < verify.TOLERANCE]
    say(f"The largest difference over the largest value; up to {verify.TOLERANCE:g} is rounding.")
    say(f"minisd and diffusers differ in: {', '.join(apart)}" if apart else "All agree.")
    return int(bool(apart))


def run(given: argparse.Namespace) -> int:
    """Look at the model or convert it; returns the exit code. Wrong input is an exception."""
    place = weights_convert.locate(given.source, given.variant)
    pipe = read(given, place)
    if given.info:
        say(info.describe(pipe, place))
    if given.verify:
        return report(pipe)
    if given.target is not None:
        say(f"writing {given.target} ...")
        weights_convert.save(pipe, given.target, given.layout)
        kinds = info.dtypes(pipe.networks.values())
        say(f"wrote {given.target} ({given.layout}, {kinds}), model {pipe.hash}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if --verify finds a difference; 2 for wrong input; 130."""
    options = parser()
    given = options.parse_args(arguments)
    if given.target is None and not (given.info or given.verify):
        options.error("give a target to write to, or --info, or --verify")
    if given.target is not None and (given.info or given.verify):
        options.error("--info and --verify write nothing; leave out the target")
    logging.basicConfig(format="note: %(message)s")
    logging.getLogger("weights_convert").setLevel(logging.INFO)
    try:
        return run(given)
    except KeyboardInterrupt:
        print("stopped; nothing was left half-written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
