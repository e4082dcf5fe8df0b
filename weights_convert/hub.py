"""Models by hub id: only the files that are needed, or one clear error."""

import re
from collections.abc import Sequence
from pathlib import Path

from minisd.checkpoint import NETWORKS
from weights_convert.diffusers import NOTE, STEMS

NATIVE = (NOTE, "pipeline.json", "tokenizer.json", "scheduler.json",
          *(f"{name}.safetensors" for name in NETWORKS))  # fmt: skip
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json",
             "special_tokens_map.json")  # fmt: skip
SMALL = ("model_index.json", "scheduler/scheduler_config.json",
         *(f"tokenizer/{name}" for name in TOKENIZER),
         *(f"{name}/config.json" for name in NETWORKS))  # fmt: skip


def weight_patterns(suffix: str, variant: str | None) -> list[str]:
    """The files of all networks in one format: whole, or in shards with their index."""
    middle = f".{variant}" if variant else ""
    patterns = []
    for name, stems in STEMS.items():
        stem, part = f"{name}/{stems[suffix]}", "-?????-of-?????"
        patterns += [f"{stem}{middle}{suffix}", f"{stem}{suffix}.index{middle}.json"]
        patterns += dict.fromkeys(
            [f"{stem}{middle}{part}{suffix}", f"{stem}{part}{middle}{suffix}"]
        )
    return patterns


def is_id(source: Path | str) -> bool:
    """Whether this looks like a hub id, owner/name, and not like a file in a folder."""
    files = (".safetensors", ".bin", ".pt", ".ckpt")
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))) and not str(source).endswith(files)


def has_weights(folder: Path, suffix: str) -> bool:
    return all(any((folder / name).glob(f"*{suffix}")) for name in NETWORKS)


def download(hub_id: str, variant: str | None) -> Path:
    """The folder of a hub id like "owner/name", fetched or from the cache of an earlier time.

    Raises ValueError, and says which files to fetch by hand, if it cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download  # slow to import, and needed here alone

        safe = weight_patterns(".safetensors", variant)
        folder = Path(snapshot_download(hub_id, allow_patterns=[*SMALL, *NATIVE, *safe]))
        if (folder / "pipeline.json").is_file() or has_weights(folder, ".safetensors"):
            return folder
        pickles = weight_patterns(".bin", variant)
        return Path(snapshot_download(hub_id, allow_patterns=[*SMALL, *pickles]))
    except Exception as error:  # the client raises errors of many libraries
        wanted = [*SMALL, *safe_files(variant)]
        raise ValueError(
            f"{hub_id} cannot be downloaded ({first_line(error)}); fetch {', '.join(wanted)} by "
            "hand and open the folder they are in"
        ) from error


def find(source: Path | str, names: Sequence[str]) -> Path:
    """A file or folder; of a hub id, the folder with those of these files that are there.

    Raises ValueError, and says which files to fetch by hand, if it cannot be reached.
    """
    if Path(source).exists() or not is_id(source):
        return Path(source)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(source), allow_patterns=list(names)))
    except Exception as error:  # the client raises errors of many libraries
        raise ValueError(
            f"{source} does not exist here and cannot be downloaded ({first_line(error)}); fetch "
            f"{' or '.join(names)} by hand and open the folder it is in"
        ) from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def safe_files(variant: str | None) -> list[str]:
    """The weights of all networks as they are named when they are not in shards."""
    middle = f".{variant}" if variant else ""
    return [f"{name}/{stems['.safetensors']}{middle}.safetensors" for name, stems in STEMS.items()]


def choose_file(
    folder: Path,
    weight_name: str | None,
    usual: Sequence[str],
    suffixes: Sequence[str],
    kind: str = "",
) -> Path:
    """`weight_name`, or the first of the usual names, or the only file with such a suffix.

    Raises ValueError, which calls the files by their `kind`, if it is not the only one.
    """
    if weight_name is not None:
        return folder / weight_name
    for name in usual:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.glob("*") if path.suffix in suffixes)
    if len(files) != 1:
        found = f"{len(files)} {kind or suffixes[0]} files {[file.name for file in files]}"
        raise ValueError(f"{folder} holds {found}; choose one by weight_name")
    return files[0]
