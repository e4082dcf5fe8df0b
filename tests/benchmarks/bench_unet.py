"""One guided UNet call of Stable Diffusion 1.5's size, random weights: ours and diffusers'.

`python tests/benchmarks/bench_unet.py [--compile] [--dtype bfloat16] [--device cuda]` compares the
ways in one process, in turn; `--scale` shows time and memory against size and batch instead. Prints
the machine in words and one markdown table. A guided call has a batch of 2 for one picture.
"""

import measure
import networks
import torch
from torch import nn


def call(network: nn.Module, who: str, batch: int, side: int) -> measure.Work:
    x_t = measure.normal(batch, 4, side // 8, side // 8, like=network)
    text = measure.normal(batch, 77, 768, seed=1, like=network)
    t = torch.tensor(500.0, device=x_t.device)
    if who == "minisd":
        return lambda: network(x_t, t, text)
    return lambda: network(x_t, t, text, return_dict=False)[0]


if __name__ == "__main__":
    sizes = [(2, 256), (2, 512), (4, 512), (8, 512), (2, 768), (2, 1024)]
    networks.main("unet", call, __doc__, batch=2, scaled=sizes)
