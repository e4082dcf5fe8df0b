"""The training loop and its losses."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from minisd.config import ScheduleConfig
from minisd.schedulers import NoiseSchedule
from minisd.training import (
    TrainConfig,
    decibels,
    drop_captions,
    noise_prediction_loss,
    step_generator,
    train,
    update_average,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Numbers(Dataset):
    def __getitem__(self, step: int) -> torch.Tensor:
        return torch.randn(8, 3, generator=seeded(step))


def squares(model: nn.Module, x: torch.Tensor, generator: torch.Generator):
    noise = torch.randn(x.shape, generator=generator)
    return (model(x + 0.1 * noise) - x.sum(dim=1, keepdim=True)).square().mean(), {"answer": 42.0}


CONFIG = TrainConfig(steps=12, batch_size=8, warmup_steps=2, save_every=3)


def run(folder, config=CONFIG, on_save=None):
    torch.manual_seed(0)
    return train(nn.Linear(3, 1), squares, Numbers(), config, folder, workers=0, on_save=on_save)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_perfect_predictor_has_no_loss(kind, gamma):
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=kind))
    x_0 = torch.full((4, 4, 2, 2), 0.7)

    def perfect(x_t, t, context):
        alpha_bar = schedule.alphas_bar[t].reshape(-1, 1, 1, 1)
        eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v}[kind]

    assert noise_prediction_loss(perfect, schedule, x_0, None, seeded(), gamma) < 1e-8


def test_the_plain_loss_of_a_silent_model_is_the_variance_of_the_noise():
    schedule = NoiseSchedule()
    x_0 = torch.zeros(256, 4, 8, 8)
    loss = noise_prediction_loss(lambda x, t, c: 0 * x, schedule, x_0, None, seeded(), None)
    assert loss.item() == pytest.approx(1.0, abs=0.02)


def test_min_snr_makes_nearly_clean_pictures_count_less():
    schedule = NoiseSchedule()
    x_0 = torch.zeros(256, 4, 8, 8)
    loss = noise_prediction_loss(lambda x, t, c: 0 * x, schedule, x_0, None, seeded(), 5.0)
    weight = schedule.snr().clamp(max=5.0) / schedule.snr()
    assert loss.item() == pytest.approx(weight.mean().item(), abs=0.05)
    assert loss.item() < 0.95


def test_captions_are_dropped_at_the_given_rate():
    captions = ["a red boat"] * 2000
    assert drop_captions(captions, 0.0, seeded()) == captions
    assert drop_captions(captions, 1.0, seeded()) == [""] * 2000
    assert drop_captions(captions, 0.1, seeded()).count("") == pytest.approx(200, abs=50)


def test_the_average_follows_the_weights_at_first_and_then_slowly():
    average, model = nn.Linear(1, 1), nn.Linear(1, 1)
    before = average.weight.item()
    update_average(average, model, decay=0.999, step=0)
    assert average.weight.item() == pytest.approx(0.1 * before + 0.9 * model.weight.item())
    before = average.weight.item()
    update_average(average, model, decay=0.999, step=10**6)
    assert average.weight.item() == pytest.approx(0.999 * before + 0.001 * model.weight.item())


def test_the_rate_warms_up_stays_and_falls_to_zero():
    config = TrainConfig(steps=100, batch_size=1, warmup_steps=10, decay_fraction=0.2)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[10] == rates[79] == 1e-3
    assert rates[99] == pytest.approx(1e-3 / 20)


def test_a_killed_run_goes_on_to_the_very_same_weights(tmp_path):
    whole = run(tmp_path / "whole")

    def kill(average, step):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", on_save=kill)
    resumed = run(tmp_path / "killed")
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(whole.bias, resumed.bias)


def test_training_learns(tmp_path):
    config = TrainConfig(steps=300, batch_size=8, learning_rate=0.05, warmup_steps=5, ema_decay=0.9)
    model = run(tmp_path, config)
    torch.testing.assert_close(model.weight, torch.ones(1, 3), atol=0.1, rtol=0)


def test_the_log_has_a_line_for_each_save(tmp_path):
    run(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert '"answer": 42.0' in lines[-1]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    def broken(model, x, generator):
        return model(x).mean() * float("nan"), {}

    with pytest.raises(FloatingPointError, match="step 0"):
        train(nn.Linear(3, 1), broken, Numbers(), CONFIG, tmp_path, workers=0)


def test_steps_have_different_randomness_and_the_same_after_a_restart():
    draws = [torch.randn(4, generator=step_generator(0, step, "cpu")) for step in (1, 2, 1)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_decibels_of_a_tenth_of_the_range():
    assert decibels(0.2**2) == pytest.approx(20.0)
