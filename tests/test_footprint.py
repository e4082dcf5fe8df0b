"""The memory of a network's work, worked out from shapes."""

import torch
from tiny import UNET
from torch import nn

from minisd import memory
from minisd.teach.footprint import footprint
from minisd.unet import UNet


class Steps(nn.Module):
    """Three tensors, one after the other, of which two are alive at once."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x)
        return x


def of_steps(**more):
    return footprint(Steps, 10, lambda network: network(torch.zeros(1000, 10)), **more)


def test_weights_and_the_tensors_alive_at_once_are_counted():
    weights, at_once = of_steps()
    assert weights == 10 * 10 * 4
    # The input stays with its maker; of the outputs the last but one waits until the last is there.
    assert at_once == 3 * 1000 * 10 * 4


def test_half_precision_halves_both_and_leaves_the_default_as_it_was():
    assert of_steps(dtype=torch.float16) == tuple(n // 2 for n in of_steps())
    assert torch.get_default_dtype() == torch.float32


def test_a_view_is_no_memory_of_its_own():
    def work(network):
        x = torch.zeros(1000, 10)
        return x.view(10, 1000), x.T, x[:5]

    assert footprint(Steps, 10, work)[1] == 1000 * 10 * 4


def unet(method):
    def work(network):
        return network(torch.zeros(2, 4, 32, 32), 500, torch.zeros(2, 77, UNET.context_width))

    return footprint(UNet, UNET, work, lambda one: memory.choose_attention([one], method))


def test_the_formula_holds_the_scores_and_their_softmax_which_the_kernel_never_stores():
    plain, sliced, fused = (unet(method)[1] for method in ("plain", "sliced", "fused"))
    matrix = 2 * UNET.heads[0] * (32 * 32) ** 2 * 4  # (b, heads, n, n) in float32
    assert 2 * matrix < plain < 2.5 * matrix
    assert fused <= sliced < plain / 2


def test_it_takes_no_memory_to_work_it_out():
    def work(network):
        return network(torch.zeros(10**9, 10))  # 40 GB

    assert footprint(Steps, 10, work)[1] == 3 * 40 * 10**9
