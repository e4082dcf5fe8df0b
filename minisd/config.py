"""Every size of the model, in frozen dataclasses: one for each network and one for the noise.

Stable Diffusion 1.x, Stable Diffusion 2.x and the picture-book model are different values of the
same four classes, never different code.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


class JsonConfig:
    """to_json and from_json for the dataclasses below; unknown keys are errors, not surprises."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no field {sorted(unknown)}; "
                f"it has {[field.name for field in dataclasses.fields(cls)]}"
            )
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TextEncoderConfig(JsonConfig):
    """CLIP's text transformer. The defaults are SD 1.x's (CLIP ViT-L/14)."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"  # OpenAI's CLIP; OpenCLIP (SD 2.x) uses the exact "gelu"

    def __post_init__(self) -> None:
        _check(
            self.width % self.heads == 0,
            f"width {self.width} is not divisible by heads {self.heads}",
        )
        _check(
            self.activation in ("quick_gelu", "gelu"),
            f"activation is {self.activation!r}, expected 'quick_gelu' or 'gelu'",
        )


@dataclass(frozen=True)
class UNetConfig(JsonConfig):
    """The noise predictor. Tuples have one entry for each resolution, finest first."""

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_level: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    context_width: int = 768
    norm_groups: int = 32
    linear_projection: bool = False  # SD 2.x enters and leaves its transformers by a linear layer

    def __post_init__(self) -> None:
        levels = len(self.widths)
        for name in ("attention", "heads"):
            given = len(getattr(self, name))
            _check(given == levels, f"{name} has {given} entries, expected {levels} as in widths")
        for width, heads in zip(self.widths, self.heads):
            _check(
                width % self.norm_groups == 0,
                f"width {width} is not divisible by norm_groups {self.norm_groups}",
            )
            _check(width % heads == 0, f"width {width} is not divisible by heads {heads}")

    @property
    def time_width(self) -> int:
        return 4 * self.widths[0]


@dataclass(frozen=True)
class AutoencoderConfig(JsonConfig):
    """The picture <-> latent autoencoder. Every level but the last halves the picture."""

    in_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_level: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215  # LDM: 1 / std of the latents

    def __post_init__(self) -> None:
        for width in self.widths:
            _check(
                width % self.norm_groups == 0,
                f"width {width} is not divisible by norm_groups {self.norm_groups}",
            )
        _check(
            self.scaling_factor > 0,
            f"scaling_factor is {self.scaling_factor}, expected a positive number",
        )

    @property
    def downscale(self) -> int:
        """Pixels a latent cell covers along one side: 8 for SD."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class ScheduleConfig(JsonConfig):
    """How much noise at which timestep, and what the UNet was trained to predict.

    The defaults are SD 1.x's. `timestep_spacing=None` leaves the choice to the scheduler's class.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: bool = False
    # What only some schedulers read, under diffusers' names.
    use_karras_sigmas: bool = False  # Euler, Heun, DPM-Solver++
    final_sigmas_type: str = "zero"  # Euler, DPM-Solver++; or "sigma_min", the level of timestep 0
    skip_prk_steps: bool = True  # PNDM
    algorithm_type: str = "dpmsolver++"  # DPM-Solver++; or "sde-dpmsolver++"
    solver_order: int = 2  # DPM-Solver++; or 1
    lower_order_final: bool = True  # DPM-Solver++
    euler_at_final: bool = False  # DPM-Solver++
    original_inference_steps: int = 50  # LCM
    timestep_scaling: float = 10.0  # LCM

    def __post_init__(self) -> None:
        choices = {
            "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
            "prediction_type": ("epsilon", "sample", "v_prediction"),
            "timestep_spacing": (None, "leading", "linspace", "trailing"),
            "final_sigmas_type": ("zero", "sigma_min"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            also = "; the cosine schedule is 'squaredcos_cap_v2'" if value == "cosine" else ""
            _check(value in allowed, f"{name} is {value!r}, expected one of {allowed}{also}")
        for name, least in (("num_train_timesteps", 1), ("steps_offset", 0)):
            value = getattr(self, name)
            fits = isinstance(value, int) and value >= least
            _check(fits, f"{name} is {value!r}, expected at least {least}, a whole number")
        betas = (self.beta_start, self.beta_end)
        _check(
            all(isinstance(beta, int | float) and 0 < beta < 1 for beta in betas),
            f"beta_start and beta_end are {betas}, expected numbers between 0 and 1",
        )


@dataclass(frozen=True)
class Defaults(JsonConfig):
    """What a call uses where its caller says nothing; it belongs to the model."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    height: int = 512
    width: int = 512


@dataclass(frozen=True)
class ModelConfig:
    """The three networks and the schedule of one family."""

    text_encoder: TextEncoderConfig = TextEncoderConfig()
    unet: UNetConfig = UNetConfig()
    vae: AutoencoderConfig = AutoencoderConfig()
    schedule: ScheduleConfig = ScheduleConfig()


SD15 = ModelConfig()

SD21_BASE = ModelConfig(
    # The penultimate of OpenCLIP ViT-H's 24 layers is SD 2.x's last: the 24th is not stored.
    text_encoder=TextEncoderConfig(
        width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu"
    ),
    unet=UNetConfig(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True),
)

SD21 = dataclasses.replace(SD21_BASE, schedule=ScheduleConfig(prediction_type="v_prediction"))

PICTUREBOOK = ModelConfig(
    text_encoder=TextEncoderConfig(vocab_size=768, width=160, layers=3, heads=5, mlp_width=640),
    unet=UNetConfig(
        widths=(64, 112, 160),
        layers_per_level=1,
        attention=(False, True, True),
        heads=(4, 4, 4),
        context_width=160,
        norm_groups=8,
    ),
    # Group norm wants 8 channels a group: with 2, a flat picture keeps only a sign.
    vae=AutoencoderConfig(widths=(32, 32, 64, 128), layers_per_level=1, norm_groups=4),
)
