"""Does timeseries keep the contract of mmdiff; are files, gaps and factors what they should be?"""

import math

import numpy as np
import pytest
import torch
from mmdiff_timeseries.factors import FactorAccuracy, errors, factors
from mmdiff_timeseries.imputation import hide, rmse
from mmdiff_timeseries.levels import Gaps, known_values
from mmdiff_timeseries.modality import Series, interpolate
from mmdiff_timeseries.network import SeriesUNet
from mmdiff_timeseries.tides import Tides

from mmdiff import DataError
from mmdiff.schedules import Karras
from mmdiff.testing import check_plugin
from mmdiff.types import Context


def test_conformance():
    """The same as ``mmdiff check timeseries network.width=16``."""
    check_plugin("timeseries", "network.width=16")


def test_lines_between_neighbors_are_those_of_numpy():
    series = torch.randn(5, 3, 40)
    series[torch.rand(series.shape) < 0.6] = math.nan
    series[0, 0] = math.nan
    filled = interpolate(series)
    assert (filled[0, 0] == 0).all()
    for row, made in zip(series.flatten(0, 1)[1:], filled.flatten(0, 1)[1:], strict=True):
        there = ~row.isnan()
        expected = np.interp(np.arange(40), np.flatnonzero(there), row[there])
        assert torch.allclose(made.double(), torch.from_numpy(expected), atol=1e-5)
        assert torch.equal(made[there], row[there])


def test_files(tmp_path):
    modality = Series(length=5, channels=2)
    (tmp_path / "a.csv").write_text("time,level\n1,2\n,NA\n3, \nnan,4.5\n")
    seen = modality.read(tmp_path / "a.csv")
    assert seen.nan_to_num(-1).tolist() == [[1, -1, 3, -1], [2, -1, -1, 4.5]]
    assert modality.mask(seen)[0].tolist() == [[True, False, True, False, False], [True, False, False, True, False]]
    placed, known = modality.place(seen)
    assert torch.equal(known, modality.mask(seen))
    assert placed[0, :, :4].tolist() == [[1, 2, 3, 3], [2, pytest.approx(2 + 2.5 / 3), pytest.approx(2 + 5 / 3), 4.5]]
    for suffix in Series.suffixes:
        modality.write(seen, tmp_path / f"b{suffix}")
        assert torch.equal(modality.read(tmp_path / f"b{suffix}").nan_to_num(-1), seen.nan_to_num(-1))
    np.savez(tmp_path / "two.npz", series=np.ones((3, 2)), other=np.zeros(1))
    assert modality.read(tmp_path / "two.npz").tolist() == [[1, 1, 1], [1, 1, 1]]


BAD = {
    "1,2,3\n": r"has 3 columns, not 2; see modality.channels",
    "1,2\n3\n": r"has rows of 1 and of 2 cells",
    "1,2\n3,four\n": r"is not a table of numbers \(could not convert string to float: 'four'\)",
    "a,b\n": r"holds no values",
    ",\n,\n": r"holds no values",
    "1,inf\n": r"holds an infinite number; leave missing values empty",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files(text, tmp_path):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=f"bad.csv: {BAD[text]}"):
        Series(channels=2).read(tmp_path / "bad.csv")


def test_npz_without_a_series(tmp_path):
    np.savez(tmp_path / "bad.npz", one=np.ones(3), two=np.zeros(1))
    with pytest.raises(DataError, match=r"bad.npz: holds one, two; one must be named series"):
        Series(channels=2).read(tmp_path / "bad.npz")


def test_factors_of_tides_are_measured():
    """With the noise that they come with; the conditions of another series are not met."""
    data = Tides(size=60, seed=5, missing=0)
    metric, wrong = FactorAccuracy(), FactorAccuracy()
    for i in range(60):
        metric.update(data[i][0][None], real=False, cond={name: [value] for name, value in data[i][1].items()})
        other = data[(i + 1) % 60][1]
        wrong.update(data[i][0][None], real=False, cond={name: [value] for name, value in other.items()})
    assert metric.compute() == {"frequency": 1, "lag": 1, "trend": 1, "all": 1}
    assert wrong.compute()["all"] < 0.1


def test_factors_by_hand():
    """A pure tide of 3 periods, a quarter later at the second harbor."""
    u = torch.arange(96) / 96
    series = torch.stack([torch.sin(6 * math.pi * u), -torch.cos(6 * math.pi * u), 1.5 * u])
    seen = factors(series)
    assert seen == pytest.approx({"frequency": 3, "lag": 0.25, "trend": 1.5}, abs=0.02)
    missed = errors({"frequency": 3, "lag": 0.98, "trend": 1}, {"frequency": 2, "lag": 0.01, "trend": 1})
    assert missed == pytest.approx({"frequency": 0.5, "lag": 0.03, "trend": 0})


def test_missing_values():
    data = Tides(size=100, seed=2)
    lacking = torch.stack([data[i][0].isnan() for i in range(100)])
    assert 35 <= lacking.flatten(1).any(1).sum() <= 65
    assert not Tides(size=5, missing=0)[3][0].isnan().any()
    changes = (lacking[..., 1:] != lacking[..., :-1]).sum(-1)
    assert changes.max() == 2  # one run


def test_gaps():
    torch.manual_seed(0)
    known = known_values(400, 3, 64)
    changes = (known[..., 1:] != known[..., :-1]).sum(-1)
    assert changes.max() == 2
    assert 0.4 < known.float().mean() < 0.8
    equal = (known[:, 0] == known[:, 1]).all(-1).float().mean()
    assert 0.4 < equal < 0.65
    sigma = torch.rand(400) + 0.1
    levels = Gaps(given=0.5)(sigma, torch.zeros(400, 1, 3, 64), Karras())
    given = levels == 0
    assert ((levels == sigma[:, None, None, None]) | given).all()
    assert 0.3 < given.flatten(1).any(1).float().mean() < 0.55
    with pytest.raises(ValueError, match=r"levels.given must lie between 0 and 1, got 2"):
        Gaps(given=2)


def test_the_network_sees_which_values_are_known():
    network = SeriesUNet((1, 2, 16), 8, width=8, multipliers=[1, 2], blocks=1, attention=[])
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    x, noise = torch.randn(1, 1, 2, 16), torch.full((1, 1, 2, 16), 0.5)
    alike = network(x, noise, Context())
    assert torch.allclose(alike, network(x, torch.tensor([0.5]), Context()))
    noise[0, 0, 1, 3] = -2
    assert not torch.allclose(alike, network(x, noise, Context()))


def test_error_of_hidden_values():
    series = torch.zeros(6, 3, 32)
    hidden = hide(series, 5)
    assert (hidden.sum(-1) == 5).all()
    assert not hidden[..., 0].any()
    assert not hidden[..., -1].any()
    assert rmse(torch.where(hidden, 2.0, 9.0), series, hidden) == 2
