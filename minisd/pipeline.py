"""The pipeline: a prompt becomes a picture."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from minisd import call, checkpoint, guard, images
from minisd.arguments import number
from minisd.autoencoder import Autoencoder
from minisd.call import Callback, Output
from minisd.config import Defaults
from minisd.doors import Doors
from minisd.layers import Record
from minisd.lora import Adapters
from minisd.memory import Offload
from minisd.noise import Generators, seeded
from minisd.prompts import pair
from minisd.schedulers import NoiseSchedule, Span
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One step of the denoising loop.

    x_t: the latents that the model saw, x_0: the clean latents that it predicts, eps: the predicted
    noise after guidance, x_prev: the latents after the step; each (b, c, h/8, w/8).
    """

    index: int
    t: float
    x_t: Tensor
    x_0: Tensor
    eps: Tensor
    x_prev: Tensor


def rescale_guidance(guided: Tensor, cond: Tensor, rescale: float) -> Tensor:
    """Pull the guided output back to the spread of the conditional one, by `rescale` in [0, 1].

    guided, cond: (b, c, h, w). [Common Diffusion Noise Schedules are Flawed, Eq. 15-16]
    """
    axes = tuple(range(1, cond.ndim))
    matched = guided * (cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return rescale * matched + (1 - rescale) * guided


@dataclass
class StableDiffusionPipeline(Doors):
    """The three networks, the tokenizer and a scheduler; call it with a prompt."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: UNet
    vae: Autoencoder
    scheduler: NoiseSchedule
    defaults: Defaults = Defaults()
    family: str = "sd-1"
    progress_bar: dict[str, Any] = field(default_factory=dict, repr=False)
    adapters: Adapters = field(default_factory=Adapters, repr=False)
    offload: Offload | None = field(default=None, repr=False)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the native folder: weights, tokenizer, scheduler and defaults.

        Adapters are not written, unless fuse_lora has made them a part of the weights.
        """
        checkpoint.save_folder(vars(self), Path(folder))

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return {name: getattr(self, name) for name in checkpoint.NETWORKS}

    @property
    def hash(self) -> str:
        """Twelve hex digits that tell models apart, the same in every precision down to half."""
        return checkpoint.model_hash(self.networks)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device if self.offload is None else self.offload.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def to(self, *device_and_dtype: Any, memory_format: torch.memory_format | None = None) -> Self:
        """Move all networks to a device (no offloading then), a dtype or both; returns itself.

        memory_format: how convolutions lie in memory; torch.channels_last is often quicker.
        """
        if not all(isinstance(one, torch.dtype) for one in device_and_dtype):
            self.disable_model_cpu_offload()
        for network in self.networks.values():
            network.to(*device_and_dtype, memory_format=memory_format)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Arguments for tqdm; `disable=True` silences the bar."""
        self.progress_bar = config

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """b prompts to (cond, uncond), (b, 77, d) each.

        Without a negative prompt, uncond is the empty text. Words past the 77th token are cut, with
        a warning, and brackets are text; prompts.encode reads all words and (red:1.3) as a weight.
        Raises ValueError if the numbers of prompts differ.
        """
        prompts, negatives = pair(prompt, negative_prompt)
        for text in prompts + negatives:
            if cut := self.tokenizer.cut(text):
                logger.warning("the prompt is too long; its end was cut: %r", cut)
        # The reference skips layers for the positive prompt alone.
        cond = self.text_encoder(self.tokenizer(prompts).to(self.device), clip_skip or 0)
        return cond, self.text_encoder(self.tokenizer(negatives).to(self.device))

    @torch.no_grad()
    def encode_image(self, image: Tensor, generator: Generators = None) -> Tensor:
        """Pictures (b, 3, h, w) in [-1, 1] to scaled latents (b, 4, h/8, w/8), sampled."""
        image = image.to(self.device, self.dtype)
        posterior = guard.in_safe_precision(self.vae, self.vae.encode, image)
        return (posterior.sample(generator) * self.vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (b, 4, h/8, w/8) to pictures (b, 3, h, w) in [-1, 1].

        Where half precision overflows, and only there, the autoencoder works in float32. Raises
        ValueError rather than return NaN. See minisd.guard.
        """
        factor = self.vae.config.scaling_factor
        pictures = guard.in_safe_precision(self.vae, lambda z: self.vae.decode(z / factor), latents)
        if self.offload is not None:
            self.offload.rest()
        return pictures

    def predict(
        self,
        x_t: Tensor,
        span: Span,
        cond: Tensor,
        uncond: Tensor | None,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        extra_channels: Tensor | None = None,
        record: Record = None,
    ) -> Tensor:
        """The UNet's output at span.t, guided if there is an uncond and guidance_scale > 1:
        uncond + guidance_scale * (cond - uncond). [Classifier-Free Diffusion Guidance, Eq. 6]

        extra_channels: (b, c, h/8, w/8) what an inpainting model sees beside x_t. record: see
        UNet.forward; of a guided call it holds the pictures without text, then those with it.
        """
        x_t = self.scheduler.scale_input(x_t, span)
        if extra_channels is not None:
            x_t = torch.cat([x_t, extra_channels], dim=1)
        if uncond is None or guidance_scale <= 1:
            return self.unet(x_t, span.t, cond, record)
        both = self.unet(torch.cat([x_t, x_t]), span.t, torch.cat([uncond, cond]), record)
        without, with_text = both.chunk(2)
        guided = without + guidance_scale * (with_text - without)
        if guidance_rescale > 0:
            guided = rescale_guidance(guided, with_text, guidance_rescale)
        return guided

    def denoise(
        self,
        latents: Tensor,
        cond: Tensor,
        uncond: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        eta: float = 0.0,
        generator: Generators = None,
        guidance_rescale: float = 0.0,
        extra_channels: Tensor | None = None,
        adjust: Callable[[Step], Tensor] | None = None,
        record: Record = None,
    ) -> Iterator[Step]:
        """The loop: from noise (b, c, h/8, w/8) step by step to clean latents.

        Steps and guidance left out are the model's own. `strength` below 1 runs the last steps
        only. `extra_channels` are what an inpainting model sees beside the latents. `adjust`, given
        a step, returns the latents to use in place of its x_prev. `record` is filled anew at each
        step, as `predict` says.
        """
        given = latents.shape[1] + (0 if extra_channels is None else extra_channels.shape[1])
        if given != self.unet.config.in_channels:
            raise ValueError(
                f"the UNet is given {given} channels, expected {self.unet.config.in_channels}; a "
                "model with 9 is made for inpainting: use pipe.inpaint or pipe.outpaint"
            )
        n = self.steps(num_inference_steps)
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        number("guidance_scale", scale)
        number("guidance_rescale", guidance_rescale, 0, 1)
        number("eta", eta, 0, 1)
        history: tuple[Step, ...] = ()
        x_t = latents
        for span in self.scheduler.plan(n, strength):
            with torch.no_grad():
                output = self.predict(
                    x_t, span, cond, uncond, scale, guidance_rescale, extra_channels, record
                )
                x_prev, x_0 = self.scheduler.step(
                    output, span, x_t, history=history, generator=generator, eta=eta
                )
                _, eps = self.scheduler.predict(output, span, x_t)
            step = Step(span.index, span.t, x_t, x_0, eps, x_prev)
            if adjust is not None:
                step = dataclasses.replace(step, x_prev=adjust(step))
            yield step
            history = (*history[-3:], step)
            x_t = step.x_prev

    def steps(self, num_inference_steps: int | None) -> int:
        """This number of steps, or the model's own if it is left out."""
        given = num_inference_steps
        return self.defaults.num_inference_steps if given is None else given

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        guidance_rescale: float = 0.0,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> Output:
        """Text to pictures: `num_images_per_prompt` for each prompt, a prompt's own together.

        height, width: pixels, divisible by 8. generator: one for all, or one for each picture; none
        draws a seed and reports it. latents: the noise to start from, (b, 4, h/8, w/8).
        prompt_embeds: (b, 77, d) in place of a prompt. output_type: "pil", "np" (b, h, w, 3) or
        "pt" (b, 3, h, w) in [0, 1], or "latent". callback_on_step_end(pipe, index, t, tensors) may
        return {"latents": others}; tensors holds x_prev as "latents", and "x_t", "x_0" and "eps".
        Raises ValueError for arguments that do not fit.
        """
        images.check_output_type(output_type)
        cond, uncond = call.conditions(
            self, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip,
            num_images_per_prompt,
        )  # fmt: skip
        generator, seed = seeded(generator)
        shape = call.latent_shape(self, len(cond), height, width)
        x_T = call.start(self, shape, latents, generator, num_inference_steps)
        x_0 = call.run(
            self, x_T, cond, uncond, num_inference_steps, guidance_scale, callback_on_step_end,
            eta=eta, generator=generator, guidance_rescale=guidance_rescale,
        )  # fmt: skip
        return Output(call.finish(self, x_0, output_type), seed)
