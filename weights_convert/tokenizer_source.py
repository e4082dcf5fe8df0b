"""CLIP's tokenizer from wherever its two tables are: a folder, a file, OpenAI's table, the hub."""

import gzip
import zlib
from pathlib import Path
from typing import Any

from minisd.checkpoint import read_json
from minisd.tokenizer import END, END_OF_WORD, START, Tokenizer, byte_symbols

Tables = tuple[dict[str, int], list[tuple[str, str]]]
HUB_ID = "openai/clip-vit-large-patch14"  # the text encoder that SD 1.x was trained with
HUB_FILES = ("vocab.json", "merges.txt")
# What may lie beside a single file, which has no tokenizer in it: the folder that official folders
# have, the two tables themselves, or OpenAI's.
BESIDE = ("tokenizer", "merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
MERGES = 49152 - 256 - 2  # CLIP's own; OpenAI's table lists more, which it never reads
LONGEST = 1 << 24  # bytes that a table may have; OpenAI's has 3.2 million


def find_tokenizer(
    path: Path | str | None, pad: str | None = None, context_length: int = 77
) -> Tokenizer:
    """The tokenizer at `path`: a folder with tokenizer.json, or with vocab.json and merges.txt, or
    with a `tokenizer` folder in it; a tokenizer.json; OpenAI's bpe_simple_vocab_16e6.txt(.gz); None
    for CLIP's from the hub, which is kept for the next time.

    pad: the piece that fills short texts up, "!" for SD 2.x; None takes what the source says, and
    END where it says nothing. Raises ValueError if there is no tokenizer or a damaged one.
    """
    place = download() if path is None else Path(path)
    if (place / "tokenizer").is_dir():
        place = place / "tokenizer"
    if place.is_dir():
        tables, said = read_folder(place), pad_token(place)
    elif not place.is_file():
        raise ValueError(f"{place} does not exist; give a tokenizer's folder or file")
    elif place.suffix == ".json":
        tables, said = read_tokenizer_json(place), pad_token(place.parent)
    else:
        tables, said = read_merges(place), END
    try:
        tokenizer = Tokenizer.from_tables(*tables, context_length, pad or said)
        tokenizer.add(learned(place if place.is_dir() else place.parent, tables[0]))
        return tokenizer
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{place} holds no tokenizer like CLIP's: {error}") from error


def beside(file: Path) -> Path | None:
    """Where a tokenizer lies beside a single file, for find_tokenizer; None if there is none."""
    for name in BESIDE:
        place = file.parent / name
        if place.exists():
            return file.parent if name == HUB_FILES[1] else place
    return None


def read_folder(folder: Path) -> Tables:
    """From tokenizer.json, or from vocab.json and merges.txt. Raises ValueError without either."""
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer_json(folder / "tokenizer.json")
    if all((folder / name).is_file() for name in HUB_FILES):
        lines = read_lines(folder / "merges.txt")
        lines = [line for line in lines if line and not line.startswith("#version")]
        return read_json(folder / "vocab.json"), pairs(lines, folder / "merges.txt")
    raise ValueError(
        f"{folder} has neither tokenizer.json nor vocab.json and merges.txt; "
        "fetch them, or give a tokenizer"
    )


def read_tokenizer_json(path: Path) -> Tables:
    model = read_json(path).get("model")
    vocab, merges = (model.get(key) for key in ("vocab", "merges")) if model else (None, None)
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not merges:
        raise ValueError(f"{path} holds no byte-pair tables like CLIP's")
    return vocab, pairs(merges, path)


def learned(folder: Path, vocab: dict[str, int]) -> list[str]:
    """The words that textual inversion added to a vocabulary: their ids are the next after it."""
    ids: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        ids = read_json(folder / "added_tokens.json")
    if (folder / "tokenizer.json").is_file():
        added = read_json(folder / "tokenizer.json").get("added_tokens") or []
        ids |= {token["content"]: token["id"] for token in added}
    words = sorted(set(ids) - set(vocab), key=lambda word: ids[word])
    return [word for k, word in enumerate(words) if ids[word] == len(vocab) + k]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped or not. Raises ValueError if it is none."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            return file.read(LONGEST).decode("utf8").splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no table of merges: {error}") from error


def read_merges(path: Path) -> Tables:
    """OpenAI's table: a line about itself, then the merges; the vocabulary follows from them."""
    lines = read_lines(path)[1 : 1 + MERGES]
    if len(lines) < MERGES:
        raise ValueError(
            f"{path} has {len(lines)} merges, expected CLIP's {MERGES}; "
            "is it complete, and bpe_simple_vocab_16e6.txt.gz or a tokenizer's folder?"
        )
    merges, symbols = pairs(lines, path), byte_symbols()
    pieces = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
    pieces += [*("".join(pair) for pair in merges), START, END]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def pairs(merges: list[Any], path: Path) -> list[tuple[str, str]]:
    """Merges written as "a b" or as [a, b]."""
    split = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for merge in split:
        if not isinstance(merge, list) or len(merge) != 2:
            raise ValueError(f"{path}: the merge {merge} is not a pair of pieces")
    return [(left, right) for left, right in split]


def pad_token(folder: Path) -> str:
    """What fills a short text up: END for SD 1.x, "!" for SD 2.x."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("pad_token")
            if token is not None:
                return token["content"] if isinstance(token, dict) else token
    if (folder / "tokenizer.json").is_file():
        return (read_json(folder / "tokenizer.json").get("padding") or {}).get("pad_token", END)
    return END


def download() -> Path:
    """The folder of CLIP's tokenizer, from the hub or from the cache of an earlier time.

    Raises ValueError, and says which files to fetch by hand, if it cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download  # slow to import, and needed here alone

        return Path(snapshot_download(HUB_ID, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the client raises errors of many libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the model comes without a tokenizer, and CLIP's cannot be downloaded ({reason}); "
            f"fetch {' and '.join(HUB_FILES)} of {HUB_ID}, or OpenAI's "
            "bpe_simple_vocab_16e6.txt.gz, by hand and put them beside the model's file, or give "
            "their folder or file: --tokenizer PATH, or tokenizer=PATH"
        ) from error


def bare_tokenizer() -> Tokenizer:
    """No merges, but CLIP's bytes and specials under their ids: enough to look at a model."""
    symbols = byte_symbols()
    pieces = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
    start = len(pieces) + MERGES
    vocab = {**{piece: i for i, piece in enumerate(pieces)}, START: start, END: start + 1}
    return Tokenizer.from_tables(vocab, [], pad_token="!")
