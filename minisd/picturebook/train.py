"""The recipe of the shipped model, stage by stage: python -m minisd.picturebook.train STAGE.

tokenizer and vae need nothing; clip needs the tokenizer; decoder and latents need the vae, in any
order; unet needs all but the decoder; judge needs nothing and marks pictures in the evaluation.
image_encoder makes another one for a text encoder that is trained already.
With --start the stages latents, decoder, unet, image_encoder and export go on from a whole model.
Every stage can be killed and started again: it goes on where it was. Several processes share the
work under torchrun: torchrun --nproc-per-node 2 -m minisd.picturebook.train vae clip
"""

import argparse
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

# glibc gives large blocks back to the system and page-faults them in again at every step; keeping
# them doubles the speed of training on a CPU. Read at the start of a process, hence the exec.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "1073741824",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
STAGES = ("tokenizer", "vae", "decoder", "clip", "latents", "unet", "export", "judge")
EXTRA = ("image_encoder",)  # not among "all": clip makes one, too
ALONE = ("tokenizer", "export")  # work of seconds, done by one process


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's arguments; what is left out is the stage's own."""
    parser = argparse.ArgumentParser(
        prog="python -m minisd.picturebook.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("stage", nargs="+", choices=(*STAGES, *EXTRA, "all"))
    parser.add_argument("--out", type=Path, default=Path("runs/picturebook"), metavar="DIR")
    parser.add_argument("--start", type=Path, metavar="FOLDER",
                        help="a model, whose parts stand for those that --out lacks")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("float32", "bfloat16"),
                        help="(default: bfloat16 if the device has it, else float32)")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--steps", type=int, help="training steps of the stage (default: its own)")
    parser.add_argument("--batch-size", type=int, help="pictures a step (default: the stage's own)")
    parser.add_argument("--learning-rate", type=float, help="at its highest (default: likewise)")
    parser.add_argument("--examples", type=int, default=40_000, help="pictures cached as latents")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the chosen stages in order; from the shell, in a process that keeps its memory."""
    args = parse(argv)
    on_glibc = platform.libc_ver()[0] == "glibc"
    if argv is None and on_glibc and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.environ.update(KEEP_MEMORY)
        os.execv(sys.executable, [sys.executable, "-m", "minisd.picturebook.train", *sys.argv[1:]])
    from torch import distributed

    from minisd.picturebook import stages
    from minisd.picturebook.recipe import Recipe

    settings: dict[str, Any] = vars(args)
    chosen = settings.pop("stage")
    settings["device"], rank, several = meet(args.device)
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s")
    recipe = Recipe(**settings)
    for stage in STAGES if "all" in chosen else chosen:
        if rank == 0 or stage not in ALONE:
            getattr(stages, stage)(recipe)
        if several:
            distributed.barrier()
    if several:
        distributed.destroy_process_group()


def meet(device: str) -> tuple[str, int, bool]:
    """Meet the other processes, if torchrun started several: this one's device and number, and
    whether there are others.
    """
    from torch import cuda, distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, 0, False
    on_gpu = device in ("auto", "cuda") and cuda.is_available()
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    own = f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
    return own, distributed.get_rank(), True


if __name__ == "__main__":
    main()
