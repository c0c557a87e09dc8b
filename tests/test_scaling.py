import math

import pytest
import torch

from closed_forms import two_bumps
from mmdiff.scaling import EDM, Epsilon, Flow, V

SCALINGS = [EDM(), EDM(sigma_data=0.5), Epsilon(), V(), Flow()]
every = pytest.mark.parametrize("scaling", SCALINGS, ids=["edm", "edm_half", "epsilon", "v", "flow"])
SIGMAS = torch.tensor([1e-3, 0.02, 0.3, 1.0, 2.5, 40.0, 1e3], dtype=torch.float64)


def draw(n=7):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return x0, eps, x0 + SIGMAS * eps


def target(scaling, x0, x):
    """What the network has to return for D(x, sigma) = x0."""
    c = scaling(SIGMAS)
    return (x0 - c.skip * x) / c.out


def table(s, data):
    """The table of the design, one level at a time, in plain floats; sigma = tan(angle)."""
    angle, time, total = math.atan(s), s / (1 + s), math.hypot(s, data)
    log = math.log(s) / 4
    return {
        "edm": (data**2 / total**2, s * data / total, 1 / total, log),
        "epsilon": (1, -s, math.cos(angle), log),
        "v": (math.cos(angle) ** 2, -math.sin(angle), math.cos(angle), log),
        "flow": (1 - time, -time, 1 - time, time),
    }


@pytest.mark.parametrize(
    ("scaling", "name", "data"),
    [
        (EDM(), "edm", 1),
        (EDM(sigma_data=0.5), "edm", 0.5),
        (Epsilon(), "epsilon", 1),
        (V(), "v", 1),
        (Flow(), "flow", 1),
    ],
)
def test_the_table(scaling, name, data):
    expected = torch.tensor([table(s, data)[name] for s in SIGMAS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(scaling(SIGMAS), 1), expected, rtol=1e-11, atol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clean_data_pass_unchanged(scaling, dtype):
    x, wild = torch.randn(1000, dtype=dtype), 1e3 * torch.randn(1000, dtype=dtype)
    c = scaling(torch.zeros((), dtype=dtype))
    assert torch.equal(c.skip * x + c.out * wild, x)
    assert all(torch.isfinite(k) and k.dtype == dtype for k in c)


@every
def test_shape_dtype_and_device_are_those_of_sigma(scaling):
    for k in scaling(torch.rand(2, 1, 3)):
        assert k.shape == (2, 1, 3)
        assert k.dtype == torch.float32


@every
def test_the_network_can_tell_levels_apart(scaling):
    assert (scaling(torch.cat([torch.zeros(1), SIGMAS])).noise.diff() > 0).all()


def test_epsilon_predicts_the_noise():
    x0, eps, x = draw()
    torch.testing.assert_close(target(Epsilon(), x0, x), eps, rtol=0, atol=1e-11)


def test_v_predicts_the_velocity_of_the_vp_path():
    x0, eps, x = draw()
    angle = SIGMAS.atan()
    torch.testing.assert_close(target(V(), x0, x), angle.cos() * eps - angle.sin() * x0, rtol=0, atol=1e-11)


def test_flow_predicts_the_velocity_of_the_straight_path():
    x0, eps, x = draw()
    torch.testing.assert_close(target(Flow(), x0, x), eps - x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("data", [1.0, 0.5, 3.0])
def test_edm_predicts_unit_variance_whatever_the_law_of_the_data(data):
    generator = torch.Generator().manual_seed(1)
    n = 100_000
    x0 = data * math.sqrt(12) * (torch.rand(n, 1, generator=generator, dtype=torch.float64) - 0.5)
    x = x0 + SIGMAS * torch.randn(n, len(SIGMAS), generator=generator, dtype=torch.float64)
    scaling = EDM(sigma_data=data)
    # The standard error of the variance of n Gaussian draws is sqrt(2 / n); a uniform law's is smaller.
    tolerance = 5 * math.sqrt(2 / n)
    ones = torch.ones(len(SIGMAS), dtype=torch.float64)
    torch.testing.assert_close(target(scaling, x0, x).var(0), ones, rtol=0, atol=tolerance)
    torch.testing.assert_close((scaling(SIGMAS).input * x).var(0), ones, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scaling", [EDM(), Epsilon(), V()])
def test_input_has_unit_variance_for_unit_data(scaling):
    torch.testing.assert_close(scaling(SIGMAS).input ** 2 * (1 + SIGMAS**2), torch.ones_like(SIGMAS))


def test_networks_see_the_state_they_were_defined_on():
    x0, eps, x = draw()
    alpha_bar, time = 1 / (1 + SIGMAS**2), SIGMAS / (1 + SIGMAS)
    vp = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    torch.testing.assert_close(Epsilon()(SIGMAS).input * x, vp)
    torch.testing.assert_close(V()(SIGMAS).input * x, vp)
    torch.testing.assert_close(Flow()(SIGMAS).input * x, (1 - time) * x0 + time * eps)
    torch.testing.assert_close(Flow()(SIGMAS).noise, time)


@every
def test_exact_networks_of_all_types_are_one_denoiser(scaling):
    """Published conversions from the best prediction of each type to x0, against the coefficients."""
    _, _, x = draw()
    best = two_bumps(x, SIGMAS)
    eps, angle, time = (x - best) / SIGMAS, SIGMAS.atan(), SIGMAS / (1 + SIGMAS)
    network = {
        Epsilon: eps,
        V: angle.cos() * eps - angle.sin() * best,
        Flow: (x - best) / SIGMAS - best,
        EDM: target(scaling, best, x),
    }[type(scaling)]
    c = scaling(SIGMAS)
    torch.testing.assert_close(c.skip * x + c.out * network, best, rtol=0, atol=1e-10)
    if isinstance(scaling, Flow):
        torch.testing.assert_close((1 - time) * x - time * network, best, rtol=0, atol=1e-10)


@pytest.mark.parametrize("data", [0.0, -1.0])
def test_sigma_data_is_positive(data):
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(sigma_data=data)
