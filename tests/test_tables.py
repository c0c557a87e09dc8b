import json
import math

import pytest
import torch

from mmdiff.errors import DataError
from mmdiff.tables import Discrete, from_diffusers


def written(folder, **config):
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(config))
    return path


def test_levels_lie_between_those_of_the_table():
    schedule = Discrete(table=(0.1, 1.0, 100.0))
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.1, math.sqrt(0.1), 1, 10, 100], dtype=torch.float64)
    torch.testing.assert_close(schedule.quantile(t), expected)
    assert schedule.grid(4)[-1] == 0
    assert (schedule.quantile(torch.linspace(0, 1, 257)).diff() > 0).all()


@pytest.mark.parametrize("table", [(), (1.0,), (0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_tables_rise(table):
    with pytest.raises(ValueError, match=r"schedule\.table"):
        Discrete(table=table)


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4},
    ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_betas_are_read_as_diffusers_reads_them(betas, zero, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(**betas, rescale_betas_zero_snr=zero).alphas_cumprod.double()
    expected = ((1 - theirs) / theirs).sqrt().clamp(max=1e3)
    file = written(tmp_path, _class_name="DDIMScheduler", **betas, rescale_betas_zero_snr=zero)
    got = torch.tensor(from_diffusers(file).table, dtype=torch.float64)
    torch.testing.assert_close(got[:-1], expected[: len(got) - 1], rtol=2e-3, atol=0)  # theirs is a product in float32
    assert got[-1].item() == pytest.approx(1e3 if zero else expected[-1].item(), rel=2e-3)


def test_flows_are_shifted(tmp_path):
    file = written(tmp_path, _class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0)
    table = from_diffusers(file).table
    time = 500 / 1000
    shifted = 3 * time / (1 + 2 * time)
    assert table[499] == pytest.approx(shifted / (1 - shifted))
    assert table[-2] < table[-1] == 1e3


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", "beta_schedule": "laplace"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
        {},
    ],
)
def test_what_cannot_be_read_is_named(config, tmp_path):
    with pytest.raises(DataError, match="scheduler_config"):
        from_diffusers(written(tmp_path, **config))
    with pytest.raises(DataError, match=r"missing\.json"):
        from_diffusers(tmp_path / "missing.json")
