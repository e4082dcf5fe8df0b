"""Where the pictures of the command line go, and which of several processes draws which."""

import os
import re
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minisd.options import in_folder


class Target(NamedTuple):
    """A file to write, and the seeds of the pictures on it: one, or those of a grid."""

    path: Path
    seeds: tuple[int, ...]


def settings_on(target: Target, prompt: str, common: dict[str, Any]) -> dict[str, Any]:
    """The settings to write into a target."""
    n = len(target.seeds)
    sheet = {"num_images": n, "grid": True} if n > 1 else {}
    return {"prompt": prompt, **common, "seed": target.seeds[0], **sheet}


def span(seeds: Sequence[int], to: str) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}{to}{seeds[-1]}"


def free_path(
    folder: Path, target: Target, prompt: str, common: dict[str, Any], taken: Collection[Path]
) -> Target:
    """The target in this folder, under a name that no picture with other settings has or gets."""
    from minisd import images

    number = 1
    while True:
        ending = f"-{number}.png" if number > 1 else ".png"
        path = folder / f"{target.path.name}{ending}"
        number += 1
        if path in taken:
            continue
        try:
            if images.read_settings(path) == settings_on(target, prompt, common):
                return Target(path, target.seeds)
        except FileNotFoundError:
            return Target(path, target.seeds)
        except (ValueError, OSError):  # somebody else's file
            pass


def find_targets(
    args: Namespace, prompt: str, common: dict[str, Any], taken: Collection[Path] = ()
) -> list[Target]:
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
        free_path(Path(args.output or "."), Target(Path(name), group), prompt, common, taken)
        for name, group in zip(names, groups)
    ]


def share(
    args: Namespace, prompts: Sequence[str], common: dict[str, Any]
) -> list[tuple[str, list[Target]]]:
    """The prompts that this process draws, each with its files.

    The files of all prompts are named before any is drawn, so that under torchrun, which tells
    each process its RANK of WORLD_SIZE, all of them agree on the names.
    """
    plan, taken = [], {}
    for prompt in dict.fromkeys(prompts):
        targets = find_targets(args, prompt, common, taken)
        taken |= dict.fromkeys(target.path for target in targets)
        plan.append((prompt, targets))
    return plan[int(os.environ.get("RANK", "0")) :: int(os.environ.get("WORLD_SIZE", "1"))]
