"""python -m weights_convert SRC DST --to minisd|diffusers --dtype float16"""

import argparse
import sys

import weights_convert
from minisd.memory import DTYPES


def parser() -> argparse.ArgumentParser:
    about = argparse.ArgumentParser(
        "python -m weights_convert", description="Convert a model from one layout to another."
    )
    about.add_argument("source", help="a native folder, a diffusers folder, or owner/name")
    about.add_argument("target", help="a folder that is new or empty")
    about.add_argument("--to", choices=weights_convert.LAYOUTS, default="minisd", dest="layout")
    about.add_argument("--dtype", choices=DTYPES, default="float32")
    about.add_argument("--variant", help="read the files with this in their names, as fp16")
    about.add_argument("--tokenizer", help="a folder with the tokenizer, if the source has none")
    return about


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for something that cannot be converted."""
    given = parser().parse_args(arguments)
    try:
        pipe = weights_convert.open(
            given.source,
            torch_dtype=DTYPES[given.dtype],
            variant=given.variant,
            tokenizer=given.tokenizer,
        )
        weights_convert.save(pipe, given.target, given.layout)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(f"wrote {given.target} ({given.layout}, {given.dtype}), model {pipe.hash}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
