"""A model's own weights in diffusers' classes and in ours: how far apart what they compute is."""

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minisd.checkpoint import Uninitialised
from weights_convert import diffusers_config as configs
from weights_convert.names import DIFFUSERS, OURS, rename, table

TOLERANCE = 1e-5  # of the largest value, in float32; two correct networks stay well below it
PACKAGES = ("diffusers", "transformers")


@torch.no_grad()
def compare(networks: Mapping[str, nn.Module]) -> dict[str, float]:
    """What was compared, and its largest difference over the reference's largest value.

    networks: by the names of the pipeline's fields, in float32. Raises ValueError if diffusers is
    not installed.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"{' and '.join(missing)} is not installed, and it is what minisd is compared with: "
            "python -m pip install 'diffusers>=0.42,<0.43' 'transformers>=5,<6'"
        )
    generator = torch.Generator().manual_seed(0)
    text_encoder, unet, vae = (networks[name] for name in ("text_encoder", "unet", "vae"))
    ids = torch.randint(text_encoder.config.vocab_size, (2, 77), generator=generator)
    context = text_encoder(ids)
    errors = {"text embeddings": error(context, reference("text_encoder", text_encoder)(ids)[0])}
    x_t = torch.randn(2, unet.config.in_channels, 32, 32, generator=generator)
    t = torch.tensor([981, 1])
    theirs = reference("unet", unet)(x_t, t, context).sample
    errors["eps"] = error(unet(x_t, t, context), theirs)
    theirs = reference("vae", vae)
    image = torch.randn(1, vae.config.in_channels, 128, 128, generator=generator).clamp(-1, 1)
    mine, posterior = vae.encode(image), theirs.encode(image).latent_dist
    errors["encoded mean"] = error(mine.mean, posterior.mean)
    errors["encoded log variance"] = error(mine.logvar, posterior.logvar)
    z = torch.randn(1, vae.config.latent_channels, 16, 16, generator=generator)
    z = z / vae.config.scaling_factor
    errors["decoded picture"] = error(vae.decode(z), theirs.decode(z).sample)
    return errors


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def reference(name: str, network: nn.Module) -> nn.Module:
    """diffusers' network of the same config, with the same tensors in it, not copies."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = network.config
    with Uninitialised():
        if name == "unet":
            theirs = UNet2DConditionModel.from_config(configs.write_unet(config, 64))
        elif name == "vae":
            theirs = AutoencoderKL.from_config(configs.write_vae(config, 512))
        else:  # the ids of the specials matter only to what Stable Diffusion does not use
            described = configs.write_text_encoder(config, ids=(0, 1, 1))
            theirs = CLIPTextModel(CLIPTextConfig(**described))
    modules = table(name, config, OURS, DIFFUSERS)
    state = {rename(key, modules): value for key, value in network.state_dict().items()}
    if not any(key.startswith("text_model.") for key in theirs.state_dict()):
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    theirs.load_state_dict(state, assign=True)
    return theirs.eval()
