import pytest
import torch
from scipy.stats import kstest, norm

from mmdiff.levels import PerPart, given_parts
from mmdiff.schedules import Flow, LogNormal

COUNT = 4000
SHAPES = {1: ((5,), 0), 2: ((2, 6), 1), 3: ((2, 6, 3), 2), 4: ((3, 4, 2, 2), 1)}
every_rank = pytest.mark.parametrize("rank", SHAPES)


def draw(shape, levels, schedule):
    sigma = schedule.draw(COUNT).float()
    return sigma, levels(sigma, torch.zeros(COUNT, *shape), schedule)


@every_rank
def test_levels_vary_along_one_dimension(rank):
    shape, dim = SHAPES[rank]
    _, levels = draw(shape, PerPart(dim=dim), LogNormal())
    expected = [1] * rank
    expected[dim] = shape[dim]
    assert levels.shape == (COUNT, *expected)


@every_rank
@pytest.mark.parametrize("schedule", [LogNormal(), Flow()], ids=["lognormal", "flow"])
def test_shares(rank, schedule):
    shape, dim = SHAPES[rank]
    sigma, levels = draw(shape, PerPart(dim=dim, given=0.3, independent=0.2), schedule)
    levels = levels.flatten(1)
    given = (levels == 0).any(1)
    shared = (levels == sigma[:, None]).all(1)
    independent = ~given & ~shared
    for share, expected in ((given, 0.3), (shared, 0.5), (independent, 0.2)):
        # five standard errors, and the few patterns that would keep everything and so keep nothing
        assert share.float().mean().item() == pytest.approx(expected, abs=0.04)
    assert not (levels == 0).all(1).any()
    kept = levels[given]
    assert ((kept == 0) | (kept == sigma[given, None])).all()


@every_rank
def test_independent_levels_follow_the_schedule(rank):
    shape, dim = SHAPES[rank]
    schedule = LogNormal(mean=0.5, std=0.7)
    _, levels = draw(shape, PerPart(dim=dim, given=0.0, independent=1.0), schedule)
    levels = levels.flatten(1).log()
    for part in levels.T:
        assert kstest(part.numpy(), "norm", args=(0.5, 0.7)).pvalue > 1e-4
    correlation = torch.corrcoef(levels.T) - torch.eye(levels.shape[1])
    assert correlation.abs().max() < 5 / COUNT**0.5


def test_one_level_for_all_when_nothing_else_is_asked():
    sigma, levels = draw((2, 6), PerPart(dim=1, given=0.0, independent=0.0), LogNormal())
    assert torch.equal(levels, sigma[:, None, None].expand(COUNT, 1, 6))


@every_rank
def test_rolling_levels_rise(rank):
    shape, dim = SHAPES[rank]
    schedule = LogNormal(sigma_min=0.01)
    _, levels = draw(shape, PerPart(dim=dim, given=0.0, independent=0.0, rolling=1.0), schedule)
    levels = levels.flatten(1)
    assert (levels.diff(dim=1) >= 0).all()
    assert not (levels == 0).all(1).any()
    assert set(levels[(levels < 0.01) | (levels > 79.99)].tolist()) == {0.0, 80.0}
    at_work = (levels > 0) & (levels < 80)
    assert (at_work.float().mean(0) > 0.1).all()
    assert ((levels[:, 0] == 0) & ~(levels[:, -1] == 0)).float().mean() > 0.01


def test_rates_bound_the_rise():
    """In quantiles of the training levels, where neither end of their range cuts it off."""
    schedule = LogNormal(mean=0.0, std=1.0, sigma_min=1e-4, sigma_max=1e4)
    _, levels = draw((6,), PerPart(dim=0, given=0.0, independent=0.0, rolling=1.0, rates=(0.1, 0.15)), schedule)
    quantile = torch.from_numpy(norm.cdf(levels.double().log().numpy()))
    within = (levels > 1e-3) & (levels < 1e3)
    rise = quantile.diff(dim=1)[within[:, :-1] & within[:, 1:]]
    assert 0.0999 < rise.min() < 0.101
    assert 0.149 < rise.max() < 0.1501


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_given_patterns(parts):
    patterns = {tuple(p) for p in given_parts(COUNT, parts).int().tolist()}
    whole = [tuple(int(i < k) for i in range(parts)) for k in range(1, parts)]
    assert patterns >= set(whole) | {p[::-1] for p in whole}
    if parts == 8:
        assert (1, 0, 0, 0, 0, 0, 0, 1) in patterns
        assert (1, 0, 0, 1, 0, 0, 1, 0) in patterns
    assert (1,) * parts not in patterns


def test_a_single_part_is_never_given():
    assert not given_parts(10, 1).any()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dim": -1}, r"levels\.dim must be a whole number of at least 0, got -1"),
        (
            {"dim": 0, "given": 0.8, "independent": 0.3},
            r"levels\.given 0\.8, levels\.independent 0\.3, levels\.rolling 0$",
        ),
        ({"dim": 0, "given": -0.1}, r"levels\.given -0\.1, levels\.independent 0\.2"),
        ({"dim": 0, "rates": (0.3, 0.2)}, r"levels\.rates must be two numbers.*got \(0\.3, 0\.2\)"),
        ({"dim": 0, "rates": (0.3,)}, r"levels\.rates must be two numbers"),
    ],
)
def test_mistakes(options, named):
    with pytest.raises(ValueError, match=named):
        PerPart(**options)
