"""Solvers fitted to a model: the method, the fit against closed forms, and the command."""

import json
import math
from functools import partial

import pytest
import torch

from closed_forms import SIZES, Correlated, gaussian_flow, two_bumps
from mmdiff.denoiser import expand_sigma
from mmdiff.errors import DataError
from mmdiff.sampling import staggered
from mmdiff.schedules import Angular, Flow, Karras
from mmdiff.solvers import dpmpp_2m, tuned
from mmdiff.solvers.tuned import read, write
from mmdiff.testing import check_solver
from mmdiff.tuning import UNTUNED, Paths, best_untuned, coefficients, errors, fit, follow

GRID = Flow(sigma_max=20.0).grid(5)


def end(solver, denoise, x, sigmas):
    *_, last = solver(denoise, x, sigmas)
    return last.x


@pytest.fixture
def five(tmp_path):
    """A file with the coefficients of a solver of five steps from sigma = 20."""
    write(coefficients(UNTUNED["angular order=2"], GRID), tmp_path / "five.json", note="untuned")
    return tmp_path / "five.json"


# The method


@pytest.mark.parametrize("name", UNTUNED)
@pytest.mark.parametrize("rank", SIZES)
def test_every_multistep_solver_is_one_of_its_points(name, rank, tmp_path):
    x = 20 * torch.randn(3, *SIZES[rank], dtype=torch.float64)
    write(coefficients(UNTUNED[name], GRID), tmp_path / "file")
    steps = list(tuned(two_bumps, x, GRID, file=tmp_path / "file"))
    for got, expected in zip(steps, UNTUNED[name](two_bumps, x, GRID, torch.randn_like), strict=True):
        torch.testing.assert_close(got.x, expected.x)
        torch.testing.assert_close(got.x0, expected.x0)
        torch.testing.assert_close(got.sigma, expected.sigma)


def test_it_keeps_the_contract_of_a_solver(tmp_path):
    write(coefficients(dpmpp_2m, Karras().grid(64)), tmp_path / "file")
    check_solver(partial(tuned, file=tmp_path / "file"))


def test_a_file_says_what_it_holds(five):
    content = json.loads(five.read_text())
    assert content["steps"] == 5
    assert content["note"] == "untuned"
    torch.testing.assert_close(torch.tensor(content["sigmas"]).double(), GRID)
    c = read(five)
    original = coefficients(UNTUNED["angular order=2"], GRID)
    torch.testing.assert_close(c.weights, original.weights, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_at_zero_are_held_and_the_others_do_not_notice(five, dtype):
    x, held = 20 * torch.randn(3, 2, 5, dtype=dtype), torch.tensor([True, False, True, False, False])
    sigmas = GRID.to(dtype)[:, None, None, None] * ~held
    for step in tuned(two_bumps, x, sigmas, file=five):
        assert torch.equal(step.x[..., held], x[..., held])
        assert torch.equal(step.sigma.expand_as(x) == 0, (step.sigma.expand_as(x) == 0) | held)
    alone = end(partial(tuned, file=five), two_bumps, x[..., ~held], GRID)
    torch.testing.assert_close(step.x[..., ~held], alone)
    per_example = torch.stack([GRID, GRID, GRID], 1).to(dtype)
    together = end(partial(tuned, file=five), lambda x, s: two_bumps(x, expand_sigma(s, x)), x, per_example)
    torch.testing.assert_close(together[..., ~held], alone)


@pytest.mark.parametrize(
    ("sigmas", "named"),
    [
        (Flow(sigma_max=20.0).grid(6), r"steps must be 5 .*five\.json, got 6"),
        (Flow(sigma_max=30.0).grid(5), r"five\.json goes from sigma 20 to 0, the schedule from 30 to 0; set schedule"),
        (Flow(sigma_max=20.0).quantile(torch.linspace(1, 0.1, 6)), r"the schedule from 20 to 0\.1"),
        (staggered(Flow(sigma_max=20.0).grid(4), 2, 1)[:, None], r"five\.json .* levels that differ .*lag"),
        (torch.stack([GRID, GRID / 2], 1)[:, None], r"five\.json .* levels that differ"),
    ],
)
def test_what_it_was_not_fitted_for_is_refused(five, sigmas, named):
    with pytest.raises(ValueError, match=named):
        list(tuned(two_bumps, torch.randn(1, 2), sigmas, file=five))


@pytest.mark.parametrize(
    "content", [None, "{", "{}", "[1]", '{"sigmas": [1, 2, 0], "weights": [[1], [1, 2], [1, 2, 3]]}']
)
def test_a_file_that_is_none_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=r"bad\.json: holds no solver that mmdiff tune wrote"):
        list(tuned(two_bumps, torch.randn(1, 2), GRID, file=tmp_path / "bad.json"))


# The fit


def test_the_flow_of_a_gaussian_is_linear_so_that_one_step_is_enough():
    mean, std = 0.0, 0.4

    def denoise(x, sigma):
        return std**2 / (std**2 + float(sigma) ** 2) * x

    def paths(n):
        x = 20 * torch.randn(n, 3, dtype=torch.float64)
        return [Paths(denoise, x, gaussian_flow(x, 20.0, 0.0, mean, std))]

    training, held_out = paths(8), paths(8)
    for steps in (1, 3):
        name, untuned = best_untuned(Karras(sigma_max=20.0), steps, training)
        c = fit(untuned, training, 20)
        assert errors(c, held_out).max() < 1e-6 < errors(untuned, training).median(), name


def trajectories(size):
    """Of the exact denoiser, by a reference that shares nothing with the solvers; others to check on."""
    mixture = Correlated(size, seed=3)
    generator = torch.Generator().manual_seed(7)
    x = 1e3 * torch.randn(256, size, dtype=torch.float64, generator=generator)
    ends = mixture.flow(x, 1e3)
    return [Paths(mixture, x[:96], ends[:96])], [Paths(mixture, x[96:], ends[96:])]


@pytest.fixture(scope="module")
def problem():
    return trajectories(2)


def check_ahead(training, held_out, steps, iterations):
    _, untuned = best_untuned(Flow(), steps, held_out)
    _, initial = best_untuned(Flow(), steps, training)
    c = fit(initial, training, iterations)
    assert errors(c, held_out).median() < 0.3 * errors(untuned, held_out).median()
    return c


@pytest.mark.slow
def test_a_tuned_solver_is_ahead_in_64_dimensions():
    training, held_out = trajectories(64)
    for steps in (5, 8):
        check_ahead(training, held_out, steps, 15)


@pytest.mark.parametrize(("steps", "iterations"), [(5, 10), (8, 8)])
def test_a_tuned_solver_is_ahead_of_the_best_untuned_one_on_other_trajectories(problem, steps, iterations):
    c = check_ahead(*problem, steps, iterations)
    assert (c.angles.diff() < 0).all()
    assert c.angles[0] == pytest.approx(math.atan(1e3))
    assert c.angles[-1] == 0


def test_errors_are_those_of_the_solver(problem, tmp_path):
    (p,), _ = problem
    c = coefficients(UNTUNED["angular"], Angular(sigma_min=0.0, sigma_max=1e3).grid(6))
    write(c, tmp_path / "file")
    x = end(partial(tuned, file=tmp_path / "file"), p.denoise, p.x, Flow().grid(6))
    torch.testing.assert_close(errors(c, [p]), (x - p.end).square().mean(1).sqrt())


def test_reference_trajectories_are_accurate(problem):
    (p,), _ = problem
    torch.testing.assert_close(follow(p.denoise, p.x, 1e3, 200).end, p.end, rtol=0, atol=1e-4)


# The command


@pytest.fixture(scope="module")
def fitted(checkpoint, command, tmp_path_factory):
    """The folder in which three steps were fitted to the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("tuned")
    asked = ["steps=3", "count=2", "reference=8", "iterations=2", "cond={pitch: [60, 72]}", "schedule.sigma_max=50"]
    ran = command("tune", f"checkpoint={checkpoint}", *asked, "output=new/three.json", folder=folder)
    assert (ran.status, ran.err) == (0, "")
    content = json.loads((folder / "new" / "three.json").read_text())
    (untuned, before), (label, after) = content["median_error"].items()
    assert label == "tuned"
    assert after["training"] <= before["training"]
    for error in (before, after):
        assert f"{error['training']:10.4g} {error['held_out']:10.4g}" in ran.out
    assert untuned in ran.out
    assert content["checkpoint"] == str(checkpoint)
    assert content["run"].endswith("run")
    assert (content["steps"], content["count"], content["cond"]) == (3, 2, {"pitch": [60, 72]})
    assert content["schedule"]["sigma_max"] == 50
    assert content["sigmas"][0] == pytest.approx(50)
    return folder


def test_sampling_with_a_tuned_solver(fitted, checkpoint, command):
    given = [f"checkpoint={checkpoint}", "count=1", "solver=tuned", "solver.file=new/three.json"]
    ran = command("sample", *given, "steps=3", "schedule.sigma_max=50", "output=out", folder=fitted)
    assert (ran.status, ran.err) == (0, "")
    row = json.loads((fitted / "out" / "samples.jsonl").read_text())
    assert row["solver"] == {"name": "tuned", "file": "new/three.json"}
    for options, named in (
        (["steps=4"], "steps must be 3 for the solver in new/three.json, got 4"),
        (["steps=3"], "goes from sigma 50 to 0, the schedule from 80 to 0; set schedule.sigma_max"),
        (["steps=3", "solver.file=none.json"], "none.json: holds no solver that mmdiff tune wrote"),
    ):
        ran = command("sample", *given, *options, folder=fitted)
        assert ran.status == 1
        assert named in ran.err
        assert len(ran.err.splitlines()) <= 3


@pytest.mark.parametrize(("option", "named"), [("steps=0", "steps must be"), ("output=file/x.json", "file")])
def test_mistakes_in_tuning(option, named, checkpoint, command, tmp_path):
    (tmp_path / "file").touch()
    ran = command("tune", f"checkpoint={checkpoint}", "output=x.json", "count=1", option, folder=tmp_path)
    assert ran.status == 1
    assert named in ran.err
    assert len(ran.err.splitlines()) <= 3
