"""Textual-inversion files: read as diffusers and AUTOMATIC1111's web UI write them, and written.

diffusers: {token: vectors}. The web UI: {"string_to_param": {"*": vectors}, "name": token} in a
.pt, {"emb_params": vectors} in a .safetensors that is named after its token.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from minisd.checkpoint import replacing
from weights_convert import hub
from weights_convert.safe_pickle import load_pickle
from weights_convert.tensors import first_bytes, is_pickle, read_weights

WEIGHT_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")  # as diffusers calls them
SUFFIXES = (".safetensors", ".bin", ".pt")
Source = Mapping[str, Any] | Tensor | Path | str


def read_embedding(
    source: Source, token: str | None = None, weight_name: str | None = None
) -> tuple[str, Tensor]:
    """The token in a file, a folder or a state dict, and its vectors (n, d).

    `token` takes the place of the name that comes with the vectors. Raises ValueError for a file
    that is damaged or holds no embedding, or more than one.
    """
    if isinstance(source, Mapping | Tensor):
        state, origin, stem = source, "the state dict", None
    else:
        path = hub.find(source, [weight_name] if weight_name else WEIGHT_NAMES)
        if path.is_dir():
            path = hub.choose_file(path, weight_name, WEIGHT_NAMES, SUFFIXES, "embedding")
        state, origin, stem = read_file(path), str(path), path.stem
    name, vectors = find_vectors(state, origin)
    token = token or name or stem
    if token is None:
        raise ValueError(f"{origin} says no name for its vectors; give one by token=")
    return token, vectors.detach()[None] if vectors.ndim == 1 else vectors.detach()


def find_vectors(state: Any, origin: str) -> tuple[str | None, Tensor]:
    """The name that a state dict gives its vectors, if it does, and the vectors."""
    if isinstance(state, Tensor):
        return None, state
    web_ui = isinstance(state, Mapping) and "string_to_param" in state
    held = state["string_to_param"] if web_ui else state
    held = getattr(held, "_parameters", held)  # the first programs pickled a ParameterDict
    items = held.items() if isinstance(held, Mapping) else ()
    found = {key: value for key, value in items if isinstance(value, Tensor)}
    if len(found) != 1:
        raise ValueError(
            f"{origin} holds {len(found)} embeddings {sorted(map(str, found))[:5]}, expected one: "
            "is it a textual inversion for Stable Diffusion 1 or 2?"
        )
    [(key, vectors)] = found.items()
    if web_ui:
        return state.get("name"), vectors
    return (None if key == "emb_params" else key), vectors


def read_file(path: Path) -> Any:
    """What a file holds. Raises ValueError if there is none, or it is damaged."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give an embedding's file or folder")
    if is_pickle(first_bytes(path)):
        return load_pickle(path)
    return read_weights(path)[0]


def write_embedding(token: str, vectors: Tensor, path: Path | str) -> None:
    """Write a token's vectors (n, d) for diffusers."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as part:
        save_file({token: vectors.detach().cpu().contiguous()}, part, {"format": "pt"})
