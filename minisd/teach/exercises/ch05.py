"""Chapter 05: latent space and the autoencoder."""

from typing import Any

import torch

from minisd.autoencoder import DiagonalGaussian
from minisd.teach.checks import Exercise, call, compare, draws, number, seeded, sentences


def reparameterise(answer: Any) -> str:
    """The check of 05.2."""
    g = seeded(5)
    mean, logvar, noise = torch.randn(3, 2, 4, 3, 3, generator=g)
    std = (logvar / 2).exp()
    given = call(answer, mean, logvar, noise)
    return draws(answer, mean, logvar, noise) or compare(given, mean + std * noise, {
        "exp(logvar) is the variance; noise is scaled by the standard deviation, its square root":
            mean + logvar.exp() * noise,
        "exp is missing: logvar is the logarithm of the variance": mean + logvar * noise,
        "exp is missing: half of logvar is the logarithm of the standard deviation":
            mean + logvar / 2 * noise,
        "the noise is not scaled: every latent gets the same spread": mean + noise,
        "the mean is missing": std * noise,
        "the noise scales the mean; it is to be added to it": mean * std * noise,
        "the sign in the exponent is wrong: a large logvar means much noise":
            mean + (-logvar / 2).exp() * noise,
        "the sign of the noise is wrong (as a distribution it is the same, as a seed not)":
            mean - std * noise,
        "that is the mean alone: .mode(), not a sample": mean,
    })  # fmt: skip


def scale_factor(answer: Any) -> str:
    """The check of 05.3."""
    g = seeded(55)
    spread = torch.tensor([1.5, 4.0, 2.5, 6.0])[:, None, None]
    of_picture = torch.linspace(0.4, 1.6, 16)[:, None, None, None]  # no picture is like another
    latents = torch.randn(16, 4, 8, 8, generator=g) * spread * of_picture + 2
    std, channels, pictures = latents.std(), latents.std(dim=(0, 2, 3)), latents.std(dim=(1, 2, 3))
    return compare(call(answer, latents), 1 / std, {
        "that is the standard deviation; the factor is what brings it to 1": std,
        "that is 1 / variance: a factor scales the standard deviation": 1 / std**2,
        "that is the variance; the factor is 1 / its root": std**2,
        "the wrong axis: one factor for each channel; the model has a single one for all numbers":
            1 / channels,
        "the wrong axis: one factor for each picture; the model has a single one": 1 / pictures,
        "a mean over the channels; the spread of all numbers together is another":
            (1 / channels.mean(), (1 / channels).mean()),
        "a mean over the pictures; the spread of all numbers together is another":
            (1 / pictures.mean(), (1 / pictures).mean()),
        "that is the factor of the first picture alone": 1 / pictures[0],
        "that is 1 / the root of the mean square; the spread is measured from the mean":
            1 / latents.square().mean().sqrt(),
        "0.18215 is Stable Diffusion's factor; measure that of these latents": 0.18215,
        "that is 1 / mean absolute value; the spread is measured by the standard deviation":
            1 / latents.abs().mean(),
        "that is 1 / the largest value, which one odd latent can decide": 1 / latents.abs().max(),
    }, tolerance=0.02)  # fmt: skip


def kl(answer: Any) -> str:
    """The check of 05.4."""
    g = seeded(555)
    mean, logvar = torch.randn(2, 3, 4, 2, 2, generator=g)
    nats = (mean**2 + logvar.exp() - 1 - logvar) / 2
    axes = (1, 2, 3)
    return compare(call(answer, mean, logvar), DiagonalGaussian(mean, logvar).kl(), {
        "the factor 1/2 is missing": 2 * nats.sum(axes),
        "the sign is wrong: a divergence is never negative": -nats.sum(axes),
        "the - 1 is missing: the divergence of the normal distribution from itself must be 0":
            (mean**2 + logvar.exp() - logvar).sum(axes) / 2,
        "exp is missing: the formula holds the variance, exp(logvar)":
            (mean**2 + logvar - 1 - logvar).sum(axes) / 2,
        "exp(logvar) is the variance already; it is not squared again": (
            (mean**2 + logvar.exp() ** 2 - 1 - logvar).sum(axes) / 2,
            (mean**2 + logvar.exp() ** 2 - 1 - 2 * logvar).sum(axes) / 2),
        "the square on the mean is missing": (mean + logvar.exp() - 1 - logvar).sum(axes) / 2,
        "the wrong axis: the sum runs over the batch as well; give one number for each picture":
            nats.sum(),
        "a mean where a sum belongs: the numbers of a latent are independent, their nats add up":
            nats.mean(axes),
    })  # fmt: skip


EXERCISES = {
    "05.1": Exercise(
        "predict",
        "how many times fewer numbers has Stable Diffusion's latent than its 512 x 512 picture?",
        number(48.0, 0.01, {
            "64 = 8 x 8 counts the places; a place has 3 numbers in the picture and 4 in the "
            "latent": 64.0,
            "8 is the factor of one side; there are two": 8.0,
            "that is latent / picture, the other way round": 1 / 48,
            "192 counts the picture's 3 channels, but not the latent's 4": 192.0,
            "16 counts the latent's 4 channels, but not the picture's 3": 16.0,
        }, "(3 x 512 x 512) / (4 x 64 x 64)"),
        "786,432 numbers become 16,384",
    ),
    "05.2": Exercise(
        "fill-in",
        "write sample(mean, logvar, noise), all (b, c, h, w): a latent from its distribution",
        reparameterise,
        "the noise is an input, so that gradients reach mean and logvar",
    ),
    "05.3": Exercise(
        "fill-in",
        "write scale_factor(latents), (b, c, h, w) to one number: what brings their spread to 1",
        scale_factor,
        "0.18215 is this number for Stable Diffusion's autoencoder",
    ),
    "05.4": Exercise(
        "fill-in",
        "write kl(mean, logvar), (b, c, h, w) to (b,): nats from the standard normal distribution",
        kl,
        "zero only for mean 0 and variance 1",
    ),
    "05.5": Exercise(
        "open",
        "set one channel of a latent to zero and decode it: what changes, channel by channel?",
        sentences(),
        "to compare: the shapes stay in place and the colours change; no channel is a colour by "
        "itself, and one that hardly varies is hardly missed: the decoder reads all of them "
        "together",
    ),
}  # fmt: skip
