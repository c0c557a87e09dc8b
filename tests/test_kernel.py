import math

import numpy as np
import pytest
import torch

from mmdiff.metrics.kernel import KernelDistance, squared_mmd


def brute_force(x, y, bandwidth):
    """Gretton et al. 2012, equation 3, one pair at a time."""

    def k(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * bandwidth**2))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def distance(real, fake):
    metric = KernelDistance(torch.nn.Identity())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return {name: value.item() for name, value in metric.compute().items()}


def draw(n, seed, shift=0.0, size=3):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m", "size"), [(2, 2, 1), (9, 6, 3), (30, 40, 5)])
@pytest.mark.parametrize("bandwidth", [0.5, 3.0])
def test_squared_mmd_is_the_double_sum(n, m, size, bandwidth):
    x, y = draw(n, 0, size=size).double(), draw(m, 1, 0.5, size=size).double()
    assert squared_mmd(x, y, bandwidth).item() == pytest.approx(
        brute_force(x.tolist(), y.tolist(), bandwidth), abs=1e-10
    )


def test_features_are_standardized_by_the_real_set_and_the_bandwidth_is_its_median_distance():
    real, fake = draw(14, 0) * torch.tensor([1.0, 10.0, 0.1]) + 5, draw(11, 1) * 2
    x, y = real.double().numpy(), fake.double().numpy()
    mean, std = x.mean(0), x.std(0, ddof=1)
    x, y = (x - mean) / std, (y - mean) / std
    gaps = sorted(float(np.linalg.norm(x[i] - x[j])) for i in range(14) for j in range(i))
    bandwidth = gaps[(len(gaps) - 1) // 2]
    got = distance(real, fake)
    assert got[""] == pytest.approx(1000 * brute_force(x, y, bandwidth), rel=1e-6, abs=1e-6)
    assert got["real_halves"] == pytest.approx(1000 * brute_force(x[::2], x[1::2], bandwidth), rel=1e-6, abs=1e-6)


def test_units_of_the_features_do_not_matter():
    real, fake = draw(40, 0), draw(40, 1, 0.4)
    units = torch.tensor([1e-3, 1.0, 1e4])
    assert distance(real * units + 7, fake * units + 7)[""] == pytest.approx(distance(real, fake)[""], rel=1e-3)


@pytest.mark.parametrize("n", [8, 50])
def test_zero_is_the_expectation_for_equal_laws_at_any_size(n):
    values = [distance(draw(n, 2 * i), draw(n, 2 * i + 1)) for i in range(100)]
    for name in ("", "real_halves"):
        got = np.array([v[name] for v in values])
        # Standardizing by the real set alone costs a small bias of order 1 / n, in units of the kernel's 1000.
        assert abs(got.mean()) < 5 * got.std() / math.sqrt(100) + 1000 * 0.6 / n**2
        assert (got < 0).any()


def test_it_grows_with_a_shift():
    values = [distance(draw(200, 0), draw(200, 1, shift))[""] for shift in (0.0, 0.3, 0.6, 1.2, 3.0)]
    assert values == sorted(values)
    assert values[1] > distance(draw(200, 0), draw(200, 1))["real_halves"] + 5
    assert values[-1] > 500


def test_it_sees_a_change_of_shape_too():
    assert distance(draw(200, 0), draw(200, 1) * 2)[""] > distance(draw(200, 0), draw(200, 1))[""] + 20


def test_batches_add_up_in_any_split():
    real, fake = draw(20, 0), draw(24, 1)
    metric = KernelDistance(torch.nn.Flatten())
    for part in real.reshape(20, 3, 1).split(7):
        metric.update(part, real=True, cond={"kind": ["a"] * len(part)})
    for part in fake.reshape(24, 3, 1).split(5):
        metric.update(part, real=False)
    assert {k: v.item() for k, v in metric.compute().items()} == pytest.approx(distance(real, fake))
    metric.reset()
    assert metric.real == metric.fake == []


def test_too_few_samples_have_no_distance():
    assert math.isnan(distance(draw(3, 0), draw(1, 1))[""])
    assert math.isnan(distance(draw(2, 0), draw(5, 1))["real_halves"])
    assert math.isnan(distance(draw(1, 0), draw(5, 1))[""])


def test_a_constant_feature_does_no_harm():
    real, fake = draw(20, 0), draw(20, 1)
    real[:, 1] = fake[:, 1] = 4.0
    assert math.isfinite(distance(real, fake)[""])
