"""Judges of sets of clouds: closed forms for single figures, and the right verdicts on damaged sets."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from mmdiff.evaluation import measure
from mmdiff_pointcloud.metrics import Statistics, cloud_metrics, jsd, roughness


def ellipsoids(count, seed, points=256):
    """Clouds on ellipsoids with random axes, even in the angle."""
    generator = torch.Generator().manual_seed(seed)
    axes = 0.3 + 0.7 * torch.rand(count, 1, 3, generator=generator)
    directions = torch.randn(count, points, 3, generator=generator)
    return directions / directions.norm(dim=2, keepdim=True) * axes


def noise(like, scale, seed=9):
    return scale * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def test_jsd_is_that_of_the_histograms():
    real, fake = torch.rand(3, 500, 3), torch.rand(2, 400, 3) ** 2
    corners = [torch.zeros(1, 1, 3), torch.ones(1, 1, 3)]
    real = torch.cat([real, *[corner.expand(3, 1, 3) for corner in corners]], 1)
    counts = [
        np.histogramdd(clouds.reshape(-1, 3).numpy(), bins=28, range=3 * [(0, 1)])[0].ravel() for clouds in (real, fake)
    ]
    assert jsd(real, fake).item() == pytest.approx(jensenshannon(*counts, base=2) ** 2, rel=1e-4)


def test_jsd_is_nothing_for_equal_sets_and_one_bit_for_sets_apart():
    real = ellipsoids(4, 0)
    assert jsd(real, real[:, torch.randperm(256)]).item() == pytest.approx(0, abs=1e-6)
    assert jsd(real, 0.01 * real).item() == pytest.approx(1, abs=1e-6)
    assert jsd(real, real[:2]).item() < jsd(real, real[:2] * torch.tensor([1, 0.7, 1])).item()
    assert 0.9 < jsd(real, real + 100).item() <= 1
    assert jsd(10 * real + 5, 10 * real[:2] + 5).item() == pytest.approx(jsd(real, real[:2]).item(), abs=0.01)


def test_roughness_of_a_plane_a_cloud_in_space_and_a_sphere_with_noise():
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(1000, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.0])
    turned = flat @ torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    assert roughness(flat) < 1e-6
    assert roughness(turned) < 1e-3
    assert 0.4 < roughness(torch.randn(1000, 3, generator=generator)) < 0.6
    sphere = ellipsoids(1, 0, points=2048)[0]
    values = [roughness(sphere + noise(sphere, scale)) for scale in (0.0, 0.005, 0.01, 0.02, 0.05)]
    assert values == sorted(values)
    assert values[1] > 1.2 * values[0]
    assert roughness(100 * sphere + 7) == pytest.approx(values[0], rel=1e-3)


@pytest.mark.parametrize("cloud", [torch.rand(15, 3), torch.full((100, 3), math.nan)])
def test_roughness_needs_sixteen_finite_points(cloud):
    assert math.isnan(roughness(cloud))


def test_statistics_of_two_sets():
    real, fake = ellipsoids(6, 0), ellipsoids(4, 1) + noise(ellipsoids(4, 1), 0.05)
    metric = Statistics()
    for part in real.split(4):
        metric.update(part, real=True)
    metric.update(fake, real=False, cond={"kind": [None] * 4})
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values["jsd"] == pytest.approx(jsd(real, fake).item())
    assert values["jsd_real_halves"] == pytest.approx(jsd(real[::2], real[1::2]).item())
    assert values["roughness"] == pytest.approx(np.mean([roughness(cloud) for cloud in fake]))
    assert values["roughness_real"] == pytest.approx(np.mean([roughness(cloud) for cloud in real]))
    assert values["roughness"] > 1.2 * values["roughness_real"]


def test_statistics_without_generated_clouds_are_nan():
    metric = Statistics()
    metric.update(ellipsoids(3, 0), real=True)
    assert all(math.isnan(value) for value in metric.compute().values())


def score(real, fake):
    return measure(cloud_metrics(), [(cloud, {}) for cloud in real], [(cloud, {}) for cloud in fake])


def resampled(clouds):
    """Other points of the same ellipsoids."""
    axes = clouds.norm(dim=1, keepdim=True) * math.sqrt(3 / clouds.shape[1])
    directions = noise(clouds, 1.0, seed=7)
    return directions / directions.norm(dim=2, keepdim=True) * axes


def test_verdicts_on_sets_whose_answer_is_known():
    real, fresh = ellipsoids(30, 0), ellipsoids(30, 1)
    plain = score(real, fresh)
    noisy = score(real, fresh + noise(fresh, 0.2))
    collapsed = score(real, resampled(fresh[:3].repeat(10, 1, 1)))
    memorized = score(real, resampled(real))
    for name in ("chamfer", "sliced"):
        assert plain[f"{name}.one_nna"] == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(60))
        assert collapsed[f"{name}.coverage"] < 0.3 < plain[f"{name}.coverage"]
        assert collapsed[f"{name}.one_nna"] > 0.8
        assert memorized[f"{name}.one_nna"] < 0.25
        assert memorized[f"{name}.mmd"] < plain[f"{name}.mmd"]
    assert noisy["chamfer.one_nna"] > max(0.75, plain["chamfer.one_nna"] + 0.2)
    assert noisy["points.roughness"] > 1.3 * noisy["points.roughness_real"]
    assert noisy["points.jsd"] > plain["points.jsd"]
