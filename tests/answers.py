"""Answers to the exercises: a solution of each, and what is typically wrong."""

import torch
from torch import Tensor


def col(a: Tensor) -> Tensor:
    return a[:, None, None, None]


def loss(model, x_0, eps, t, alphas_bar, see="x_t", target="eps", power=2):
    a = col(alphas_bar[t])
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    error = model(x_t if see == "x_t" else x_0, t) - (eps if target == "eps" else x_0)
    return (error**power if power == 2 else error).mean()


def guess(eps, span, x_t):
    return (x_t - (1 - span.alpha_bar) ** 0.5 * eps) / span.alpha_bar**0.5


def ddim(eps, span, x_t):
    x_0 = guess(eps, span, x_t)
    return span.alpha_bar_prev**0.5 * x_0 + (1 - span.alpha_bar_prev) ** 0.5 * eps, x_0


def noisy(eps, span, x_t, eta, z, mistake=""):
    a, b = span.alpha_bar, span.alpha_bar_prev
    ratio = 1 if mistake == "ratio" else (1 - b) / (1 - a)
    std = eta * (ratio * (1 - a / b)) ** 0.5
    left = {"on top": 1 - b, "not squared": 1 - b - std}.get(mistake, 1 - b - std**2)
    rest = (1 - b) ** 0.5 - std if mistake == "deviations add" else left**0.5
    fresh = {"none": 0, "variance": std**2}.get(mistake, std)
    return b**0.5 * guess(eps, span, x_t) + rest * eps + fresh * z


def heun(x, sigma, after, slope, mistake=""):
    h, first = after - sigma, slope(x, sigma)
    euler = x + h * first
    second = slope(x if mistake == "old x" else euler, sigma if mistake == "old sigma" else after)
    start = euler if mistake == "from the end" else x
    return start + h * (first + second) / (1 if mistake == "no half" else 2)


def loop(pipe, x_T, cond, uncond, n, w, mistake=""):
    x_t, plan = x_T, pipe.scheduler.plan(n)
    for span in reversed(plan) if mistake == "order" else plan:
        u, c = pipe.unet(x_t, span.t, uncond), pipe.unet(x_t, span.t, cond)
        if mistake == "swap":
            u, c = c, u
        eps = c if mistake == "free" else u + w * (c - u)
        x_t, x_0 = pipe.scheduler.step(eps, span, x_t)
    return x_0 if mistake == "x_0" else x_t


def picture(pipe, latents):
    x = pipe.vae.decode(latents / pipe.vae.config.scaling_factor)
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch(pipe, prompts, seeds, **settings):
    own = [seeded(seed) for seed in seeds]
    return pipe(prompts, generator=own, output_type="latent", **settings).images


FAULTS = dict(zip("ABCDEFG", ("shift", "once", "text", "colours", "short", "scale", "literal")))


def nats(mean, logvar):
    return (mean**2 + logvar.exp() - 1 - logvar) / 2


SOLUTIONS = {
    "02.2": lambda x, e, a: col(a).sqrt() * x + (1 - col(a)).sqrt() * e,
    "02.3": lambda betas: torch.cumprod(1 - betas, 0),
    "03.2": loss,
    "03.3": lambda x, e, a: (x - (1 - a) ** 0.5 * e) / a**0.5,
    "04.1": ddim,
    "04.2": noisy,
    "04.3": heun,
    "05.2": lambda m, v, n: m + torch.exp(v / 2) * n,
    "05.3": lambda z: 1 / z.std(),
    "05.4": lambda m, v: nats(m, v).sum((1, 2, 3)),
    "11.1": loop,
    "11.2": picture,
    "11.3": batch,
}
PREDICTED = {"02.1": 353, "02.4": 0.068, "03.1": 1, "04.4": 4, "05.1": 48, "11.4": FAULTS}
WORDS = "it would be different every time and so nobody could ever compute it back again"
OPEN = {
    "02.5": WORDS,
    "03.4": [1.0 / (1 + i / 20) for i in range(200)],
    "03.5": WORDS,
    "04.5": {"DDPM": 17, "DDIM": 16, "Euler": 16, "Heun": 17, "DPM++ 2M": 14},
    "05.5": WORDS,
    "11.5": WORDS,
}
WRONG = {
    "02.1": {"half": 500, "root": 521, "linear": 259, "far": 10},
    "02.2": {
        "no roots": lambda x, e, a: col(a) * x + (1 - col(a)) * e,
        "one root": lambda x, e, a: col(a).sqrt() * x + (1 - col(a)) * e,
        "sign": lambda x, e, a: col(a).sqrt() * x - (1 - col(a)).sqrt() * e,
        "axis": lambda x, e, a: a.sqrt() * x + (1 - a).sqrt() * e,
        "swapped": lambda x, e, a: (1 - col(a)).sqrt() * x + col(a).sqrt() * e,
        "no scale": lambda x, e, a: col(a).sqrt() * x + e,
    },
    "02.3": {
        "betas": lambda b: b.cumprod(0),
        "sum": lambda b: (1 - b).cumsum(0),
        "linear": lambda b: 1 - b.cumsum(0),
        "root": lambda b: (1 - b).cumprod(0).sqrt(),
        "alphas": lambda b: 1 - b,
        "late": lambda b: torch.cat([torch.ones(1), (1 - b).cumprod(0)[:-1]]),
    },
    "02.4": {"no root": 0.00466, "nothing": 0.0, "noise": 0.9977},
    "03.1": {"perfect": 0, "guess": 2, "half": 0.5},
    "03.2": {
        "clean input": lambda *a: loss(*a, see="x_0"),
        "target": lambda *a: loss(*a, target="x_0"),
        "no square": lambda *a: loss(*a, power=1),
        "root": lambda *a: loss(*a).sqrt(),
        "sum": lambda *a: loss(*a) * a[1].numel(),
        "sign": lambda *a: -loss(*a),
    },
    "03.3": {
        "literal": lambda x, e, a: x - e,
        "no division": lambda x, e, a: x - (1 - a) ** 0.5 * e,
        "no root": lambda x, e, a: (x - (1 - a) * e) / a**0.5,
        "no roots": lambda x, e, a: (x - (1 - a) * e) / a,
        "sign": lambda x, e, a: (x + (1 - a) ** 0.5 * e) / a**0.5,
    },
    "03.4": {
        "flat": [1.0] * 100,
        "growing": [float(i + 1) for i in range(100)],
        "nan": [1.0] * 99 + [float("nan")],
        "short": [1.0, 0.1],
        "slow": [1 - i / 200 for i in range(100)],
    },
    "04.1": {
        "literal": lambda e, s, x: (x - e, guess(e, s, x)),
        "stays": lambda e, s, x: (x, guess(e, s, x)),
        "turned": lambda *a: ddim(*a)[::-1],
        "no noise": lambda e, s, x: (s.alpha_bar_prev**0.5 * guess(e, s, x), guess(e, s, x)),
        "one thing": lambda *a: ddim(*a)[0],
        "x_t": lambda e, s, x: (ddim(e, s, x)[0], x),
        "twice": lambda *a: (ddim(*a)[0], ddim(*a)[0]),
        "faint": lambda e, s, x: (ddim(e, s, x)[0], guess(e, s, x) * s.alpha_bar**0.5),
    },
    "04.2": {
        "none": lambda *a: noisy(*a, mistake="none"),
        "on top": lambda *a: noisy(*a, mistake="on top"),
        "not squared": lambda *a: noisy(*a, mistake="not squared"),
        "deviations add": lambda *a: noisy(*a, mistake="deviations add"),
        "variance": lambda *a: noisy(*a, mistake="variance"),
        "ratio": lambda *a: noisy(*a, mistake="ratio"),
        "always 1": lambda e, s, x, eta, z: noisy(e, s, x, 1.0, z),
        "root of eta": lambda e, s, x, eta, z: noisy(e, s, x, eta**0.5, z),
        "always 0.7": lambda e, s, x, eta, z: noisy(e, s, x, 0.7, z),
    },
    "04.3": {
        "euler": lambda x, s, t, f: x + (t - s) * f(x, s),
        "no half": lambda *a: heun(*a, mistake="no half"),
        "old sigma": lambda *a: heun(*a, mistake="old sigma"),
        "old x": lambda *a: heun(*a, mistake="old x"),
        "from the end": lambda *a: heun(*a, mistake="from the end"),
        "second alone": lambda x, s, t, f: x + (t - s) * f(x + (t - s) * f(x, s), t),
        "sign": lambda x, *a: 2 * x - heun(x, *a),
    },
    "04.4": {"first order": 2, "falls": 0.25, "one step": 8, "fourth": 16},
    "04.5": {
        "a list": [17, 16, 16, 17, 14],
        "unknown": {"PNDM": 12},
        "missing": {"DDIM": 16},
        "half": {"DDPM": 17, "DDIM": 16.5, "Euler": 16, "Heun": 17, "DPM++ 2M": 14},
        "steps": {"DDPM": 17, "DDIM": 16, "Euler": 16, "Heun": 10, "DPM++ 2M": 14},
    },
    "05.1": {"places": 64, "side": 8, "inverse": 1 / 48, "three": 192},
    "05.2": {
        "variance": lambda m, v, n: m + v.exp() * n,
        "no exp": lambda m, v, n: m + v * n,
        "no scale": lambda m, v, n: m + n,
        "no mean": lambda m, v, n: (v / 2).exp() * n,
        "root of a negative": lambda m, v, n: m + v.sqrt() * n,
        "exponent's sign": lambda m, v, n: m + (-v / 2).exp() * n,
    },
    "05.3": {
        "std": lambda z: z.std(),
        "variance": lambda z: 1 / z.var(),
        "channel": lambda z: 1 / z.std(dim=(0, 2, 3)),
        "picture": lambda z: 1 / z.std(dim=(1, 2, 3)),
        "largest": lambda z: 1 / z.abs().max(),
    },
    "05.4": {
        "half": lambda m, v: 2 * nats(m, v).sum((1, 2, 3)),
        "sign": lambda m, v: -nats(m, v).sum((1, 2, 3)),
        "batch": lambda m, v: nats(m, v).sum(),
        "mean": lambda m, v: nats(m, v).mean((1, 2, 3)),
        "one": lambda m, v: (nats(m, v) + 0.5).sum((1, 2, 3)),
    },
    "11.1": {
        "no guidance": lambda *a: loop(*a, mistake="free"),
        "swapped": lambda *a: loop(*a, mistake="swap"),
        "order": lambda *a: loop(*a, mistake="order"),
        "x_0": lambda *a: loop(*a, mistake="x_0"),
        "nothing done": lambda pipe, x_T, *a: x_T,
    },
    "11.2": {
        "no scale": lambda p, z: picture(p, z * p.vae.config.scaling_factor),
        "times": lambda p, z: picture(p, z * p.vae.config.scaling_factor**2),
        "no shift": lambda p, z: p.decode_latents(z).permute(0, 2, 3, 1),
        "no clamp": lambda p, z: (p.decode_latents(z) / 2 + 0.5).permute(0, 2, 3, 1),
        "channels": lambda p, z: picture(p, z).permute(0, 3, 1, 2),
        "turned": lambda p, z: picture(p, z).transpose(1, 2),
    },
    "11.3": {
        "one for all": lambda pipe, prompts, seeds: (
            pipe(prompts, generator=seeded(seeds[0]), output_type="latent").images
        ),
        "same noise": lambda pipe, prompts, seeds: batch(pipe, prompts, seeds[:1] * len(seeds)),
        "first prompt": lambda pipe, prompts, seeds: batch(pipe, prompts[:1] * 3, seeds),
        "sorted": lambda pipe, prompts, seeds: batch(pipe, prompts, sorted(seeds)),
        "backwards": lambda *a: batch(*a).flip(0),
        "counted": lambda pipe, prompts, seeds: batch(pipe, prompts, range(len(seeds))),
        "no guidance": lambda *a: batch(*a, guidance_scale=1.0),
    },
    "11.4": {
        "a list": list(FAULTS.values()),
        "a letter missing": {**FAULTS, "C": None},
        "no such name": {**FAULTS, "C": "grain"},
        "first and second": {**FAULTS, "A": "once", "B": "shift"},
        "pale and dark": {**FAULTS, "F": "shift", "A": "scale"},
        "grain and patches": {**FAULTS, "E": "literal", "G": "short"},
    },
}
