"""How far a reconstruction is from its picture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.autoencoder import Autoencoder
from minisd.picturebook.data import to_range
from minisd.training import decibels


def edges(x: Tensor) -> list[Tensor]:
    """Differences of neighbouring pixels at three scales: where a blurred picture is wrong."""
    scales = [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)]
    return [d for s in scales for d in (s.diff(dim=-1), s.diff(dim=-2))]


def picture_loss(out: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """L1 + MSE + 0.5 edges, and the MSE alone; out, x: (b, 3, h, w) in [-1, 1]."""
    out, mse = out.float(), F.mse_loss(out.float(), x)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(out), edges(x)))
    return F.l1_loss(out, x) + mse + 0.5 * edge, mse.item()


def reconstruction_loss(
    vae: Autoencoder, pictures: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the pictures + 6e-4 KL a latent number; pictures (b, 3, h, w) uint8."""
    device = next(vae.parameters()).device
    x = to_range(pictures.to(device))
    posterior = vae.encode(x)
    noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
    loss, mse = picture_loss(
        vae.decode(posterior.mean + torch.exp(0.5 * posterior.logvar) * noise), x
    )
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return loss + 6e-4 * kl, {"psnr": decibels(mse), "kl": kl.item()}
