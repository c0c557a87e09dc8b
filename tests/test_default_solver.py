"""What is chosen when nothing is: ahead of the others on every path, nothing tuned."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from closed_forms import Correlated
from mmdiff import plugins
from mmdiff.schedules import Angular, Cosine, Flow, Karras, LinearVP, LogLinear
from mmdiff.solvers import adams_bashforth, angular, deis, dpmpp_2m, dpmpp_3m, rk4, unipc

PATHS = {
    "linear_vp": LinearVP(sigma_min=0.01, sigma_max=157.0),
    "cosine": Cosine(sigma_min=0.01, sigma_max=157.0),
    "edm": Karras(sigma_min=0.002, sigma_max=80.0),
    "flow": Flow(sigma_min=0.002, sigma_max=1e3),
}
OTHERS = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "deis": deis,
    "adams_bashforth_2": partial(adams_bashforth, order=2),
}
"""What other projects have, on some grid. Their Adams-Bashforth of order 3 does not correct its first steps as ours
does: benchmarks/solvers.py has it."""


def option(group, name):
    return instantiate(OmegaConf.load(plugins.core_conf() / group / f"{name}.yaml"))


@pytest.fixture(scope="module")
def default():
    """Solver and schedule of conf/train.yaml."""
    chosen = {}
    for entry in yaml.safe_load((plugins.core_conf() / "train.yaml").read_text())["defaults"]:
        if not isinstance(entry, str):
            chosen |= entry
    return option("solver", chosen["solver"]), option("schedule", chosen["schedule"])


def test_it_is_angular(default):
    solver, schedule = default
    assert solver.func is angular
    assert schedule == Angular(sigma_min=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_default_is_ahead_of_the_others(default, path):
    solver, schedule = default
    mixture = Correlated(64, seed=7011)
    eps = torch.randn(16, 64, generator=torch.Generator().manual_seed(7011), dtype=torch.float64)
    low, high = path.sigma_min, path.sigma_max
    x = (1 + high**2) ** 0.5 * eps
    exact = mixture.flow(x, high)

    def miss(solver, sigmas):
        *_, last = solver(mixture, x, sigmas)
        return (last.x - exact).square().mean(1).sqrt().median().item()

    grids = [path, LogLinear(sigma_min=low, sigma_max=high), Karras(sigma_min=low, sigma_max=high)]
    for steps, most in ((5, 1.0), (8, 1.0), (10, 0.65), (20, 0.65), (50, 1.0)):
        others = [miss(other, grid.grid(steps)) for other in OTHERS.values() for grid in grids]
        if path is PATHS["flow"] and steps > 5:
            others.append(miss(rk4, Flow(sigma_max=high).grid(steps // 4)))
        assert miss(solver, replace(schedule, sigma_max=high).grid(steps)) <= most * min(others), steps
