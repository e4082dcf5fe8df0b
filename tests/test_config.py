"""Configs: what they refuse, and their way through JSON."""

import dataclasses
import json

import pytest

from minisd.config import (
    PICTUREBOOK,
    SD15,
    SD21,
    SD21_BASE,
    AutoencoderConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
)

PARTS = [field.name for field in dataclasses.fields(SD15)]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("model", [SD15, SD21_BASE, SD21, PICTUREBOOK])
def test_a_config_comes_back_from_json_equal_and_hashable(model, part):
    config = getattr(model, part)
    back = type(config).from_json(config.to_json())
    assert back == config
    assert hash(back) == hash(config)  # lists became tuples again


@pytest.mark.parametrize("part", PARTS)
def test_json_may_leave_out_what_has_a_default_but_not_add(part):
    kind = type(getattr(SD15, part))
    assert kind.from_json("{}") == kind()
    with pytest.raises(ValueError, match=rf"{kind.__name__} has no field \['depth'\]"):
        kind.from_json(json.dumps({"depth": 3}))


def test_a_config_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SD15.unet.context_width = 5


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (TextEncoderConfig, {"width": 100, "heads": 3}, "width 100 is not divisible by heads 3"),
        (TextEncoderConfig, {"activation": "relu"}, "'relu', expected 'quick_gelu' or 'gelu'"),
        (UNetConfig, {"heads": (8, 8)}, "heads has 2 entries, expected 4"),
        (UNetConfig, {"attention": (True,) * 5}, "attention has 5 entries, expected 4"),
        (UNetConfig, {"norm_groups": 48}, "width 320 is not divisible by norm_groups 48"),
        (UNetConfig, {"heads": (7, 8, 8, 8)}, "width 320 is not divisible by heads 7"),
        (AutoencoderConfig, {"norm_groups": 3}, "width 128 is not divisible by norm_groups 3"),
        (AutoencoderConfig, {"scaling_factor": 0.0}, "scaling_factor is 0.0, expected a positive"),
        (ScheduleConfig, {"beta_schedule": "steep"}, "beta_schedule is 'steep', expected one of"),
        (ScheduleConfig, {"beta_schedule": "cosine"}, "; the cosine schedule is 'squaredcos_cap"),
        (ScheduleConfig, {"prediction_type": "x"}, "prediction_type is 'x', expected one of"),
        (ScheduleConfig, {"timestep_spacing": "odd"}, "timestep_spacing is 'odd', expected one"),
        (ScheduleConfig, {"num_train_timesteps": 0}, "num_train_timesteps is 0, expected at"),
    ],
)
def test_sizes_that_do_not_fit_are_errors_that_name_them(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)


def test_derived_sizes_are_stable_diffusions():
    assert SD15.unet.time_width == 1280  # LDM: 4 * model_channels
    assert SD15.vae.downscale == 8
    assert PICTUREBOOK.vae.downscale == 8


def test_the_families_differ_where_the_papers_say_so():
    assert SD15.text_encoder.context_length == PICTUREBOOK.text_encoder.context_length == 77
    assert SD15.unet.context_width == SD15.text_encoder.width == 768
    assert SD21.unet.context_width == SD21.text_encoder.width == 1024
    assert PICTUREBOOK.unet.context_width == PICTUREBOOK.text_encoder.width
    kinds = [model.schedule.prediction_type for model in (SD15, SD21_BASE, SD21)]
    assert kinds == ["epsilon", "epsilon", "v_prediction"]
