"""Attention: every query looks at every key and takes a weighted mean of the values."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

METHODS = ("fused", "efficient", "plain", "sliced")
BLOCK = 2**21  # scores at a time: 4 MB in bfloat16
EFFICIENT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]  # the first that can


def attention_probabilities(q: Tensor, k: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)), the weights of attention. [Attention Is All You Need, Eq. 1]

    q: (b, heads, n, d), k: (b, heads, m, d). Returns (b, heads, n, m); every row sums to 1.
    `causal` hides key j from query i where j > i.
    """
    scores = (q * q.shape[-1] ** -0.5) @ rearrange(k, "b heads m d -> b heads d m")
    if causal:
        n, m = scores.shape[-2:]
        future = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1)


def attend_plain(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """The formula as it is written: all n x m probabilities exist at once."""
    return attention_probabilities(q, k, causal) @ v


def attend_parts(q: Tensor, k: Tensor, v: Tensor, causal: bool, heads: int, queries: int) -> Tensor:
    """The formula, so many heads and so many queries at a time: the same numbers, less memory.

    Shapes as for `attend`. With `causal`, `queries` must be all of them.
    """
    alone = [rearrange(x, "b heads n d -> (b heads) 1 n d").split(heads) for x in (q, k, v)]
    done = [
        torch.cat([attend_plain(some, *keys, causal) for some in mine.split(queries, dim=2)], dim=2)
        for mine, *keys in zip(*alone)
    ]
    return rearrange(torch.cat(done), "(b heads) 1 n d -> b heads n d", b=q.shape[0])


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """The formula, for few enough scores at a time that they stay in the processor's cache.

    Shapes as for `attend`.
    """
    n, m = q.shape[-2], k.shape[-2]
    queries = n if causal else max(BLOCK // m, 1)  # the formula takes queries from the first on
    return attend_parts(q, k, v, causal, max(BLOCK // (n * m), 1), queries)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    method: str = "fused",
    slice_size: int = 1,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by one of four equal ways. [Attention Is All You Need, Eq. 1]

    q: (b, heads, n, d), k: (b, heads, m, d), v: (b, heads, m, d). Returns (b, heads, n, d).
    "fused" is PyTorch's choice of kernel, on most devices one that never stores the n x m
    probabilities; where that one is slow, in bfloat16 on a CPU, it is the formula in blocks.
    "efficient" is such a kernel on CUDA and on the CPU, or an error; "plain" is the formula;
    "sliced" is the formula for `slice_size` heads at a time. Raises ValueError for another method.
    """
    if method == "fused":
        learning = torch.is_grad_enabled() and q.requires_grad  # it would keep all blocks
        if (q.device.type, q.dtype) == ("cpu", torch.bfloat16) and not learning:
            return attend_blocks(q, k, v, causal)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    if method == "efficient":
        with sdpa_kernel(EFFICIENT, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    if method == "plain":
        return attend_plain(q, k, v, causal)
    if method == "sliced":
        return attend_parts(q, k, v, causal, slice_size, q.shape[-2])
    raise ValueError(f"attention method {method!r} is unknown, expected one of {METHODS}")


class Attention(nn.Module):
    """Multi-head attention; without a context the tokens look at each other (self-attention)."""

    path = ""  # where this module sits in its network, e.g. "mid.attention.block.cross_attn"
    method = "fused"
    slice_size = 1

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int | None = None,
        qkv_bias: bool = False,
        causal: bool = False,
    ):
        super().__init__()
        self.heads, self.causal = heads, causal
        context_width = width if context_width is None else context_width
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.k = nn.Linear(context_width, width, bias=qkv_bias)
        self.v = nn.Linear(context_width, width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, record: dict[str, Any] | None = None
    ) -> Tensor:
        """x: (b, n, width) asks, context: (b, m, context_width) answers. Returns (b, n, width).

        With `record`, the probabilities (b, heads, n, m) are written to it under this path.
        """
        context = x if context is None else context
        split = "b n (heads d) -> b heads n d"
        q = rearrange(self.q(x), split, heads=self.heads)
        k = rearrange(self.k(context), split, heads=self.heads)
        v = rearrange(self.v(context), split, heads=self.heads)
        if record is None:
            mixed = attend(q, k, v, self.causal, self.method, self.slice_size)
        else:
            probabilities = attention_probabilities(q, k, self.causal)
            record[f"{self.path}.probabilities"] = probabilities
            mixed = probabilities @ v
        return self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
