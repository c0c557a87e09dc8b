"""Figures of nearest neighbors: against loops that follow the words, and on sets whose answer is known."""

import math

import pytest
import torch

from mmdiff.metrics.neighbors import (
    Neighbors,
    coverage,
    minimum_matching_distance,
    nearest_neighbor_accuracy,
)


def draw(n, seed, shift=0.0, size=2):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + shift


def euclidean(x, y):
    return torch.cdist(x.flatten(1), y.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")


def figures(real, fake):
    metric = Neighbors(euclidean)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return {name: value.item() for name, value in metric.compute().items()}


def brute_force(rr, rg, gg):
    """Accuracy, coverage and matching distance, one medium at a time; no ties."""
    r, g = len(rg), len(rg[0])
    right_real = sum(min(rr[i][j] for j in range(r) if j != i) < min(rg[i]) for i in range(r))
    right_fake = sum(min(gg[i][j] for j in range(g) if j != i) < min(row[i] for row in rg) for i in range(g))
    covered = {min(range(r), key=lambda i, j=j: rg[i][j]) for j in range(g)}
    return (right_real / r + right_fake / g) / 2, len(covered) / r, sum(map(min, rg)) / r


@pytest.mark.parametrize(("r", "g"), [(2, 2), (3, 8), (30, 30), (40, 25)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_loops_over_media_agree(r, g, shift):
    real, fake = draw(r, 0), draw(g, 1, shift)
    rr, rg, gg = euclidean(real, real), euclidean(real, fake), euclidean(fake, fake)
    accuracy, covered, matching = brute_force(rr.tolist(), rg.tolist(), gg.tolist())
    assert nearest_neighbor_accuracy(rr, rg, gg).item() == pytest.approx(accuracy)
    assert coverage(rg).item() == pytest.approx(covered)
    assert minimum_matching_distance(rg).item() == pytest.approx(matching)


def test_any_distances_will_do_and_diagonals_are_not_read():
    generator = torch.Generator().manual_seed(0)
    rr, rg, gg = (torch.rand(9, 9, generator=generator) for _ in range(3))
    accuracy, _, _ = brute_force(rr.tolist(), rg.tolist(), gg.tolist())
    for value in (0.0, math.nan):
        rr.fill_diagonal_(value), gg.fill_diagonal_(value)
        assert nearest_neighbor_accuracy(rr, rg, gg).item() == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("real", "fake", "accuracy"),
    [
        ([0.0, 10, 20], [0.0, 10, 20], 0.0),
        ([0.0, 0, 10, 10], [0.0, 0, 10, 10], 1 / 3),
        ([0.0, 0, 50, 50], [10.0, 10, 60, 60], 1.0),
        ([0.0, 2, 4, 6], [1.0, 3, 5, 7], 0.0),
        ([0.0, 3], [0.0, 3], 0.0),
        ([0.0, 1, 2], [-1.0, 3, 50], (1 / 2 + 1 + 1 / 2 + 0 + 0 + 1) / 6),
    ],
    ids=["copies", "copies of pairs", "pairs apart", "alternating", "two copies", "ties on a line"],
)
def test_ties_count_by_their_share_in_any_order(real, fake, accuracy):
    real, fake = torch.tensor(real)[:, None], torch.tensor(fake)[:, None]
    for x, y in ((real, fake), (real.flip(0), fake), (fake, real)):
        assert figures(x, y)["one_nna"] == pytest.approx(accuracy)


def test_all_real_media_that_are_equally_near_are_covered():
    real, fake = torch.tensor([0.0, 0, 5, 9])[:, None], torch.tensor([0.1, 6.9, 7.0])[:, None]
    assert figures(real, fake)["coverage"] == 1
    assert figures(real, fake[:2])["coverage"] == 0.75


@pytest.mark.parametrize(("r", "g"), [(60, 60), (40, 120)])
def test_equal_distributions_cannot_be_told_apart(r, g):
    """The one left out makes a set look smaller than it is: (r + g - 2) / (2 (r + g - 1)) is the expectation."""
    values = [figures(draw(r, 2 * seed), draw(g, 2 * seed + 1)) for seed in range(40)]
    got = torch.tensor([value["one_nna"] for value in values])
    assert abs(got.mean() - (r + g - 2) / (2 * (r + g - 1))) < 3 * got.std() / math.sqrt(40)
    assert got.mean() == pytest.approx(0.5, abs=0.02)
    if r == g:
        assert got.std() == pytest.approx(sum(value["one_nna_se"] for value in values) / 40, rel=0.5)
        assert 0.5 < sum(value["coverage"] for value in values) / 40 < 0.7


def test_what_each_figure_sees():
    real, fresh = draw(100, 0), draw(100, 1)
    plain = figures(real, fresh)
    noisy = figures(real, fresh + draw(100, 2))
    collapsed = figures(real, fresh[:10].repeat_interleave(10, 0) + 1e-3 * draw(100, 3))
    memorized = figures(real, real + 1e-3 * draw(100, 4))
    apart = figures(real, fresh + 100)
    assert noisy["one_nna"] > plain["one_nna"] + 3 * plain["one_nna_se"]
    assert collapsed["coverage"] < plain["coverage"] / 2
    assert collapsed["one_nna"] > 0.8
    assert memorized["one_nna"] < 0.25
    assert memorized["coverage"] > 0.95
    assert memorized["mmd"] < plain["mmd"] / 20
    assert (apart["one_nna"], apart["one_nna_se"], apart["coverage"]) == (1, 0, pytest.approx(0.01))


def test_each_matrix_is_computed_once_and_a_set_with_itself_as_one_object():
    calls = []

    def distance(x, y):
        calls.append((len(x), len(y), x is y))
        return euclidean(x, y)

    metric = Neighbors(distance)
    for part in draw(12, 0).split(5):
        metric.update(part, real=True, cond={"kind": [None] * len(part)})
    for part in draw(9, 1).split(2):
        metric.update(part, real=False)
    assert metric.compute()["one_nna"].item() == figures(draw(12, 0), draw(9, 1))["one_nna"]
    assert sorted(calls) == [(9, 9, True), (12, 9, False), (12, 12, True)]
    metric.reset()
    assert metric.real == metric.fake == []


@pytest.mark.parametrize(("r", "g"), [(5, 0), (0, 5), (5, 1), (1, 5)])
def test_fewer_than_two_media_have_no_neighbors(r, g):
    metric = Neighbors(euclidean)
    for count, real in ((r, True), (g, False)):
        if count:
            metric.update(draw(count, 0), real=real)
    assert all(math.isnan(value) for value in metric.compute().values())


def test_media_of_another_shape_are_refused():
    metric = Neighbors(euclidean)
    metric.update(draw(3, 0), real=True)
    with pytest.raises(ValueError, match=r"real media must be of one shape, \(2,\), got \(3,\)"):
        metric.update(draw(3, 0, size=3), real=True)
    metric.update(draw(3, 0, size=3), real=False)
