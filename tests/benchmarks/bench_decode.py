"""Decoding with an autoencoder of Stable Diffusion 1.5's size, random weights: ours and diffusers'.

`python tests/benchmarks/bench_decode.py [--compile] [--dtype bfloat16] [--device cuda]` compares
the ways in one process, in turn; `--scale` shows time and memory against size and batch instead;
`--tiling` decodes in tiles of 512 (with --side 1024). Prints the machine in words and one table.
"""

import sys

import measure
import networks
from torch import nn


def call(network: nn.Module, who: str, batch: int, side: int) -> measure.Work:
    z = measure.normal(batch, 4, side // 8, side // 8, like=network)
    if "--tiling" in sys.argv:
        network.enable_tiling()
    if who == "minisd":
        return lambda: network.decode(z)
    return lambda: network.decode(z, return_dict=False)[0]


if __name__ == "__main__":
    sizes = [(1, 256), (1, 512), (2, 512), (4, 512), (1, 768), (1, 1024)]
    networks.main("vae", call, __doc__, batch=1, scaled=sizes)
