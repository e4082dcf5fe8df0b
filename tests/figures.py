"""A call of every figure of viz, with data of a seed."""

import torch
from tiny import picture_book
from torch import nn

from minisd import DDIMScheduler, viz
from minisd.tokenizer import Tokenizer

ALT = "what the figure shows"
PROMPT = "a red boat at sunset"
TOKENIZER = Tokenizer.train([PROMPT, "a blue bird over a green house by the sea"], merges=40)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(seed, count=3):
    return draw(seed, count, 3, 12, 12).clamp(-1, 1)


def a_record():
    pipe, record = picture_book(), {}
    context = 4 * draw(1, 2, 77, pipe.unet.config.context_width)
    pipe.unet(draw(0, 2, 4, 8, 8), 500, context, record=record)
    return record


def with_record(record, seed):
    """The record with other probabilities."""
    spread = {k: (3 * draw(seed, *v.shape)).softmax(-1) if "prob" in k else v
              for k, v in record.items()}  # fmt: skip
    return {**spread, "extra": torch.zeros(1, 3 + seed, 8, 8)}


KINDS = {  # name: (call with data of a seed, the data it is given)
    "show": (lambda x, **a: viz.show(x[0], **a), pictures),
    "strip": (lambda x, **a: viz.strip(x, ["a", "b", "c"], **a), pictures),
    "grid": (lambda x, **a: viz.grid(x, ["a", "b", "c"], **a), pictures),
    "table": (lambda x, **a: viz.table([x, x], ["r", "s"], list("abc"), **a), pictures),
    "sweep": (lambda x, **a: viz.sweep([x], [0, 1, 7.5], "w", **a), pictures),
    "difference": (lambda x, **a: viz.difference(x[0], x[1], **a), pictures),
    "animation": (lambda x, **a: viz.animation(x, **a), pictures),
    "forward_panels": (
        lambda x, **a: viz.forward_panels(x[0], x[1], DDIMScheduler(), [100], **a), pictures,
    ),
    "noise_rows": (
        lambda x, **a: viz.noise_rows(x[0], x[1], ["a", "b"], **a),
        lambda seed: draw(seed, 2, 2, 4, 8, 8),
    ),
    "latent_channels": (
        lambda x, **a: viz.latent_channels(x, ["a", "b"], **a), lambda seed: draw(seed, 2, 4, 8, 8),
    ),
    "text_examples": (
        lambda x, **a: viz.text_examples(
            [1, 999], x, draw(0, 2, 7, 5), ["a red boat", "a sea"], {"the noise": x}, **a
        ),
        lambda seed: draw(seed, 2, 4, 8, 8),
    ),
    "token_strip": (
        lambda x, **a: viz.token_strip(TOKENIZER, x, **a), lambda seed: PROMPT + " red" * seed,
    ),
    "heat": (lambda x, **a: viz.heat(x, signed=True, **a), lambda seed: draw(seed, 4, 6)),
    "embedding_heat": (
        lambda x, **a: viz.embedding_heat(x, list("abcd"), **a), lambda seed: draw(seed, 4, 16),
    ),
    "similarity": (
        lambda x, **a: viz.similarity(x, list("abcd"), **a), lambda seed: draw(seed, 4, 6),
    ),
    "causal_mask": (lambda x, **a: viz.causal_mask(x, **a), lambda seed: ["a"] * (seed + 2)),
    "attention_heads": (
        lambda x, **a: viz.attention_heads(x.softmax(-1), list("abcd"), **a),
        lambda seed: draw(seed, 6, 4, 4),
    ),
    "merge_tree": (
        lambda x, **a: viz.merge_tree(x, **a),
        lambda seed: [["s", "e", "a</w>"], ["se", "a</w>"], ["sea</w>"]][: 1 + seed],
    ),
    "attention_words": (
        lambda x, **a: viz.attention_words(
            pictures(0)[0], x, viz.cross_layers(x)[0], {"red": [2], "boat": [3]}, **a
        ),
        None,
    ),
    "attention_layers": (
        lambda x, **a: viz.attention_layers(pictures(0)[0], x, [2], **a), None,
    ),
    "attention_steps": (
        lambda x, **a: viz.attention_steps(
            pictures(0)[0], {"step 1": x}, viz.cross_layers(x)[0], [2], **a
        ),
        None,
    ),
    "attention_over": (
        lambda x, **a: viz.attention_over(pictures(0)[0], x, ["a", "b"], **a),
        lambda seed: draw(seed, 2, 4, 4).abs(),
    ),
    "shape_table": (lambda x, **a: viz.shape_table(x, **a), None),
    "feature_walk": (lambda x, **a: viz.feature_walk(x, **a), None),
    "module_map": (lambda x, **a: viz.module_map(x, x, x, steps=9, **a), None),
    "module_tree": (
        lambda x, **a: viz.module_tree({"unet": nn.Sequential(nn.Linear(*x))}, **a),
        lambda seed: (2, seed),
    ),
    "run_map": (
        lambda x, **a: viz.run_map(PROMPT, x[0], x, -x, pictures(0)[0], steps=9, **a),
        lambda seed: draw(seed, 4, 8, 8),
    ),
    "correspondence": (
        lambda x, **a: viz.correspondence(x, titles=("theirs", "ours"), **a),
        lambda seed: [("unet", f"in.{i}", f"down.{i // 2}") for i in range(2 + seed)],
    ),
    "points": (
        lambda x, **a: viz.points(x, groups=[0, 1], linked=[["a", "b"]], **a),
        lambda seed: {"a": (1.0, 2.0 + seed), "b": (2.0, 3.0)},
    ),
    "trajectories": (
        lambda x, **a: viz.trajectories({"DDIM": x}, x[0], **a), lambda seed: draw(seed, 5, 3, 2),
    ),
    "clouds": (lambda x, **a: viz.clouds({"a": x}, **a), lambda seed: draw(seed, 50, 2)),
    "guidance_arrows": (
        lambda x, **a: viz.guidance_arrows(x[0], x[1], (1, 3), **a),
        lambda seed: draw(seed, 2, 4, 4, 4),
    ),
    "histogram": (lambda x, **a: viz.histogram({"x": x}, **a), lambda seed: draw(seed, 200)),
    "losses": (lambda x, **a: viz.losses({"x": x.abs()}, **a), lambda seed: draw(seed, 50)),
    "lines": (lambda x, **a: viz.lines(range(9), {"x": x}, **a), lambda seed: draw(seed, 9)),
    "bars": (
        lambda x, **a: viz.bars({"a": x[0], "b": x[1]}, **a), lambda seed: draw(seed, 2).tolist(),
    ),
    "schedules": (
        lambda x, **a: viz.schedules({"x": x}, **a),
        lambda seed: DDIMScheduler.from_config({"beta_end": 0.02 + 0.01 * seed}),
    ),
}  # fmt: skip


def data_of(kind, record, seed):
    make = KINDS[kind][1]
    return with_record(record, seed) if make is None else make(seed)


def values(data):
    """Everything a figure was given, as bytes."""
    if isinstance(data, torch.Tensor):
        return data.numpy().tobytes()
    if isinstance(data, dict):
        return b"".join(values(v) for v in data.values())
    return repr(data).encode() if not hasattr(data, "betas") else values(data.betas)
