"""The statistics of benchmarks/joins.py see joins, and nothing where there is none."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[1] / "benchmarks" / "joins.py"


@pytest.fixture(scope="module")
def joins():
    spec = importlib.util.spec_from_file_location("joins", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["joins"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["joins"]


def test_spectral_flux(joins):
    t = torch.arange(8000) / 8000
    low, high = torch.sin(2 * torch.pi * 440 * t), torch.sin(2 * torch.pi * 880 * t)
    changed = torch.where(t < 0.4, low, high)
    steady, here, elsewhere = joins.spectral_flux(torch.stack([low, changed, changed]), 8000, 0.4)[[0, 1, 2]]
    assert here > 5 * steady
    assert here == elsewhere
    assert joins.spectral_flux(changed[None], 8000, 0.7) < here / 5
    quieter = joins.spectral_flux(0.01 * torch.stack([low, changed]), 8000, 0.4)
    torch.testing.assert_close(quieter, torch.stack([steady, here]), rtol=1e-3, atol=1e-3)


def test_differences_of_frames_and_columns(joins):
    clips = torch.zeros(2, 3, 4, 5, 6)
    clips[0, :, 2:] = 2
    clips[1, ..., 3:] = 5
    assert joins.frame_difference(clips, 2).tolist() == [2, 0]
    assert joins.frame_difference(clips, 3).tolist() == [0, 0]
    assert joins.edge_difference(clips, 3).tolist() == [0, 5]
    assert joins.edge_difference(clips, 4).tolist() == [0, 0]


def test_density_step(joins):
    points = torch.linspace(-1, 1, 2001).expand(3, -1).clone()
    points[1] = torch.where((points[1] >= 0.2) & (points[1] < 0.25), 0.5, points[1])  # a gap on one side
    points[2] = torch.where((points[2] >= 0.6) & (points[2] < 0.7), 0.21, points[2])  # a heap
    even, gap, heap = joins.density_step(points, 0.2, 0.1)
    assert even < 0.02
    assert gap == pytest.approx(math.log(2), abs=0.05)
    assert heap == pytest.approx(math.log(2), abs=0.05)


def test_the_share_within_what_is_usual(joins):
    real = torch.arange(101.0)
    assert joins.within(torch.tensor([3.0, 95.0, 96.0, 500.0]), real) == 0.5
    assert joins.within(real, real) == pytest.approx(0.95, abs=0.01)
