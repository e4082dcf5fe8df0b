"""The two toys of the course: their data, their networks, and the result that is shipped."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from minisd.schedulers import NoiseSchedule
from minisd.teach import toys
from minisd.training import noise_prediction_loss

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_points_have_mean_0_and_variance_1_and_know_their_arm():
    x, arm = toys.points(4000, seeded())
    assert x.shape == (4000, 2)
    assert x.mean(dim=0).abs().max() < 0.1
    assert x.var().item() == pytest.approx(1, abs=0.1)
    centres = torch.stack([x[arm == i].mean(dim=0) for i in range(toys.ARMS)])
    assert torch.cdist(centres, centres).add(9 * torch.eye(toys.ARMS)).min() > 0.7


def test_an_arm_is_thin_and_apart_from_the_others():
    x, arm = toys.points(3000, seeded())
    distance = torch.cdist(x, x) + 9 * torch.eye(len(x))
    same = arm[:, None] == arm
    assert distance.where(same, 9.0).min(dim=1).values.median() < 0.05
    assert distance.where(~same, 9.0).min(dim=1).values.median() > 0.4


def test_the_last_class_of_the_mlp_means_none():
    model, x = toys.seeded(lambda: toys.PointMLP(classes=3)), torch.randn(5, 2, generator=seeded())
    free = model(x, 300)
    assert free.shape == (5, 2)
    assert torch.equal(free, model(x, torch.full((5,), 300), torch.full((5,), 3)))
    assert not torch.allclose(free, model(x, 300, torch.zeros(5, dtype=torch.long)))
    assert not torch.allclose(free, model(x, 600))


def test_pictures_are_in_range_and_the_same_for_the_same_seed():
    x = toys.pictures(8, seed=3)
    assert x.shape == (8, 3, toys.SIDE, toys.SIDE)
    assert -1 <= x.min() < -0.5 < 0.5 < x.max() <= 1
    assert torch.equal(x, toys.pictures(8, seed=3))
    assert not torch.equal(x, toys.pictures(8, seed=4))


def test_a_picture_has_a_plain_ground_and_a_shape_that_stands_out():
    x = toys.pictures(50)
    corners = x[..., [0, 0, -1, -1], [0, -1, 0, -1]]  # (50, 3, 4)
    assert (corners - corners[..., :1]).abs().max() < 0.02
    middle = x[..., 8, 8]
    assert (middle - corners[..., 0]).abs().amax(dim=1).min() > 0.2


def test_the_tiny_unet_reads_no_text_but_reads_t():
    model, x = toys.seeded(toys.PixelUNet), torch.randn(2, 3, 16, 16, generator=seeded())
    out = model(x, 500)
    assert out.shape == x.shape
    assert torch.equal(out, model(x, 500, torch.ones(2, 77, 160)))
    assert not torch.allclose(out, model(x, 10))


def test_seeded_gives_the_same_weights_and_leaves_the_random_numbers_be():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second = (toys.seeded(toys.PointMLP) for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first.enter.weight, second.enter.weight)


def test_the_librarys_loss_takes_points():
    x_0, _ = toys.points(64, seeded())
    model, g = toys.seeded(toys.PointMLP), seeded(1)
    t, eps = torch.randint(0, 1000, (64,), generator=g), torch.randn(64, 2, generator=g)
    error = model(NoiseSchedule().add_noise(x_0, eps, t), t) - eps
    loss = noise_prediction_loss(model, NoiseSchedule(), x_0, None, seeded(1), snr_gamma=None)
    torch.testing.assert_close(loss, error.square().mean())


def test_training_lowers_the_loss_and_repeats_itself():
    first, second = ([(n, loss) for n, loss, _ in islice(toys.point_training(), 60)] for _ in "ab")
    assert first == second
    assert [n for n, _ in first] == list(range(1, 61))
    assert sum(loss for _, loss in first[-10:]) < 0.7 * sum(loss for _, loss in first[:10])


def test_what_training_yields_is_the_average_of_the_weights_on_the_way():
    model, first = toys.seeded(toys.PointMLP), toys.seeded(toys.PointMLP).enter.weight
    steps = toys.training(model, lambda step: toys.points(64, seeded(step))[0], toys.POINTS)
    *_, (_, _, average) = islice(steps, 20)
    travelled = [(w - first).norm().item() for w in (average.enter.weight, model.enter.weight)]
    assert 0 < travelled[0] < 0.95 * travelled[1]


def test_train_keeps_the_average_weights_of_the_moments_that_were_asked_for():
    result = toys.train(islice(toys.point_training(), 12), keep=(5, 12))
    assert list(result["weights"]) == [5, 12]
    assert len(result["losses"]) == 12
    early, late = (w["enter.weight"] for w in result["weights"].values())
    assert early.dtype == torch.float16
    assert not torch.equal(early, late)


def test_generate_with_a_predictor_of_one_point_ends_at_that_point():
    point, schedule = torch.tensor([0.7, -0.3]), NoiseSchedule()

    def perfect(x_t, t):
        a = schedule.alphas_bar[int(t)]
        return (x_t - a.sqrt() * point) / (1 - a).sqrt()

    made = toys.generate(perfect, torch.randn(20, 2, generator=seeded()))
    assert (made - point).abs().max() < 0.15  # DDIM leaves the noise of timestep 0


@pytest.mark.parametrize(
    ("name", "network", "steps", "moments"),
    [
        ("03_pictures.pt", toys.PixelUNet, toys.picture_training, toys.MOMENTS),
        ("03_points.pt", toys.PointMLP, toys.point_training, (toys.POINTS.steps,)),
    ],
)
def test_a_shipped_result_fits_its_network_and_is_what_its_training_gives(
    name, network, steps, moments
):
    result = torch.load(RESULTS / name, weights_only=True)
    assert tuple(result["weights"]) == moments
    for weights in result["weights"].values():
        network().load_state_dict(weights)
    assert len(result["losses"]) == moments[-1]
    live = [loss for _, loss, _ in islice(steps(), 3)]
    assert result["losses"][:3] == pytest.approx(live, abs=0.02)
