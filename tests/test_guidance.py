import math
from functools import partial

import pytest
import torch

from closed_forms import SIZES, two_bumps
from mmdiff.guidance import (
    adaptive_projected,
    autoguidance,
    classifier_free,
    composed,
    conditional,
    dynamic_thresholding,
    join,
    weighted,
)
from mmdiff.solvers import ancestral, dpmpp_2m, euler, heun
from mmdiff.types import Context


class Shifted:
    """Exact denoiser of elements around +-1, plus the context's first number; remembers its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, context):
        self.calls.append((len(x), sigma))
        ones = [1] * (x.ndim - 1)
        level = torch.as_tensor(sigma)
        if level.ndim == 1:
            level = level.reshape(-1, *ones)
        move = context.vector[:, 0].reshape(-1, *ones)
        return two_bumps(x - move, level) + move


def contexts(batch):
    return Context(vector=torch.arange(1.0, batch + 1)[:, None]), Context(vector=torch.zeros(batch, 1))


def sigmas_of(kind, batch, rank):
    generator = torch.Generator().manual_seed(0)
    size = SIZES[rank]
    return {
        "scalar": torch.tensor(0.7),
        "per_example": torch.rand(batch, generator=generator) + 0.1,
        "per_part": torch.rand(1, *size[:-1], size[-1], generator=generator) + 0.1,
        "per_part_and_example": torch.rand(batch, *[1] * (rank - 2), size[-1], generator=generator) + 0.1,
    }[kind]


KINDS = ["scalar", "per_example", "per_part", "per_part_and_example"]


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_formula(rank, batch, kind, scale):
    x, sigma = torch.randn(batch, *SIZES[rank]), sigmas_of(kind, batch, rank)
    asked, null = contexts(batch)
    denoise = Shifted()
    yes, no = denoise(x, sigma, asked), denoise(x, sigma, null)
    got = classifier_free(denoise, asked, null, scale=scale)(x, sigma)
    # Ho & Salimans 2022, equation 6, with w = scale - 1.
    torch.testing.assert_close(got, scale * yes - (scale - 1) * no)
    assert [n for n, _ in denoise.calls[2:]] == [2 * batch]


@pytest.mark.parametrize("kind", KINDS)
def test_scale_1_is_the_conditional_estimate_at_its_price(kind):
    x, sigma = torch.randn(3, *SIZES[4]), sigmas_of(kind, 3, 4)
    asked, null = contexts(3)
    denoise = Shifted()
    expected = denoise(x, sigma, asked)
    assert torch.equal(classifier_free(denoise, asked, null, scale=1.0)(x, sigma), expected)
    assert torch.equal(conditional(denoise, asked, null)(x, sigma), expected)
    assert [n for n, _ in denoise.calls] == [3, 3, 3]


@pytest.mark.parametrize(("sigma", "acts"), [(0.1, False), (0.5, False), (0.51, True), (2.0, True), (2.01, False)])
def test_the_interval_is_open_below_and_closed_above(sigma, acts):
    x = torch.randn(3, 4)
    asked, null = contexts(3)
    denoise = Shifted()
    guide = classifier_free(denoise, asked, null, scale=3.0, interval=(0.5, 2.0))
    level = torch.tensor(sigma, dtype=torch.float64)
    got = guide(x, level)
    assert [n for n, _ in denoise.calls] == [6 if acts else 3]
    yes, no = denoise(x, level, asked), denoise(x, level, null)
    torch.testing.assert_close(got, 3 * yes - 2 * no if acts else yes)


@pytest.mark.parametrize("kind", ["per_example", "per_part"])
def test_the_interval_is_each_examples_own(kind):
    """By the highest level of its parts; what happens to an example does not depend on the others."""
    levels = torch.tensor([0.2, 1.0, 5.0])
    sigma = levels if kind == "per_example" else levels[:, None] * torch.tensor([0.1, 1.0, 0.5, 0.01])
    x = torch.randn(3, 4)
    asked, null = contexts(3)
    got = classifier_free(Shifted(), asked, null, scale=3.0, interval=(0.5, 2.0))(x, sigma)
    yes, no = Shifted()(x, sigma, asked), Shifted()(x, sigma, null)
    torch.testing.assert_close(got, torch.stack([yes[0], 3 * yes[1] - 2 * no[1], yes[2]]))


def test_history_moves_towards_what_follows_from_the_given_part():
    """A pair of Gaussian numbers, the first given: from its own guess of the second to one that knows the first."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)

    def denoise(x, sigma, context):
        noise = torch.diag_embed(sigma.expand_as(x) ** 2)
        return (covariance @ torch.linalg.solve(covariance + noise, x[..., None]))[..., 0]

    x = torch.tensor([[1.5, -0.4], [-0.3, 0.9]], dtype=torch.float64)
    level = 0.7
    sigma = torch.tensor([[0.0, level]], dtype=torch.float64)
    # The regression of the second on the first has slope .8 and leaves a variance of .36.
    mean = 0.8 * x[:, 0]
    knowing = mean + 0.36 / (0.36 + level**2) * (x[:, 1] - mean)
    alone = x[:, 1] / (1 + level**2)
    empty = Context()
    for scale in (0.0, 1.0, 2.5):
        got = classifier_free(denoise, empty, empty, scale=scale, history=1e6)(x, sigma)
        torch.testing.assert_close(got[:, 1], alone + scale * (knowing - alone), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[:, 0], x[:, 0])
    seen = classifier_free(denoise, empty, empty, scale=2.5)(x, sigma)
    torch.testing.assert_close(seen[:, 1], knowing)
    one = classifier_free(denoise, empty, empty, scale=2.5, history=3.0)(x[1:], sigma)
    torch.testing.assert_close(classifier_free(denoise, empty, empty, scale=2.5, history=3.0)(x, sigma)[1:], one)


def test_history_of_a_state_at_one_level_is_none():
    x, (asked, null) = torch.randn(3, 4), contexts(3)
    level = torch.tensor(0.7)
    expected = classifier_free(Shifted(), asked, null, scale=3.0)(x, level)
    assert torch.equal(classifier_free(Shifted(), asked, null, scale=3.0, history=80.0)(x, level), expected)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescale_pulls_back_the_standard_deviation(rank, rescale):
    x, sigma = torch.randn(3, *SIZES[rank]), torch.tensor(0.8)
    asked, null = contexts(3)
    free = classifier_free(Shifted(), asked, null, scale=4.0)(x, sigma)
    got = classifier_free(Shifted(), asked, null, scale=4.0, rescale=rescale)(x, sigma)
    std = [t.flatten(1).std(1) for t in (got, free, Shifted()(x, sigma, asked))]
    torch.testing.assert_close(std[0], (1 - rescale) * std[1] + rescale * std[2])
    # It scales, and does nothing else.
    torch.testing.assert_close((got / free).flatten(1).std(1), torch.zeros(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 1.0])
def test_held_parts_are_exact(rescale):
    x = torch.randn(3, 2, 5)
    held = torch.tensor([True, False, True, False, False])
    asked, null = contexts(3)

    def denoise(x, sigma, context):
        return torch.where(sigma == 0, x, Shifted()(x, sigma, context))

    guide = classifier_free(denoise, asked, null, scale=5.0, rescale=rescale)
    got = guide(x, torch.where(held, 0.0, 1.5).reshape(1, 1, 5))
    assert torch.equal(got[..., held], x[..., held])
    assert not torch.isclose(got[..., ~held], x[..., ~held]).all()
    for solver in (euler, heun, dpmpp_2m, ancestral):
        sigmas = torch.tensor([3.0, 1.0, 0.2, 0.0]).reshape(-1, 1, 1, 1) * ~held
        *_, last = solver(guide, x, sigmas)
        assert torch.equal(last.x[..., held], x[..., held])
        assert last.x.isfinite().all()


def test_guidance_composes_with_what_it_returns():
    """A guided denoiser is a denoiser: guiding it again by the same contexts multiplies the scales."""
    x, sigma = torch.randn(2, 4), torch.tensor(0.8)
    asked, null = contexts(2)
    denoise = Shifted()

    def guided(x, sigma, context):
        return classifier_free(denoise, context, join(null, null), scale=2.0)(x, sigma)

    got = classifier_free(guided, asked, null, scale=3.0)(x, sigma)
    torch.testing.assert_close(got, classifier_free(denoise, asked, null, scale=6.0)(x, sigma))


def test_guidance_moves_gaussian_samples_to_the_product_law():
    """With linear exact denoisers the guided flow is linear too: its end point by quadrature of the same ODE."""
    std, mean, scale = 1.0, 2.0, 3.0

    def denoise(x, sigma, context):
        move = mean * context.vector[:, :1].to(x)
        return move + std**2 / (std**2 + float(sigma) ** 2) * (x - move)

    guide = classifier_free(denoise, *contexts(1), scale=scale)
    x = torch.zeros(1, 1, dtype=torch.float64)
    sigmas = torch.linspace(10, 0, 401, dtype=torch.float64)
    *_, last = heun(guide, x, sigmas)
    # D = move + std^2 / (std^2 + s^2) (x - move) with move = scale * mean, so the Gaussian's closed form holds.
    expected = scale * mean * (1 - std / math.hypot(std, 10.0))
    assert last.x.item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_several_conditions_add_up_in_one_call(rank, kind):
    x, sigma = torch.randn(3, *SIZES[rank]), sigmas_of(kind, 3, rank)
    first, null = contexts(3)
    second = Context(vector=-2 * first.vector)
    denoise = Shifted()
    got = composed(denoise, [first, second], null, scales=[3.0, 0.5])(x, sigma)
    assert [n for n, _ in denoise.calls] == [9]
    a, b, none = (denoise(x, sigma, context) for context in (first, second, null))
    torch.testing.assert_close(got, none + 3 * (a - none) + 0.5 * (b - none))
    alone = composed(denoise, [first], null, scales=[3.0])(x, sigma)
    torch.testing.assert_close(alone, classifier_free(denoise, first, null, scale=3.0)(x, sigma))


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_projected_guidance_moves_across_the_estimate(rank, kind):
    x, sigma = torch.randn(3, *SIZES[rank]), sigmas_of(kind, 3, rank)
    asked, null = contexts(3)
    denoise = Shifted()
    yes, no = denoise(x, sigma, asked), denoise(x, sigma, null)
    got = adaptive_projected(denoise, asked, null, scale=4.0)(x, sigma)
    assert [n for n, _ in denoise.calls[2:]] == [6]
    for moved, one, other in zip((got - yes).flatten(1), yes.flatten(1), no.flatten(1), strict=True):
        assert moved @ one == pytest.approx(0, abs=1e-3)
        left = torch.linalg.lstsq(one[:, None], (3 * (one - other))[:, None])
        torch.testing.assert_close(moved, 3 * (one - other) - one * left.solution[0, 0], rtol=1e-3, atol=1e-4)
    whole = adaptive_projected(denoise, asked, null, scale=4.0, parallel=1.0)(x, sigma)
    torch.testing.assert_close(whole, classifier_free(denoise, asked, null, scale=4.0)(x, sigma))
    near = adaptive_projected(denoise, asked, null, scale=2.0, parallel=1.0, radius=0.1)(x, sigma)
    assert (near - yes).flatten(1).norm(dim=1).max() <= 0.1 * (1 + 1e-4)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_autoguidance_moves_away_from_the_weaker_estimate(rank, kind, scale):
    x, sigma = torch.randn(3, *SIZES[rank]), sigmas_of(kind, 3, rank)
    asked, null = contexts(3)
    strong, other = Shifted(), Shifted()
    weak = partial(other, context=Context(vector=asked.vector / 2))
    expected = scale * strong(x, sigma, asked) + (1 - scale) * weak(x, sigma)
    torch.testing.assert_close(autoguidance(strong, asked, null, weak=weak, scale=scale)(x, sigma), expected)
    assert len(strong.calls) == 2
    assert len(other.calls) == 1 + (scale != 1)


def test_autoguidance_of_gaussians_narrows_their_flow():
    """The scores of N(0, 1) and of a wider Gaussian, in a line, have a flow whose end is a product of powers."""
    scale, std, wide, top = 2.0, 1.0, 1.5, 10.0

    def gaussian(std):
        return lambda x, sigma, context=None: std**2 / (std**2 + sigma**2) * x

    guide = autoguidance(gaussian(std), *contexts(1), weak=gaussian(wide), scale=scale)
    x = torch.tensor([[4.0], [-7.0]], dtype=torch.float64)
    *_, last = heun(guide, x, torch.linspace(top, 0, 801, dtype=torch.float64))
    shrunk = (std / math.hypot(std, top)) ** scale * (wide / math.hypot(wide, top)) ** (1 - scale)
    torch.testing.assert_close(last.x, shrunk * x, rtol=1e-3, atol=0)
    assert shrunk < std / math.hypot(std, top)


@pytest.mark.parametrize("rank", SIZES)
def test_thresholding_pulls_in_what_guidance_drove_out(rank):
    x, sigma = torch.randn(3, *SIZES[rank]), torch.tensor(0.8)
    asked, null = contexts(3)
    guidance = partial(classifier_free, scale=6.0)
    free = guidance(Shifted(), asked, null)(x, sigma)
    bound = partial(dynamic_thresholding, Shifted(), asked, null, guidance=guidance)
    got = bound(least=1.5, quantile=0.9)(x, sigma)
    for one, other in zip(got.flatten(1), free.flatten(1), strict=True):
        size = max(1.5, other.abs().sort().values[math.ceil(0.9 * len(other)) - 1].item())
        torch.testing.assert_close(one, other.clamp(-size, size) * 1.5 / size)
    assert got.abs().max() <= 1.5 * (1 + 1e-6)
    torch.testing.assert_close(bound(least=1e3)(x, sigma), free)


@pytest.mark.parametrize(
    "guidance",
    [
        partial(adaptive_projected, scale=3.0),
        partial(autoguidance, weak=lambda x, sigma: two_bumps(x, sigma) + 1, scale=3.0),
        partial(dynamic_thresholding, guidance=partial(classifier_free, scale=3.0), least=0.5),
        lambda denoise, asked, null: weighted([conditional(denoise, asked, null)] * 3, torch.full((3, 3), 1 / 3)),
        lambda denoise, asked, null: composed(denoise, [asked, asked], null, scales=[1.0, 2.0]),
    ],
)
def test_held_parts_stay_as_they_are(guidance):
    x, held = torch.randn(3, 2, 5), torch.tensor([True, False, True, False, False])

    def denoise(x, sigma, context):
        return torch.where(sigma == 0, x, Shifted()(x, sigma, context))

    got = guidance(denoise, *contexts(3))(x, torch.where(held, 0.0, 1.5).reshape(1, 1, 5))
    assert torch.equal(got[..., held], x[..., held])


def test_join_keeps_the_structure():
    first = Context(
        vector=torch.zeros(2, 3), tokens=torch.zeros(2, 4, 5), token_mask=torch.ones(2, 4, dtype=torch.bool)
    )
    second = Context(
        vector=torch.ones(2, 3), tokens=torch.ones(2, 4, 5), token_mask=torch.zeros(2, 4, dtype=torch.bool)
    )
    both = join(first, second)
    assert both.dense is None
    for a, b, joined in zip(first[:3], second[:3], both[:3], strict=True):
        assert torch.equal(joined[:2], a)
        assert torch.equal(joined[2:], b)
    assert join(Context(), Context()) == Context()


def test_join_pads_the_shorter_tokens():
    short, long = torch.ones(2, 1, 3), torch.ones(2, 4, 3)
    known = torch.tensor([[True, True, True, False]] * 2)
    both = join(Context(tokens=long, token_mask=known), Context(tokens=short))
    assert both.tokens.shape == (4, 4, 3)
    assert both.token_mask.tolist() == [[True, True, True, False]] * 2 + [[True, False, False, False]] * 2


@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.5, 1.0]), torch.full((2, 1, 1), 0.7)])
def test_a_weighted_mean_of_guided_denoisers_is_composed_guidance(sigma):
    """With weights that add up to 1: the scale is shared out."""
    asked = [Context(vector=torch.tensor([[1.0], [2.0]])), Context(vector=torch.tensor([[-1.0], [0.5]]))]
    null = Context(vector=torch.zeros(2, 1))
    x, weights = torch.randn(2, 3, 4), torch.tensor([0.3, 0.7])
    guided = [classifier_free(Shifted(), context, null, scale=2.5) for context in asked]
    got = weighted(guided, weights[:, None].expand(2, 2))(x, sigma)
    expected = composed(Shifted(), asked, null, scales=(2.5 * weights).tolist())(x, sigma)
    torch.testing.assert_close(got, expected)


def test_weights_are_those_of_each_example():
    guided = [lambda x, sigma, value=value: torch.full_like(x, value) for value in (1.0, 3.0)]
    got = weighted(guided, torch.tensor([[1.0, 0.25], [0.0, 0.75]]))(torch.zeros(2, 1, 2), torch.tensor(1.0))
    assert got[:, 0, 0].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"interval": (1.0, 1.0)}, "interval"), ({"interval": (2.0, 1.0)}, "interval"), ({"rescale": 1.5}, "rescale")],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"guidance.{name}"):
        partial(classifier_free, Shifted(), *contexts(1), scale=2.0)(**arguments)


@pytest.mark.parametrize(
    ("guidance", "arguments", "name"),
    [
        (adaptive_projected, {"scale": 2.0, "radius": 0.0}, "radius"),
        (dynamic_thresholding, {"guidance": conditional, "least": 0.0}, "least"),
        (dynamic_thresholding, {"guidance": conditional, "least": 1.0, "quantile": 0.0}, "quantile"),
    ],
)
def test_bad_arguments_of_the_others_are_named(guidance, arguments, name):
    with pytest.raises(ValueError, match=f"guidance.{name}"):
        guidance(Shifted(), *contexts(1), **arguments)


def test_several_conditions_need_as_many_scales():
    with pytest.raises(ValueError, match=r"guidance\.scales .* 2 contexts"):
        composed(Shifted(), contexts(1), contexts(1)[1], scales=[1.0])
