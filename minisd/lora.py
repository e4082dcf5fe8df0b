"""LoRA: the weights stay as they are; the product of two thin matrices is added. [LoRA 4.1]"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.layers import Upsample

Layers = dict[str, nn.Linear | nn.Conv2d]  # by network and module path: "unet.mid.resnet1.conv1"
ATTENTION = ("q", "k", "v", "out")  # what most files adapt [LoRA 4.2]


class LoRA(nn.Module):
    """What an adapter adds to one layer: alpha / r * B A x. [LoRA Eq. 3]

    A goes down to r numbers, B up. B starts at zero, so that a new adapter changes nothing.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float | None = None):
        super().__init__()
        c_out, *inside = layer.weight.shape
        self.factor = 1.0 if alpha is None else alpha / rank
        self.A = nn.Parameter(torch.zeros(rank, *inside))  # (r, d_in) or (r, c_in, kh, kw)
        self.B = nn.Parameter(torch.zeros(c_out, rank, *[1] * (len(inside) - 1)))

    def product(self) -> Tensor:
        """alpha / r * B A in the shape of the layer's weights: what fusing adds to them."""
        return self.factor * (self.B.flatten(1) @ self.A.flatten(1)).unflatten(1, self.A.shape[1:])

    def forward(self, x: Tensor, layer: nn.Linear | nn.Conv2d, out: Tensor) -> Tensor:
        """x: the layer's input, out: its output. Returns what to add to the output."""
        if isinstance(layer, nn.Linear):
            return self.factor * F.linear(F.linear(x, self.A), self.B)
        if isinstance(layer, Upsample):  # resizes before it convolves
            x = F.interpolate(x, size=out.shape[-2:], mode="nearest")
        h = F.conv2d(x, self.A, None, layer.stride, layer.padding)  # (b, r, h, w)
        return self.factor * F.conv2d(h, self.B)


def adaptable(networks: Mapping[str, nn.Module]) -> Layers:
    """All linear layers and convolutions of the text encoder and the UNet."""
    return {
        f"{name}.{path}": layer
        for name in ("text_encoder", "unet")
        for path, layer in networks[name].named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def fresh(
    layers: Layers, rank: int, generator: torch.Generator, targets: Sequence[str] = ATTENTION
) -> dict[str, LoRA]:
    """New adapters, to be trained, for the layers whose last name is one of `targets`."""
    chosen = [path for path in layers if path.split(".")[-1] in targets]
    loras = {path: LoRA(layers[path], rank) for path in chosen}
    for lora in loras.values():
        lora.A.data = torch.randn(lora.A.shape, generator=generator) / rank  # as diffusers begins
    return loras


class Adapters:
    """The adapters of a pipeline, by name: some layers' LoRA and a scale for each.

    A layer keeps its weights and its name; a forward hook, which PyTorch calls with the layer's
    input and output, makes it W x + sum of scale * alpha / r * B A x.
    """

    def __init__(self):
        self.loras: dict[str, dict[str, LoRA]] = {}
        self.scales: dict[str, float] = {}
        self.layers: Layers = {}  # that have at least one adapter
        self.originals: dict[str, Tensor] = {}  # their weights from before fusing
        self.hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}
        self.enabled = True

    def add(
        self, layers: Layers, loras: dict[str, LoRA], name: str | None = None, scale: float = 1.0
    ) -> None:
        """Add an adapter beside those that are there. Raises ValueError if its name is taken."""
        numbered = (f"default_{i}" for i in count(len(self.loras)))  # as diffusers
        name = next(one for one in numbered if one not in self.loras) if name is None else name
        if name in self.loras:
            raise ValueError(f"an adapter {name!r} is loaded already; choose another adapter_name")
        self.need_unfused()
        self.loras[name], self.scales[name] = loras, float(scale)
        self.layers |= {path: layers[path] for path in loras}
        self.hooks[name] = [
            layers[path].register_forward_hook(partial(self.add_to, name, lora))
            for path, lora in loras.items()
        ]

    def remove(self, names: str | Sequence[str]) -> None:
        """Forget these adapters. Raises ValueError if one of them is not loaded."""
        names = [names] if isinstance(names, str) else list(names)
        self.need_unfused()
        for name in names:
            self.get(name)
        for name in names:
            for hook in self.hooks.pop(name):
                hook.remove()
            del self.loras[name], self.scales[name]
        left = {path for loras in self.loras.values() for path in loras}
        self.layers = {path: layer for path, layer in self.layers.items() if path in left}

    def enable(self, enabled: bool) -> None:
        """Let the adapters, at their scales, count or not."""
        self.need_unfused()
        self.enabled = enabled

    @property
    def active(self) -> list[str]:
        """The names of those that count."""
        return [name for name in self.loras if self.enabled and self.scales[name] != 0]

    def add_to(
        self, name: str, lora: LoRA, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
    ) -> Tensor:
        """The hook: a layer's output with this adapter's part added."""
        if not self.enabled or self.scales[name] == 0 or self.originals:
            return out
        if lora.A.device != out.device:  # the network has moved
            lora.to(out.device)
        part = self.scales[name] * lora(inputs[0].to(lora.A.dtype), layer, out)
        return out + part.to(out.dtype)

    def set(self, names: str | Sequence[str], weights: float | Sequence[float] | None) -> None:
        """Use these adapters at these scales, 1 if left out, and no others."""
        names = [names] if isinstance(names, str) else list(names)
        if weights is None or isinstance(weights, int | float):
            weights = [1.0 if weights is None else weights] * len(names)
        self.need_unfused()
        if len(names) != len(weights) or not set(names) <= set(self.loras):
            what = f"adapters {names} at weights {list(weights)} were asked for"
            raise ValueError(f"{what}, loaded are {list(self.loras)}; give one weight for each")
        self.scales = {**dict.fromkeys(self.loras, 0.0), **dict(zip(names, map(float, weights)))}

    def get(self, name: str | None = None) -> dict[str, LoRA]:
        """The adapter of this name, or the only one. Raises ValueError if there is none."""
        name = next(iter(self.loras)) if name is None and len(self.loras) == 1 else name
        if name not in self.loras:
            raise ValueError(f"no adapter {name!r} is loaded, only {list(self.loras)}")
        return self.loras[name]

    def need_unfused(self) -> None:
        if self.originals:
            raise ValueError("the adapters are fused into the weights; call unfuse_lora() first")

    @torch.no_grad()
    def fuse(self, lora_scale: float = 1.0) -> None:
        """Write W + lora_scale * sum of scale * alpha / r * B A in the place of W."""
        if not self.loras:
            raise ValueError("no adapter is loaded; call load_lora_weights() first")
        self.need_unfused()
        for path, layer in self.layers.items():
            before, total = layer.weight.data, layer.weight.float()
            for name in [name for name in self.active if path in self.loras[name]]:
                product = self.loras[name][path].product().to(total)
                total = total + lora_scale * self.scales[name] * product
            layer.weight.data = total.to(before.dtype)
            self.originals[path] = before.cpu()

    def unfuse(self) -> None:
        """Put back the weights from before fuse, bit by bit; the adapters go on beside them."""
        if not self.originals:
            raise ValueError("nothing is fused; call fuse_lora() first")
        for path, before in self.originals.items():
            self.layers[path].weight.data = before.to(self.layers[path].weight)
        self.originals = {}

    def unload(self) -> None:
        """Forget all adapters. What was fused stays in the weights for good."""
        for hook in [hook for hooks in self.hooks.values() for hook in hooks]:
            hook.remove()
        self.__init__()
