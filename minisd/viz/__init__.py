"""Figures, one call each. Every one asks for `alt`, a text for readers who cannot see it."""

from minisd.viz.animation import Animation, animation
from minisd.viz.attention import (
    attention_layers,
    attention_over,
    attention_steps,
    attention_words,
    cross_layers,
    word_map,
    word_positions,
)
from minisd.viz.correspondence import correspondence
from minisd.viz.curves import bars, histogram, lines, losses, points
from minisd.viz.examples import text_examples
from minisd.viz.features import feature_walk
from minisd.viz.figure import Figure
from minisd.viz.images import difference, grid, show, strip, sweep, table
from minisd.viz.latents import Preview, fit_preview, latent_channels
from minisd.viz.merges import merge_tree
from minisd.viz.module_map import module_map, skip_sources
from minisd.viz.module_tree import module_tree
from minisd.viz.noise import forward_panels, noise_rows, schedules
from minisd.viz.run_map import run_map
from minisd.viz.shapes import shape_table, shape_walk
from minisd.viz.tokens import (
    attention_heads,
    causal_mask,
    embedding_heat,
    heat,
    similarity,
    token_strip,
)
from minisd.viz.trajectories import clouds, guidance_arrows, guidance_plane, trajectories

__all__ = [
    "Animation", "Figure", "Preview", "animation", "attention_heads", "attention_layers",
    "attention_over", "attention_steps", "attention_words", "bars", "causal_mask", "clouds",
    "correspondence", "cross_layers", "difference", "embedding_heat", "feature_walk", "fit_preview",
    "forward_panels", "grid", "guidance_arrows", "guidance_plane", "heat", "histogram",
    "latent_channels", "lines", "losses", "merge_tree", "module_map", "module_tree", "noise_rows",
    "points", "run_map", "schedules", "shape_table", "shape_walk", "show", "similarity",
    "skip_sources", "strip", "sweep", "table", "text_examples", "token_strip", "trajectories",
    "word_map", "word_positions",
]  # fmt: skip
