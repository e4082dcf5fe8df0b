"""Answers to the exercises: a solution of each, and what is typically wrong."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn


def col(a: Tensor) -> Tensor:
    return a[:, None, None, None]


def loss(model, x_0, eps, t, alphas_bar, see="x_t", target="eps", power=2, mix=None):
    a = col(alphas_bar[t])
    signal, noise = mix(a) if mix else (a.sqrt(), (1 - a).sqrt())
    x_t = signal * x_0 + noise * eps
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
    w = w + 1 if mistake == "over" else w
    for span in reversed(plan) if mistake == "order" else plan:
        u, c = pipe.unet(x_t, span.t, uncond), pipe.unet(x_t, span.t, cond)
        if mistake == "swap":
            u, c = c, u
        eps = c if mistake == "free" else u + w * (c - u)
        x_prev, x_0 = pipe.scheduler.step(eps, span, x_t)
        x_t = {"fed": x_0, "stays": x_T}.get(mistake, x_prev)
    return {"x_0": x_0, "stays": x_prev}.get(mistake, x_t)


def picture(pipe, latents):
    x = pipe.vae.decode(latents / pipe.vae.config.scaling_factor)
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def batch(pipe, prompts, seeds, **settings):
    own = [seeded(seed) for seed in seeds]
    return pipe(prompts, generator=own, output_type="latent", **settings).images


FAULTS = dict(zip("ABCDEFG", ("shift", "once", "text", "colours", "short", "scale", "literal")))


def waves(t, width, first="cos", steps=0, sign=-1.0, share=2):
    i = torch.arange(width // 2)
    angles = t[:, None] * 10_000.0 ** (sign * i / (width // share + steps))
    pair = [angles.cos(), angles.sin()]
    return torch.cat(pair if first == "cos" else pair[::-1], -1)


def group_norm(x, groups, eps, power=0.5, unbiased=False, shift=1.0):
    g = x.reshape(len(x), groups, -1)
    mean, var = g.mean(-1, keepdim=True), g.var(-1, keepdim=True, unbiased=unbiased)
    return ((g - shift * mean) / (var + eps) ** power).reshape(x.shape)


CONCATENATED = [2560] * 5 + [1920, 1920, 1280, 960, 960, 640, 640]  # SD 1.x's way up
SD_UNET = 859_520_964


def nats(mean, logvar):
    return (mean**2 + logvar.exp() - 1 - logvar) / 2


def best_pair(counts, each=list, pick=max):
    found = Counter()
    for word, times in counts.items():
        for pair in each(pairwise(word)):
            found[pair] += times
    return pick(found, key=found.get)


def parameters(c):
    layer = 4 * c.width * (c.width + 1) + c.mlp_width * (2 * c.width + 1) + 5 * c.width
    around = (c.vocab_size + c.context_length + 2) * c.width
    return around + c.layers * layer


def clip_loss(v, t, tau, ways=(1, 0), reduce=torch.mean):
    s = v @ t.T / tau
    return sum(-reduce(s.log_softmax(d).diagonal()) for d in ways) / len(ways)


def finds(v, t, d=1):
    return ((v @ t.T).argmax(d) == torch.arange(len(v))).float()


def keep(x_prev, x_0, noise, cells, span, last, level="alpha_bar_prev", always=False):
    a = getattr(span, level)
    known = a**0.5 * x_0 + (1 - a) ** 0.5 * noise
    known = x_0 if last and not always else known
    return (1 - cells) * known + cells * x_prev


def kept_error(before, after, mask, power=1):
    kept = (1 - mask).expand_as(before)
    return (((after - before).abs() ** power) * kept).sum() / kept.sum()


def adapted(mistake=""):
    """The class of exercise 13.1, with a mistake in it."""

    class Adapted(nn.Module):
        def __init__(self, layer, rank, alpha):
            super().__init__()
            draw, d_out, d_in = seeded(1), *layer.weight.shape
            a = torch.randn(rank, d_in, generator=draw) * (mistake != "both zero")
            b = torch.zeros(d_out, rank) + (mistake == "random B")
            self.layer, self.A, self.B = layer, nn.Parameter(a), nn.Parameter(b)
            if mistake == "shapes":
                self.A, self.B = nn.Parameter(b), nn.Parameter(a)
            factors = {"no alpha": 1 / rank, "no rank": alpha, "no factor": 1}
            self.factor = factors.get(mistake, alpha / rank)

        def forward(self, x):
            a, b = (self.B, self.A) if mistake in ("order", "shapes") else (self.A, self.B)
            if mistake == "order" and a.shape[1] != x.shape[1]:
                return self.layer(x)
            part = self.factor * (x @ a.T) @ b.T
            return part if mistake == "alone" else self.layer(x) + part

    return Adapted


def merged(weight, a, b, alpha, scale):
    return weight + scale * alpha / len(a) * b @ a


def one_row(table, gradient, rows, rate):
    moved = table.clone()
    moved[rows] -= rate * gradient[rows]
    return moved


def shapes(height, width, d, latents=4, colours=3, cells=8):
    return [(77, d), (latents, height // cells, width // cells), (colours, height, width)]


def count(module, run, mistake=""):
    seen = [] if mistake != "global" else COUNTED

    def note(module, given, made):
        seen.append(len(made) if mistake == "rows" else 1)
        return -made if mistake == "returns" else None

    if mistake == "late":
        run()
    hook = module.register_forward_hook(note)
    if mistake not in ("late", "never"):
        run()
    if mistake == "twice":
        run()
    if mistake != "left":
        hook.remove()
    return {"list": seen, "last": 1}.get(mistake, sum(seen))


COUNTED = []


def bottleneck(parts, name=None, part_of_gain=None):
    total = {part: calls * seconds for part, (calls, seconds) in parts.items()}
    name = name(parts, total) if name else max(total, key=total.get)
    whole, part = sum(total.values()), total[name]
    return name, part_of_gain(whole, part) if part_of_gain else whole / (whole - part / 2)


def official(name, start=1, each=3, op=".0.op", places="01"):
    _, i, kind, *j = name.split(".")
    if kind == "downsample":
        return f"input_blocks.{int(i) * each + 2 + start}{op}"
    return f"input_blocks.{int(i) * each + int(j[0]) + start}.{places[kind == 'attentions']}"


def masked(q, k, v, keep, scale=0.5, fill=float("-inf"), axis=-1, late=False, soft=True):
    """Attention with hidden tokens; the scale is the exponent of the width of a head."""
    scores = q @ k.mT / q.shape[-1] ** scale
    scores = scores if late else scores.masked_fill(~keep, fill)
    p = scores.softmax(axis) if soft else scores
    return (p * keep if late else p) @ v


def wins(scores, mask, tie=0.5):
    difference = scores[mask][:, None] - scores[~mask]
    return ((difference > 0) + tie * (difference == 0)).float().mean()


TEXT_BLOCKS = (
    "down.1.attentions.0", "down.2.attentions.0", "mid.attention", "up.0.attentions.0",
    "up.0.attentions.1", "up.1.attentions.0", "up.1.attentions.1",
)  # fmt: skip
MOVED = dict(zip(TEXT_BLOCKS, (0.12, 0.04, 0.02, 0.05, 0.08, 0.07, 0.4)))
LOOKS = 8 * 4096 * 77, 8 * 4096 * 4096  # SD's finest level: at the text, at each other


def guided(u, c, w, mistake=""):
    d = c - u
    return {
        "paper": u + (w + 1) * d,
        "swapped": c - w * d,
        "no start": w * d,
        "sign": u - w * d,
        "no w": c,
        "sum": u + w * c,
        "longer": w * c,
        "mean": (u + w * c) / (1 + w),
        "once": w * c - u,
        "fixed": u + 4 * d,
    }.get(mistake, u + w * d)


def both(unet, x_t, t, cond, uncond, mistake=""):
    texts = [cond, uncond] if mistake == "swapped" else [uncond, cond]
    x_t = x_t.repeat_interleave(2, 0) if mistake == "interleaved" else torch.cat([x_t, x_t])
    out = unet(x_t, t, torch.cat(texts))
    u, c = out.chunk(2)
    return {"whole": out, "with": (c, c), "without": (u, u)}.get(mistake, (u, c))


def smallest(scales, right, wanted, mistake=""):
    shares = right.float().mean(dim=1).tolist()
    reached = [w for w, share in zip(scales, shares) if share >= wanted]
    above = [w for w, share in zip(scales, shares) if share > wanted]
    return {
        "first": reached[0],
        "best": scales[right.float().mean(dim=1).argmax()],
        "more": min(above),
        "row": scales.index(min(reached)),
        "share": min(share for share in shares if share >= wanted),
        "all": min(scales),
        "largest": max(scales),
        "count": right.sum(dim=1)[scales.index(min(reached))],
    }.get(mistake, min(reached))


SOLUTIONS = {
    "01.2": shapes,
    "01.3": count,
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
    "06.1": best_pair,
    "06.2": parameters,
    "07.2": clip_loss,
    "07.3": lambda v, t: finds(v, t).mean(),
    "07.4": lambda v, t, scale: (1 - (v * t).sum(1)).mean(),
    "08.2": waves,
    "08.3": group_norm,
    "09.2": masked,
    "09.3": wins,
    "10.1": guided,
    "10.2": both,
    "10.4": smallest,
    "11.1": loop,
    "11.2": picture,
    "11.3": batch,
    "12.2": lambda n, strength: n - int(n * strength),
    "12.3": keep,
    "12.4": kept_error,
    "13.1": adapted(),
    "13.2": merged,
    "13.4": one_row,
    "14.2": bottleneck,
    "14.3": official,
}
PREDICTED = {
    "01.1": (20, 40),
    "02.1": 353, "02.4": 0.068, "03.1": 1, "04.4": 4, "05.1": 48, "06.3": 1, "06.4": 231,
    "07.1": 1.609,
    "08.1": CONCATENATED, "08.5": (22, 12, SD_UNET), "09.1": LOOKS, "11.4": FAULTS, "13.3": 6,
    "10.3": 40,
    "12.1": "autoencoder", "14.1": 1.72,
}  # fmt: skip
WORDS = "it would be different every time and so nobody could ever compute it back again"
OPEN = {
    "01.4": WORDS,
    "02.5": WORDS,
    "03.4": [1.0 / (1 + i / 20) for i in range(200)],
    "03.5": WORDS,
    "04.5": {"DDPM": 17, "DDIM": 16, "Euler": 16, "Heun": 17, "DPM++ 2M": 14},
    "05.5": WORDS,
    "06.5": WORDS,
    "07.5": WORDS,
    "08.4": WORDS,
    "09.4": MOVED,
    "09.5": WORDS,
    "10.5": WORDS,
    "11.5": WORDS,
    "13.5": WORDS,
    "12.5": WORDS,
    "14.4": WORDS,
}
WRONG = {
    "01.1": {
        "one number": 40,
        "twice": (40, 40),
        "unguided": (20, 20),
        "swapped": (40, 20),
        "no loop": (1, 2),
        "one call's": (20, 2),
        "doubled twice": (20, 80),
        "one more": (21, 42),
        "others too": (22, 42),
    },
    "01.2": {
        "swapped": lambda h, w, d: shapes(w, h, d),
        "one swapped": lambda h, w, d: [*shapes(h, w, d)[:2], (3, w, h)],
        "channels last": lambda h, w, d: [(77, d), (h // 8, w // 8, 4), (h, w, 3)],
        "turned text": lambda h, w, d: [(d, 77), *shapes(h, w, d)[1:]],
        "one vector": lambda h, w, d: [(d,), *shapes(h, w, d)[1:]],
        "large latents": lambda *a: shapes(*a, cells=1),
        "64 times": lambda *a: shapes(*a, cells=64),
        "colours": lambda *a: shapes(*a, latents=3),
        "four colours": lambda *a: shapes(*a, colours=4),
        "batch": lambda *a: [(1, *one) for one in shapes(*a)],
        "guided": lambda *a: [(2, *one) for one in shapes(*a)],
        "backwards": lambda *a: shapes(*a)[::-1],
        "square": lambda h, w, d: shapes(512, 512, 768),
        "by heart": lambda h, w, d: shapes(512, 768, 768),
        "width by heart": lambda h, w, d: shapes(h, w, 768),
        "a number": lambda h, w, d: 77 * d,
    },
    "01.3": {
        name: lambda *a, name=name: count(*a, mistake=name)
        for name in ("rows", "returns", "late", "never", "twice", "left", "list", "global", "last")
    },
    "02.1": {"half": 500, "root": 521, "linear": 259, "far": 10, "a ratio": 0.9993},
    "02.2": {
        "no roots": lambda x, e, a: col(a) * x + (1 - col(a)) * e,
        "one root": lambda x, e, a: col(a).sqrt() * x + (1 - col(a)) * e,
        "sign": lambda x, e, a: col(a).sqrt() * x - (1 - col(a)).sqrt() * e,
        "axis": lambda x, e, a: a.sqrt() * x + (1 - a).sqrt() * e,
        "swapped": lambda x, e, a: (1 - col(a)).sqrt() * x + col(a).sqrt() * e,
        "no scale": lambda x, e, a: col(a).sqrt() * x + e,
        "adds to 1": lambda x, e, a: col(a).sqrt() * x + (1 - col(a).sqrt()) * e,
        "own noise": lambda x, e, a: col(a).sqrt() * x + (1 - col(a)).sqrt() * torch.randn_like(e),
    },
    "02.3": {
        "betas": lambda b: b.cumprod(0),
        "sum": lambda b: (1 - b).cumsum(0),
        "linear": lambda b: 1 - b.cumsum(0),
        "root": lambda b: (1 - b).cumprod(0).sqrt(),
        "alphas": lambda b: 1 - b,
        "late": lambda b: torch.cat([torch.ones(1), (1 - b).cumprod(0)[:-1]]),
    },
    "02.4": {"no root": 0.00466, "nothing": 0.0, "noise": 0.9977, "step": 0.994, "rounded": 0.07},
    "03.1": {"perfect": 0, "guess": 2, "half": 0.5},
    "03.2": {
        "clean input": lambda *a: loss(*a, see="x_0"),
        "target": lambda *a: loss(*a, target="x_0"),
        "no square": lambda *a: loss(*a, power=1),
        "root": lambda *a: loss(*a).sqrt(),
        "sum": lambda *a: loss(*a) * a[1].numel(),
        "sign": lambda *a: -loss(*a),
        "swapped": lambda *a: loss(*a, mix=lambda a: ((1 - a).sqrt(), a.sqrt())),
        "no roots": lambda *a: loss(*a, mix=lambda a: (a, 1 - a)),
        "one root": lambda *a: loss(*a, mix=lambda a: (a.sqrt(), 1 - a)),
        "adds to 1": lambda *a: loss(*a, mix=lambda a: (a.sqrt(), 1 - a.sqrt())),
        "axis": lambda *a: loss(*a, mix=lambda a: (a.flatten().sqrt(), (1 - a.flatten()).sqrt())),
        "own noise": lambda m, x, e, *a: loss(m, x, torch.randn_like(e), *a),
        "alpha_bar for t": lambda m, x, e, t, a: loss(lambda z, _: m(z, a[t]), x, e, t, a),
        "small target": lambda m, x, e, t, a: (
            (m(col(a[t]).sqrt() * x + (1 - col(a[t])).sqrt() * e, t) - (1 - col(a[t])).sqrt() * e)
            .square()
            .mean()
        ),
        "no gradient": lambda *a: loss(*a).item(),
    },
    "03.3": {
        "literal": lambda x, e, a: x - e,
        "no division": lambda x, e, a: x - (1 - a) ** 0.5 * e,
        "no root": lambda x, e, a: (x - (1 - a) * e) / a**0.5,
        "no roots": lambda x, e, a: (x - (1 - a) * e) / a,
        "sign": lambda x, e, a: (x + (1 - a) ** 0.5 * e) / a**0.5,
        "brackets": lambda x, e, a: x - (1 - a) ** 0.5 * e / a**0.5,
        "clamped": lambda x, e, a: ((x - (1 - a) ** 0.5 * e) / a**0.5).clamp(-1, 1),
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
        "own noise": lambda m, v, n: m + (v / 2).exp() * torch.randn_like(n),
    },
    "05.3": {
        "std": lambda z: z.std(),
        "variance": lambda z: 1 / z.var(),
        "channel": lambda z: 1 / z.std(dim=(0, 2, 3)),
        "picture": lambda z: 1 / z.std(dim=(1, 2, 3)),
        "largest": lambda z: 1 / z.abs().max(),
        "first picture": lambda z: 1 / z[0].std(),
        "mean of the pictures'": lambda z: (1 / z.std(dim=(1, 2, 3))).mean(),
        "mean of the channels'": lambda z: (1 / z.std(dim=(0, 2, 3))).mean(),
        "mean square": lambda z: 1 / z.square().mean().sqrt(),
        "by heart": lambda z: 0.18215,
    },
    "05.4": {
        "half": lambda m, v: 2 * nats(m, v).sum((1, 2, 3)),
        "sign": lambda m, v: -nats(m, v).sum((1, 2, 3)),
        "batch": lambda m, v: nats(m, v).sum(),
        "mean": lambda m, v: nats(m, v).mean((1, 2, 3)),
        "one": lambda m, v: (nats(m, v) + 0.5).sum((1, 2, 3)),
        "squared": lambda m, v: ((m**2 + v.exp() ** 2 - 1 - v) / 2).sum((1, 2, 3)),
    },
    "06.1": {
        "words alike": lambda counts: best_pair(dict.fromkeys(counts, 1)),
        "once a word": lambda counts: best_pair(counts, each=set),
        "no order": lambda counts: best_pair(counts, each=lambda p: map(tuple, map(sorted, p))),
        "rarest": lambda counts: best_pair(counts, pick=min),
        "turned": lambda counts: best_pair(counts)[::-1],
        "letters": lambda counts: ("a", "a</w>"),
        "joined": lambda counts: "".join(best_pair(counts)),
        "with count": lambda counts: (best_pair(counts), 16),
    },
    "06.2": {
        "biases": lambda c: parameters(c) - c.layers * (5 * c.width + c.mlp_width),
        "final norm": lambda c: parameters(c) - 2 * c.width,
        "positions": lambda c: parameters(c) - c.context_length * c.width,
        "one norm": lambda c: parameters(c) - c.layers * 2 * c.width,
        "no out": lambda c: parameters(c) - c.layers * (c.width + 1) * c.width,
        "one layer": lambda c: parameters(replace(c, layers=1)),
        "heads": lambda c: parameters(c) + c.layers * 3 * (c.heads - 1) * c.width**2,
        "by heart": lambda c: 123_060_480,
    },
    "06.3": {"bag": 77, "none": 0, "after": 73, "padding": 72, "end": 2},
    "06.4": {"cut": 77, "bare": 160, "one frame": 162, "two": 154, "no frames": 225},
    "07.1": {
        "nothing": 4.094,
        "colours": 2.485,
        "probability": 0.2,
        "both": 3.219,
        "log2": 2.32,
        "log10": 0.699,
        "perfect": 0,
        "five": 5,
    },
    "07.2": {
        "pictures alone": lambda *a: clip_loss(*a, ways=(1,)),
        "texts alone": lambda *a: clip_loss(*a, ways=(0,)),
        "two added": lambda *a: 2 * clip_loss(*a),
        "batch added": lambda *a: clip_loss(*a, reduce=torch.sum),
        "times": lambda v, t, tau: clip_loss(v, t, 1 / tau),
        "no temperature": lambda v, t, tau: clip_loss(v, t, 1),
        "no logarithm": lambda v, t, tau: (
            -(v @ t.T / tau).softmax(1).diagonal().add((v @ t.T / tau).softmax(0).diagonal()).mean()
            / 2
        ),
        "matrix": lambda v, t, tau: -(v @ t.T / tau).flatten().log_softmax(0)[:: len(v) + 1].mean(),
        "labels": lambda v, t, tau: nn.functional.binary_cross_entropy_with_logits(
            v @ t.T / tau, torch.eye(len(v))
        ),
        "no negatives": lambda v, t, tau: -(v * t).sum(1).mean() / tau,
        "all pairs": lambda v, t, tau: (
            -((v @ t.T / tau).log_softmax(1) + (v @ t.T / tau).log_softmax(0)).mean() / 2
        ),
        "sign": lambda *a: -clip_loss(*a),
        "no gradient": lambda *a: clip_loss(*a).detach(),
        "a number": lambda *a: clip_loss(*a).item(),
    },
    "07.3": {
        "texts": lambda v, t: finds(v, t, 0).mean(),
        "both": lambda v, t: (finds(v, t).mean() + finds(v, t, 0).mean()) / 2,
        "count": lambda v, t: finds(v, t).sum(),
        "cosine": lambda v, t: (v * t).sum(1).mean(),
        "limit": lambda v, t: ((v * t).sum(1) > 0.5).float().mean(),
        "pictures": lambda v, t: finds(v, v).mean(),
        "errors": lambda v, t: 1 - finds(v, t).mean(),
        "each": finds,
        "places": lambda v, t: (v @ t.T).argmax(1),
    },
    "07.4": {
        "all pairs": lambda v, t, s: 1 - (v @ t.T).mean(),
        "rises": lambda v, t, s: (v * t).sum(1).mean(),
        "constant": lambda v, t, s: -(v * t).sum(1).mean(),
        "sum": lambda v, t, s: (1 - (v * t).sum(1)).sum(),
        "each": lambda v, t, s: 1 - (v * t).sum(1),
        "distance": lambda v, t, s: (v - t).square().sum(1).mean(),
        "scaled": lambda v, t, s: -(s.exp() * (v * t).sum(1)).mean(),
        "whole": lambda v, t, s: clip_loss(v, t, 1 / s.exp()),
        "features": lambda v, t, s: 1 - (v * t).mean(),
    },
    "08.1": {
        "a number": 2560,
        "before": [1280] * 7 + [640, 640, 640, 320, 320],
        "skips": [1280] * 5 + [640, 640, 640, 320, 320, 320, 320],
        "returned": [1280] * 6 + [640] * 3 + [320] * 3,
        "backwards": CONCATENATED[::-1],
        "own level": [2560] * 6 + [1920, 1280, 1280, 960, 640, 640],
        "one": [2560] * 6 + CONCATENATED[6:],
    },
    "08.2": {
        "sines first": lambda t, n: waves(t, n, first="sin"),
        "half - 1": lambda t, n: waves(t, n, steps=-1),
        "the width": lambda t, n: waves(t, n, share=1),
        "growing": lambda t, n: waves(t, n, sign=1.0),
        "in turns": lambda t, n: waves(t, n).reshape(len(t), 2, -1).mT.reshape(len(t), -1),
        "cosines": lambda t, n: waves(t, n)[:, : n // 2].repeat(1, 2),
    },
    "08.3": {
        "no root": lambda *a: group_norm(*a, power=1),
        "no mean": lambda *a: group_norm(*a, shift=0.0),
        "no eps": lambda x, g, eps: group_norm(x, g, 0.0),
        "n - 1": lambda *a: group_norm(*a, unbiased=True),
        "channels": lambda x, g, eps: group_norm(x, x.shape[1], eps),
        "layer": lambda x, g, eps: group_norm(x, 1, eps),
        "size": lambda x, g, eps: group_norm(x, x.shape[1] // g, eps),
        "batch": lambda x, g, eps: (
            group_norm(x.transpose(0, 1).reshape(1, -1, *x.shape[2:]), g, eps)
            .reshape(x.shape[1], len(x), *x.shape[2:])
            .transpose(0, 1)
        ),
    },
    "08.5": {
        "one number": SD_UNET,
        "no middle": (20, 12, SD_UNET),
        "way up": (12, 12, SD_UNET),
        "resnets only": (22, 8, SD_UNET),
        "no conv_in": (22, 11, SD_UNET),
        "bytes": (22, 12, 4 * SD_UNET),
        "tensors": (22, 12, 686),
        "pipeline": (22, 12, 1_066_235_307),
    },
    "09.1": {
        "one number": LOOKS[0],
        "turned": LOOKS[::-1],
        "one head": (LOOKS[0] // 8, LOOKS[1]),
        "own of one head": (LOOKS[0], LOOKS[1] // 8),
        "tokens": (8 * 77 * 77, LOOKS[1]),
        "pixels": (8 * 512 * 512 * 77, LOOKS[1]),
        "a side": (8 * 64 * 77, LOOKS[1]),
        "width": (8 * 4096 * 768, LOOKS[1]),
        "twice": (LOOKS[0], LOOKS[0]),
        "cells": (LOOKS[0], 8 * 64 * 64),
    },
    "09.2": {
        "all seen": lambda q, k, v, keep: masked(q, k, v, torch.ones_like(keep)),
        "turned": lambda q, k, v, keep: masked(q, k, v, ~keep),
        "zero": lambda *a: masked(*a, fill=0.0),
        "late": lambda *a: masked(*a, late=True),
        "no scale": lambda *a: masked(*a, scale=0),
        "d": lambda *a: masked(*a, scale=1),
        "all heads": lambda q, k, v, keep: masked(q * q.shape[1] ** -0.5, k, v, keep),
        "cells": lambda *a: masked(*a, axis=-2),
        "cells, late": lambda *a: masked(*a, axis=-2, late=True),
        "no softmax": lambda *a: masked(*a, late=True, soft=False),
        "probabilities": lambda q, k, v, keep: masked(q, k, torch.eye(k.shape[-2]), keep),
        "keys": lambda q, k, v, keep: masked(q, k, k, keep),
    },
    "09.3": {
        "no ties": lambda *a: wins(*a, tie=0),
        "full ties": lambda *a: wins(*a, tie=1),
        "turned": lambda scores, mask: wins(scores, ~mask),
        "number": lambda s, m: wins(s, m) * m.sum() * (~m).sum(),
        "means": lambda s, m: s[m].mean() - s[~m].mean(),
        "share": lambda s, m: s[m].sum() / s.sum(),
        "threshold": lambda s, m: ((s > s.mean()) == m).float().mean(),
        "above the mean": lambda s, m: (s[m] > s[~m].mean()).float().mean(),
    },
    "09.4": {
        "a list": list(MOVED.values()),
        "unknown": {**MOVED, "up.2.attentions.0": 0.1},
        "missing": {"mid.attention": 0.1},
        "negative": {**MOVED, "mid.attention": -0.1},
        "nothing": dict.fromkeys(MOVED, 0.0),
        "all alike": dict.fromkeys(MOVED, 0.4),
        "pictures": {**MOVED, "mid.attention": torch.zeros(2)},
    },
    "10.1": {
        name: lambda u, c, w, name=name: guided(u, c, w, name)
        for name in (
            "paper",
            "swapped",
            "no start",
            "sign",
            "no w",
            "sum",
            "longer",
            "mean",
            "once",
            "fixed",
        )
    },
    "10.2": {
        "two calls": lambda unet, x, t, c, u: (unet(x, t, u), unet(x, t, c)),
        "one text": lambda unet, x, t, c, u: unet(torch.cat([x, x]), t, c).chunk(2),
        **{
            name: lambda *a, name=name: both(*a, mistake=name)
            for name in ("swapped", "interleaved", "whole", "with", "without")
        },
    },
    "10.3": {"everywhere": 60, "calls": 30, "guided": 20, "turned": 50, "ten": 10, "far": 900},
    "10.4": {
        "first": lambda *a: smallest(*a, mistake="first"),
        **{
            name: lambda *a, name=name: smallest(*a, mistake=name)
            for name in ("best", "more", "row", "share", "all", "largest", "count")
        },
    },
    "11.1": {
        "no guidance": lambda *a: loop(*a, mistake="free"),
        "swapped": lambda *a: loop(*a, mistake="swap"),
        "order": lambda *a: loop(*a, mistake="order"),
        "x_0": lambda *a: loop(*a, mistake="x_0"),
        "nothing done": lambda pipe, x_T, *a: x_T,
        "over": lambda *a: loop(*a, mistake="over"),
        "fed": lambda *a: loop(*a, mistake="fed"),
        "stays": lambda *a: loop(*a, mistake="stays"),
    },
    "11.2": {
        "no scale": lambda p, z: picture(p, z * p.vae.config.scaling_factor),
        "times": lambda p, z: picture(p, z * p.vae.config.scaling_factor**2),
        "no shift": lambda p, z: p.decode_latents(z).permute(0, 2, 3, 1),
        "no clamp": lambda p, z: (p.decode_latents(z) / 2 + 0.5).permute(0, 2, 3, 1),
        "channels": lambda p, z: picture(p, z).permute(0, 3, 1, 2),
        "turned": lambda p, z: picture(p, z).transpose(1, 2),
        "by heart": lambda p, z: picture(p, z * p.vae.config.scaling_factor / 0.18215),
        "cut first": lambda p, z: (p.decode_latents(z).clamp(0, 1) / 2 + 0.5).permute(0, 2, 3, 1),
        "bytes": lambda p, z: (picture(p, z) * 255).round().byte(),
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
        "opposite": lambda pipe, prompts, seeds: batch(pipe, prompts, seeds[::-1]),
        "steps": lambda *a: batch(*a, num_inference_steps=2),
        "no seed": lambda pipe, prompts, seeds: pipe(prompts, output_type="latent").images,
        "three calls": lambda pipe, *a: torch.cat([batch(pipe, [p], [s]) for p, s in zip(*a)]),
    },
    "11.4": {
        "a list": list(FAULTS.values()),
        "a letter missing": {**FAULTS, "C": None},
        "no such name": {**FAULTS, "C": "grain"},
        "first and second": {**FAULTS, "A": "once", "B": "shift"},
        "pale and dark": {**FAULTS, "F": "shift", "A": "scale"},
        "grain and patches": {**FAULTS, "E": "literal", "G": "short"},
    },
    "12.1": {
        "pixels": "original",
        "noise": "noise",
        "prompt": "prompt",
        "error": "error",
        "other": 0,
    },
    "12.2": {
        "run": lambda n, s: int(n * s),
        "rounded": lambda n, s: n - round(n * s),
        "up": lambda n, s: n - math.ceil(n * s),
        "skipped": lambda n, s: int(n * (1 - s)),
        "late": lambda n, s: n - int(n * s) + 1,
        "early": lambda n, s: n - int(n * s) - 1,
        "strength 1": lambda n, s: max(1, n - int(n * s)),
        "strength 0": lambda n, s: min(n - 1, n - int(n * s)),
        "timestep": lambda n, s: 1000 * s,
        "broken": lambda n, s: n - n * s,
    },
    "12.3": {
        "turned": lambda x, x_0, e, c, *a: keep(x, x_0, e, 1 - c, *a),
        "clean": lambda x, x_0, e, c, span, last: keep(x, x_0, e, c, span, True),
        "old level": lambda *a: keep(*a, level="alpha_bar"),
        "noisy end": lambda *a: keep(*a, always=True),
        "nothing": lambda x, *a: x,
        "hole": lambda x, *a: keep(x * 0, *a),
        "added": lambda x, x_0, e, c, *a: keep(x, x_0, e, c, *a) + (1 - c) * x,
        "noise alone": lambda x, x_0, e, c, s, last: keep(x, x_0 * last, e, c, s, last),
        "full noise": lambda x, x_0, e, c, s, last: keep(
            x, x_0, e / (1 - s.alpha_bar_prev) ** 0.5, c, s, last
        ),
    },
    "12.4": {
        "inside": lambda b, a, m: kept_error(b, a, 1 - m),
        "everywhere": lambda b, a, m: (a - b).abs().mean(),
        "all numbers": lambda b, a, m: ((a - b).abs() * (1 - m)).mean(),
        "one channel": lambda *a: 3 * kept_error(*a),
        "signed": lambda b, a, m: ((a - b) * (1 - m)).sum() / (1 - m).expand_as(b).sum(),
        "square": lambda *a: kept_error(*a, power=2),
        "sum": lambda b, a, m: ((a - b).abs() * (1 - m)).sum(),
    },
    "13.1": {
        name: adapted(name)
        for name in ("random B", "both zero", "shapes", "order", "alone", "no alpha", "no rank")
    },
    "13.2": {
        "order": lambda w, a, b, alpha, scale: (
            w + scale * alpha / len(a) * a @ b if len(a) == a.shape[1] else w
        ),
        "no alpha": lambda w, a, b, alpha, scale: merged(w, a, b, 1, scale),
        "no rank": lambda w, a, b, alpha, scale: merged(w, a, b, alpha * len(a), scale),
        "no factor": lambda w, a, b, alpha, scale: merged(w, a, b, len(a), scale),
        "no scale": lambda w, a, b, alpha, scale: merged(w, a, b, alpha, 1),
        "width": lambda w, a, b, alpha, scale: merged(w, a, b, alpha * len(a) / a.shape[1], scale),
        "all scaled": lambda w, a, b, alpha, scale: scale * merged(w, a, b, alpha, 1),
        "sign": lambda w, a, b, alpha, scale: merged(w, a, b, -alpha, scale),
        "alone": lambda w, *a: merged(0 * w, *a),
    },
    "13.3": {"new": 1, "words": 4, "one end": 5, "twice": 7, "places": 77, "far": 20},
    "13.4": {
        "all": lambda t, g, rows, rate: t - rate * g,
        "others": lambda t, g, rows, rate: 2 * t - rate * g - one_row(t, g, rows, rate),
        "sign": lambda t, g, rows, rate: one_row(t, g, rows, -rate),
        "no rate": lambda t, g, rows, rate: one_row(t, g, rows, 1),
        "first": lambda t, g, rows, rate: one_row(t, g, rows[:1], rate),
        "alone": lambda t, g, rows, rate: (t - rate * g)[rows],
        "nothing": lambda t, g, rows, rate: t,
    },
    "14.1": {
        "float32": 3.44,
        "bits": 13.75,
        "two bits": 0.215,
        "a byte": 0.86,
        "megabytes": 1719,
        "all bytes": 2 * SD_UNET,
        "double": 6.88,
        "far": 10,
    },
    "14.2": {
        "longest": lambda p: bottleneck(p, lambda p, total: max(p, key=lambda k: p[k][1])),
        "most often": lambda p: bottleneck(p, lambda p, total: max(p, key=lambda k: p[k][0])),
        "least": lambda p: bottleneck(p, lambda p, total: min(total, key=total.get)),
        "twice": lambda p: bottleneck(p, None, lambda whole, part: 2),
        "upside down": lambda p: bottleneck(p, None, lambda whole, part: 1 - part / 2 / whole),
        "share": lambda p: bottleneck(p, None, lambda whole, part: part / whole),
        "saved": lambda p: bottleneck(p, None, lambda whole, part: part / 2),
        "all of it": lambda p: bottleneck(p, None, lambda whole, part: whole / (whole - part)),
        "no calls": lambda p: (
            bottleneck(p)[0],
            1 / (1 - p[bottleneck(p)[0]][1] / 2 / sum(s for _, s in p.values())),
        ),
        "only a name": lambda p: bottleneck(p)[0],
        "turned": lambda p: bottleneck(p)[::-1],
        "no part": lambda p: ("UNet", 2.0),
    },
    "14.3": {
        "ours": lambda name: name,
        "diffusers": lambda name: name.replace("down.", "down_blocks."),
        "no conv_in": lambda name: official(name, start=0),
        "too far": lambda name: official(name, start=2),
        "no downsample": lambda name: official(name, each=2),
        "one place": lambda name: official(name, places="00"),
        "swapped": lambda name: official(name, places="10"),
        "op": lambda name: official(name, op=".op"),
        "conv": lambda name: official(name, op=".0.conv"),
        "nothing behind": lambda name: official(name, op=".0"),
        "prefix": lambda name: "model.diffusion_model." + official(name),
        "no place": lambda name: ".".join(official(name).split(".")[:2]),
        "number": lambda name: 4,
        "far": lambda name: official(name, each=7),
    },
}
