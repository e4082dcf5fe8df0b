"""The fork of chapter 10: points whose exact prediction is known."""

import pytest
import torch

from minisd.teach import fork, toys


@pytest.fixture
def x_t():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", [5, 300, 950])
@pytest.mark.parametrize("caption", fork.CAPTIONS)
def test_the_exact_prediction_is_the_gradient_of_the_log_density(t, caption, x_t):
    x_t.requires_grad_(True)
    (gradient,) = torch.autograd.grad(fork.log_density(x_t, t, caption).sum(), x_t)
    noise = (1 - fork.SD.alphas_bar[t]).sqrt()
    assert torch.allclose(fork.exact_eps(x_t, t, caption), -noise * gradient, atol=1e-4)


def test_without_a_caption_the_density_is_the_mean_of_both(x_t):
    both = torch.stack([fork.log_density(x_t, 300, one) for one in ("left", "right")])
    mean = both.exp().mean(dim=0).log()
    assert torch.allclose(fork.log_density(x_t, 300), mean, atol=1e-4)


def test_the_exact_prediction_makes_points_of_the_class_out_of_noise():
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    ends = toys.generate(lambda x, t: fork.exact_eps(x, t, "right"), noise, steps=30)
    points, captions = fork.points(2000, torch.Generator().manual_seed(2))
    true = points[torch.tensor([one == "right" for one in captions])]
    assert fork.astray(ends, "right") < 0.02 > fork.astray(true, "right")
    assert abs(fork.doubtful(ends, "right") - fork.doubtful(true, "right")) < 0.08


def test_a_point_of_the_stem_could_be_either_and_one_of_a_tine_could_not():
    foot, tip = fork.middle(torch.tensor([0.0, 1.0]), "left")
    assert torch.allclose(fork.certainty(foot[None], "left"), torch.tensor([0.5]), atol=0.05)
    assert fork.certainty(tip[None], "left") > 0.99 > fork.certainty(tip[None], "right")
    assert fork.astray(tip[None], "right") == 1


def test_tilting_by_one_draws_the_class_as_it_is_and_by_more_takes_from_the_stem():
    points, captions = fork.points(4000, torch.Generator().manual_seed(3))
    true = points[torch.tensor([one == "right" for one in captions])]
    shares = [
        fork.doubtful(fork.tilted(true, "right", w, torch.Generator().manual_seed(4)), "right")
        for w in (1, 2, 4, 8)
    ]
    assert abs(shares[0] - fork.doubtful(true, "right")) < 0.05
    assert shares == sorted(shares, reverse=True)


def test_captions_become_labels_and_the_empty_one_is_the_last():
    assert fork.labels(["left", "", "right"]).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="'left' or 'right'"):
        fork.middle(torch.zeros(1), "")
