"""What else a pipeline can do: each a door to the file that does it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minisd.lora import Adapters, adaptable

if TYPE_CHECKING:
    from minisd.call import Output


class Doors:
    """The methods of StableDiffusionPipeline that are a line or two each."""

    adapters: Adapters

    def image_to_image(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        **settings: Any,
    ) -> "Output":
        """Pictures drawn again after a prompt; see minisd.image_to_image."""
        from minisd.image_to_image import image_to_image

        return image_to_image(self, prompt, image, strength, **settings)

    def inpaint(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float = 1.0,
        **settings: Any,
    ) -> "Output":
        """Pictures whose masked part is drawn anew; see minisd.inpaint."""
        from minisd.inpaint import inpaint

        return inpaint(self, prompt, image, mask_image, strength, **settings)

    def outpaint(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        **settings: Any,
    ) -> "Output":
        """Pictures continued by left, right, top, bottom pixels; see minisd.inpaint.outpaint."""
        from minisd.inpaint import outpaint

        return outpaint(self, prompt, image, **settings)

    def load_lora_weights(
        self,
        source: Path | str | dict[str, Tensor],
        weight_name: str | None = None,
        adapter_name: str | None = None,
        scale: float = 1.0,
    ) -> None:
        """Add an adapter to the text encoder and the UNet; see weights_convert.adapters."""
        from weights_convert.adapters import read_lora

        loras = read_lora(source, weight_name, self.networks)
        self.adapters.add(adaptable(self.networks), loras, adapter_name, scale)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | None = None,
    ) -> None:
        """Use these of the loaded adapters, at these scales (1 if left out), and no others."""
        self.adapters.set(adapter_names, adapter_weights)

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Make the adapters a part of the weights: as fast as without them."""
        self.adapters.fuse(lora_scale)

    def unfuse_lora(self) -> None:
        """Take back fuse_lora, exactly."""
        self.adapters.unfuse()

    def unload_lora_weights(self) -> None:
        """Forget all adapters; what was fused stays in the weights."""
        self.adapters.unload()

    def save_lora_weights(
        self, folder: Path | str, adapter_name: str | None = None, weight_name: str | None = None
    ) -> None:
        """Write an adapter, by name if there are several, as diffusers does."""
        from weights_convert.adapters import WEIGHT_NAME, write_lora

        path = Path(folder) / (weight_name or WEIGHT_NAME)
        write_lora(self.adapters.get(adapter_name), self.networks, path)
