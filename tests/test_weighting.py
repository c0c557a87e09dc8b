import math

import pytest
import torch

from mmdiff import scaling
from mmdiff.weighting import EDM, MinSNR, Sigmoid, Uniform

SIGMAS = torch.tensor([1e-2, 0.1, 0.5, 1.0, 3.0, 80.0], dtype=torch.float64)
SNR = SIGMAS**-2
WEIGHTINGS = [Uniform(), EDM(), EDM(sigma_data=0.5), MinSNR(), Sigmoid(), Sigmoid(bias=-3.0)]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positive_finite_and_of_sigmas_shape(weighting, dtype):
    sigma = torch.logspace(-4, 4, 24, dtype=dtype).reshape(2, 3, 4)
    weight = weighting(sigma)
    assert weight.shape == sigma.shape
    assert weight.dtype == dtype
    assert (weight > 0).all()
    assert weight.isfinite().all()


def test_uniform():
    assert torch.equal(Uniform()(SIGMAS), torch.ones_like(SIGMAS))


@pytest.mark.parametrize("data", [1.0, 0.5, 2.0])
def test_edm_is_snr_plus_constant_and_native_to_edm(data):
    weight = EDM(sigma_data=data)(SIGMAS)
    torch.testing.assert_close(weight, SNR + 1 / data**2)
    torch.testing.assert_close(weight, scaling.EDM(sigma_data=data)(SIGMAS).out ** -2)


@pytest.mark.parametrize(
    ("kind", "native"),
    [(scaling.Epsilon, SNR), (scaling.V, SNR + 1), (scaling.Flow, (1 + SNR.sqrt()) ** 2)],
)
def test_native_weights_in_terms_of_snr(kind, native):
    torch.testing.assert_close(kind()(SIGMAS).out ** -2, native)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_clamps(gamma):
    expected = [min(1 / s**2, gamma) for s in SIGMAS.tolist()]
    torch.testing.assert_close(MinSNR(gamma=gamma)(SIGMAS), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_sigmoid_weighs_the_error_of_eps_by_a_half_at_its_bias(bias):
    weighting = Sigmoid(bias=bias)
    log_snr = -2 * SIGMAS.log()
    # The squared error of eps is SNR times that of x0.
    torch.testing.assert_close(weighting(SIGMAS) / SNR, 1 / (1 + torch.exp(log_snr - bias)))
    half = torch.tensor(math.exp(-bias / 2), dtype=torch.float64)
    assert (weighting(half) * half**2).item() == pytest.approx(0.5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="gamma"):
        MinSNR(gamma=0.0)
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(sigma_data=0.0)
