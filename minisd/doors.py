"""What else a pipeline can do: each a door to the file that does it."""

import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from minisd import checkpoint, memory, replay, textual_inversion
from minisd.lora import Adapters, adaptable

if TYPE_CHECKING:
    from minisd.call import Output

logger = logging.getLogger(__name__)
SHIPPED = "picturebook/weights"


class Doors:
    """The methods of StableDiffusionPipeline that are a line or two each."""

    adapters: Adapters
    offload: memory.Offload | None

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str | None = None,
        *,
        torch_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        safety_checker: None = None,
        requires_safety_checker: bool = False,
    ) -> Self:
        """Open a model: None for the shipped picture-book model, a native folder, a diffusers
        folder, or a hub id like "owner/name". Raises ValueError for anything else.

        dtype: another name of torch_dtype. variant: "fp16" reads the files that say so in their
        names. The other arguments are diffusers', and change nothing: .safetensors are read
        wherever there are any, no code out of a pickle is run, and there is no safety checker.
        """
        torch_dtype = dtype or torch_dtype
        if safety_checker is not None:
            raise ValueError("there is no safety checker here, expected None: check the pictures")
        if source is None:
            with resources.as_file(resources.files("minisd").joinpath(SHIPPED)) as folder:
                return cls(**checkpoint.load_folder(Path(folder), torch_dtype))
        if (Path(source) / "pipeline.json").is_file():
            return cls(**checkpoint.load_folder(Path(source), torch_dtype))
        import weights_convert  # the door to official layouts

        if not Path(source).exists() and not weights_convert.hub.is_id(source):
            raise ValueError(
                f"{source} does not exist and is no hub id (owner/name); give a model's folder, "
                "or nothing for the shipped picture-book model"
            )
        return weights_convert.open(source, torch_dtype=torch_dtype, variant=variant)

    @classmethod
    def from_single_file(
        cls, path: Path | str, *, torch_dtype: torch.dtype = torch.float32, **settings: Any
    ) -> Self:
        """Open a .safetensors or .ckpt with CompVis' names; settings are weights_convert.open's."""
        if not Path(path).is_file():
            raise ValueError(f"{path} is no file; open folders and hub ids with from_pretrained")
        import weights_convert

        return weights_convert.open(path, torch_dtype=torch_dtype, **settings)

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
        """Add an adapter to the text encoder and the UNet; see weights_convert.adapters.

        source: a file, a folder, a hub id or a state dict.
        """
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

    def get_active_adapters(self) -> list[str]:
        """The names of the adapters that count: whose scale is not 0, unless disable_lora."""
        return self.adapters.active

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these adapters."""
        self.adapters.remove(adapter_names)

    def disable_lora(self) -> None:
        """Draw without the adapters, which stay loaded."""
        self.adapters.enable(False)

    def enable_lora(self) -> None:
        """Draw with them again."""
        self.adapters.enable(True)

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

    def load_textual_inversion(
        self,
        source: Path | str | dict[str, Any] | Tensor,
        token: str | None = None,
        weight_name: str | None = None,
    ) -> str:
        """Add a learned word to the vocabulary; returns it, for use in prompts.

        source: a file, a folder, a hub id, a state dict or the vectors. The word becomes a part of
        the model: `hash` changes and save_pretrained writes it, until unload_textual_inversion. See
        minisd.textual_inversion and weights_convert.embeddings.
        """
        from weights_convert.embeddings import read_embedding

        token, vectors = read_embedding(source, token, weight_name)
        textual_inversion.add_token(self, token, vectors)
        return token

    def unload_textual_inversion(self, tokens: str | Sequence[str] | None = None) -> None:
        """Forget these learned words, or all of them."""
        textual_inversion.remove_tokens(self, tokens)

    def save_textual_inversion(
        self, folder: Path | str, token: str | None = None, weight_name: str | None = None
    ) -> None:
        """Write a learned word, named if there are several, as diffusers does."""
        from weights_convert.embeddings import WEIGHT_NAMES, write_embedding

        path = Path(folder) / (weight_name or WEIGHT_NAMES[0])
        write_embedding(*textual_inversion.vectors_of(self, token), path)

    def enable_attention_slicing(self, slice_size: str | int = "auto") -> None:
        """The UNet's attention for so many heads at a time: "auto" for half of them, "max" for one.

        Less memory than the formula at once; but PyTorch's own kernel, which is in use without this
        switch, needs still less where there is one.
        """
        memory.slice_attention(self.unet, slice_size)

    def disable_attention_slicing(self) -> None:
        memory.choose_attention([self.unet], "fused", instead_of="sliced")

    def enable_xformers_memory_efficient_attention(self) -> None:
        """PyTorch's own memory-efficient kernel in all networks; xformers is not needed.

        On the CPU that is the kernel in use without this switch, but in bfloat16.
        """
        memory.choose_attention(self.networks.values(), "efficient")

    def disable_xformers_memory_efficient_attention(self) -> None:
        memory.choose_attention(self.networks.values(), "fused", instead_of="efficient")

    def enable_vae_slicing(self) -> None:
        """Encode and decode the pictures of a batch one by one: the same numbers."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self, tile_size: int | None = None) -> None:
        """Encode and decode pictures larger than this in tiles, with blended seams: close numbers.

        tile_size: pixels; left out, the side of the model's own pictures. See minisd.tiling.
        """
        quarter = 4 * self.vae.config.downscale
        own = min(self.defaults.height, self.defaults.width) // quarter * quarter
        self.vae.enable_tiling(max(own, quarter) if tile_size is None else tile_size)

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Each network on the accelerator only while it works, the others in main memory.

        Without an accelerator nothing is moved, and a warning says so. Raises ValueError if one is
        named that is not there. `to` a device ends it.
        """
        self.disable_model_cpu_offload()
        where = memory.pick_device("auto" if device is None else str(device))
        if where.type == "cpu" and device is None:
            logger.warning("no accelerator here: all networks stay in main memory, nothing to move")
        else:
            self.offload = memory.Offload(self.networks, where)

    def disable_model_cpu_offload(self) -> None:
        """All networks stay in main memory, where `to` can take them from."""
        if self.offload is not None:
            self.offload.end()
        self.offload = None

    def compile(self, method: str = "auto") -> None:
        """Draw faster after a first picture that takes longer; the same numbers, up to rounding.

        "replay" (for the CPU) writes the UNet's operations down, in seconds, and holds its weights
        a second time in a quicker order, where main memory has room for that; see minisd.replay.
        "inductor" is torch.compile for the UNet and the decoder, minutes with a C++ compiler on the
        CPU; on CUDA it makes CUDA graphs, and the networks' memory_format becomes channels_last.
        "auto" takes what suits the device. Raises ValueError for another method, and with
        enable_model_cpu_offload.
        """
        if method == "auto":
            method = "inductor" if self.device.type == "cuda" else "replay"
        if method not in (methods := ("replay", "inductor")):
            raise ValueError(f"method is {method!r}, expected 'auto' or one of {methods}")
        if self.offload is not None:
            raise ValueError("compile needs the networks in place; disable_model_cpu_offload first")
        self.uncompile()
        if method == "replay":
            self.unet._compiled_call_impl = replay.Replay(self.unet)
        else:
            on_gpu = self.device.type == "cuda"
            self.to(memory_format=torch.channels_last if on_gpu else None)
            mode = "reduce-overhead" if on_gpu else None
            self.unet._compiled_call_impl = replay.Inductor(self.unet, mode)
            self.vae.decoder._compiled_call_impl = replay.Inductor(self.vae.decoder, mode)

    def uncompile(self) -> None:
        """Take back compile: every call goes the plain way again."""
        for network in (self.unet, self.vae.decoder):
            network._compiled_call_impl = None
