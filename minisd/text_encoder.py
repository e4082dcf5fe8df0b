"""The text encoder: CLIP's text transformer, from token ids to one vector for each token."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.arguments import whole
from minisd.attention import Attention
from minisd.config import TextEncoderConfig


class MLP(nn.Module):
    """Two linear layers around CLIP's activation."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.activation = config.activation
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, m, d). Returns (b, m, d)."""
        h = self.fc1(x)
        # OpenAI trained CLIP with a quick approximation of GELU; the exact one gives other vectors.
        h = h * torch.sigmoid(1.702 * h) if self.activation == "quick_gelu" else F.gelu(h)
        return self.fc2(h)


class TextLayer(nn.Module):
    """Causal self-attention and an MLP, each on the normed input and added to it."""

    path = ""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.attn = Attention(config.width, config.heads, qkv_bias=True, causal=True)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-5)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, record: dict[str, Any] | None = None) -> Tensor:
        """x: (b, m, d). Returns (b, m, d)."""
        x = x + self.attn(self.norm1(x), record=record)
        x = x + self.mlp(self.norm2(x))
        if record is not None:
            record[self.path] = x
        return x


class TextEncoder(nn.Module):
    """CLIP's text transformer as Stable Diffusion uses it. [CLIP 2.4; LDM 3.3]

    A token sees itself and the tokens before it. Padding is not masked: Stable Diffusion was
    trained with the end token repeated up to 77, and its pictures depend on it.
    """

    def __init__(self, config: TextEncoderConfig = TextEncoderConfig()):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=1e-5)
        for path, module in self.named_modules():
            module.path = path

    def forward(
        self, ids: Tensor, clip_skip: int = 0, record: dict[str, Any] | None = None
    ) -> Tensor:
        """ids: (b, m) token ids, m at most the context length. Returns (b, m, d).

        `clip_skip` leaves out that many of the last layers; the final norm always applies.
        Raises ValueError for too long a text or too large a skip.
        """
        if ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"the text has {ids.shape[1]} tokens, expected at most "
                f"{self.config.context_length}; let the tokenizer cut it"
            )
        if not 0 <= whole("clip_skip", clip_skip) < len(self.layers):
            raise ValueError(
                f"clip_skip is {clip_skip}, expected 0 to {len(self.layers) - 1}: "
                f"this text encoder has {len(self.layers)} layers"
            )
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (b, m, d)
        if record is not None:
            record["embeddings"] = x
        for layer in self.layers[: len(self.layers) - clip_skip]:
            x = layer(x, record)
        return self.final_norm(x)
