"""Edits of numbers: a kind of data that the core has never heard of, and a model whose flow is known."""

import json
import math
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from closed_forms import gaussian_flow
from conftest import Numbers
from mmdiff.checkpoint import Model
from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.denoiser import Denoiser
from mmdiff.editing import SAYS, Edit, along, edit_files, edited, invert, keeps_by_levels, spherical
from mmdiff.generation import confining
from mmdiff.inverse import pigdm
from mmdiff.regions import span
from mmdiff.scaling import EDM
from mmdiff.schedules import Karras


class Places(Numbers):
    """Numbers that are named by their place."""

    def part(self, word, media):
        return span(word, {"place": torch.arange(self.size)[None]})


class Movable(Places):
    """Numbers of which new ones must not be negative."""

    def confine(self, media, known):
        return torch.abs


class Gaussian(nn.Module):
    """The network of EDM(1) for data N(m, 1), with m the number that the context says, 0 if it says nothing."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, context):
        sigma = (4 * noise).exp().reshape(-1, *[1] * (x.ndim - 1)) if noise.ndim == 1 else (4 * noise).exp()
        mean = 0 if context.vector is None else context.vector[:, :1, None]
        return mean * sigma / (1 + sigma**2).sqrt() + self.zero * x  # D = (x + sigma^2 m) / (1 + sigma^2)


CONFIG = {
    "modality": {"_target_": "conftest.Numbers", "size": 6, "mean": 0.0, "std": 1.0},
    "schedule": {"_target_": "mmdiff.schedules.Karras"},
    "solver": {"_target_": "mmdiff.solvers.heun", "_partial_": True},
    "guidance": {"_target_": "mmdiff.guidance.conditional", "_partial_": True},
    "steps": 30,
    "lag": 0,
}
LEVELS = {"_target_": "mmdiff.levels.PerPart", "dim": 1}
GIVEN = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])


@pytest.fixture
def model():
    embedder = ClassEmbedder(2, ["low", "high"])
    embedder.table.weight.data[:] = torch.tensor([[-2.0, 0], [2.0, 0], [0, 0]])
    denoiser = Denoiser(Gaussian(), EDM(), Conditioner(2, {"kind": embedder})).eval().requires_grad_(False)
    return Model(denoiser, Places(6), OmegaConf.create(CONFIG))


def trained_with(model, levels):
    return model._replace(config=OmegaConf.merge(model.config, {"levels": levels}))


def made(model, edit, count=3, given=(GIVEN,), cond=None):
    parts = list(edited(model, [cond or {}] * count, given, edit, seed=5, batch_size=max(2, count // 2)))
    assert len({how for _, how in parts}) == 1
    return torch.cat([media for media, _ in parts]), parts[0][1]


@pytest.mark.parametrize("levels", [None, LEVELS])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_kept_parts_come_out_bitwise(model, levels, strength):
    got, how = made(trained_with(model, levels), Edit(keep="place:1:4", strength=strength))
    assert how == ("repaint" if levels is None else "levels")
    assert torch.equal(got[:, :, 1:4], GIVEN[:, 1:4].expand(3, 1, 3))
    rest = got[:, :, [0, 4, 5]]
    assert torch.pdist(rest[:, 0]).min() > 1e-3
    assert not torch.isclose(rest, GIVEN[:, [0, 4, 5]]).any()


@pytest.mark.parametrize("levels", [None, LEVELS])
def test_new_elements_are_confined_and_kept_ones_are_not(model, levels):
    given = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0, 6.0]])
    keep = Edit(keep="place:1:4")
    free, _ = made(trained_with(model, levels), keep, count=8, given=[given])
    assert (free[:, :, [0, 4, 5]] < 0).any()
    confined, _ = made(trained_with(model._replace(modality=Movable(6)), levels), keep, count=8, given=[given])
    assert torch.equal(confined[:, :, 1:4], given[:, 1:4].expand(8, 1, 3))
    assert (confined[:, :, [0, 4, 5]] >= 0).all()


@pytest.mark.parametrize("levels", [None, LEVELS])
def test_confined_elements_do_not_crowd_at_the_border(model, levels):
    """Data N(0, 1) without the negative ones are |N(0, 1)|: of these the tenths begin at 0.13, not at 0.06."""
    movable = trained_with(model._replace(modality=Movable(4000)), levels)
    got, how = made(movable, Edit(keep="place:0:1"), count=1, given=[torch.zeros(1, 4000)])
    assert how == ("repaint" if levels is None else "levels, refined")
    law = torch.distributions.HalfNormal(1.0)
    for share in (0.1, 0.25, 0.5):
        assert got[0, 0, 1:].quantile(share).item() == pytest.approx(law.icdf(torch.tensor(share)).item(), abs=0.06)


def test_what_is_predicted_at_one_level_is_the_mean_outside():
    """Of N(m, s^2) cut off at 0 the mean is m + s phi(m / s) / Phi(m / s)."""
    places = torch.linspace(-1, 3, 9)[None, None]
    kept = torch.zeros(1, 1, 9, dtype=torch.bool)
    confine = confining(Movable(9), [places[0]], "none", kept)
    confined = confine(lambda x, sigma: x / (1 + sigma**2))
    sigma, normal = torch.tensor(0.75, dtype=torch.float64), torch.distributions.Normal(0.0, 1.0)
    x0, spread = places / (1 + sigma**2), sigma / (1 + sigma**2).sqrt()
    hazard = normal.log_prob(x0 / spread).exp() / normal.cdf(x0 / spread)
    torch.testing.assert_close(confined(places, sigma), (x0 + spread * hazard).float(), rtol=0, atol=0.05)
    assert torch.equal(confined(places, sigma.float().expand(1, 1, 9)), x0.float().abs())


def test_refining_is_for_elements_that_can_move_and_can_be_left_out(model):
    per_part = trained_with(model, LEVELS)
    movable = per_part._replace(modality=Movable(6))
    keep = partial(Edit, keep="place:1:4", repeats=2)
    plain, how = made(movable, keep(refine=0.0))
    assert how == made(per_part, keep())[1] == "levels"
    refined, how = made(movable, keep())
    assert how == "levels, refined"
    assert torch.equal(refined[:, :, 1:4], plain[:, :, 1:4])
    assert not torch.isclose(refined[:, :, [0, 4, 5]], plain[:, :, [0, 4, 5]]).any()
    slightly, _ = made(movable, keep(strength=0.05))
    torch.testing.assert_close(slightly, GIVEN.expand(3, 1, 6), rtol=0, atol=0.1)


def test_the_method_follows_the_training_and_can_be_chosen(model):
    per_part = trained_with(model, LEVELS)
    keep = partial(Edit, keep="place:1:4")
    assert made(per_part, keep(method="repaint"))[1] == "repaint, asked"
    assert made(model, keep(method="levels"))[1] == "levels, untrained"
    assert set(SAYS) >= {"repaint", "levels", "repaint, asked", "levels, untrained"}


def test_masks_along_the_parts_of_the_training():
    frames = torch.tensor([True, False, False, True])[None, None, :, None].expand(2, 1, 4, 3)
    columns = torch.tensor([True, False, False])[None, None, None].expand(2, 1, 4, 3)
    assert torch.equal(along(frames, [1]), frames[..., :1])
    assert along(frames & columns, [1]) is None
    assert torch.equal(along(frames & columns, [1, 2]), frames & columns)
    config = OmegaConf.create({"levels": LEVELS})
    assert keeps_by_levels(config, frames).shape == (2, 1, 4, 1)
    assert keeps_by_levels(config, columns) is None
    assert keeps_by_levels(OmegaConf.create({"levels": None}), frames) is None
    assert keeps_by_levels(OmegaConf.create({}), frames) is None


def test_variation_keeps_what_its_strength_leaves(model):
    """x = x0 + sigma eps flows back to x / sqrt(1 + sigma^2): what is given counts that much, noise the rest."""
    for strength in (0.3, 0.6):
        sigma = Karras().grid(30, strength)[0].item()
        got, how = made(model, Edit(strength=strength), count=300)
        assert how == "varied"
        torch.testing.assert_close(got.mean(0), GIVEN / math.sqrt(1 + sigma**2), rtol=0, atol=0.25)
        expected = sigma / math.sqrt(1 + sigma**2)
        torch.testing.assert_close(got.std(0), torch.full((1, 6), expected), rtol=0.15, atol=0.02)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_inversion_is_the_flow_of_a_gaussian(std):
    def denoise(x, sigma):
        return 0.3 + (x - 0.3) * std**2 / (std**2 + sigma**2)

    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (40, 80):
        grid = Karras(sigma_max=20).grid(steps)
        exact = gaussian_flow(x0, 0, grid[0].item(), 0.3, std)
        errors.append(((invert(denoise, x0, grid) - exact).abs().max() / exact.abs().max()).item())
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 3  # of second order


def test_spherical_ways():
    first, second = torch.eye(4)[:1], 3 * torch.eye(4)[1:2]
    share = torch.tensor([0.0, 1 / 3, 1.0])
    way = spherical(first.expand(3, 4), second.expand(3, 4), share)
    torch.testing.assert_close(way[0], first[0])
    torch.testing.assert_close(way[2], second[0])
    torch.testing.assert_close(way[1], math.cos(math.pi / 6) * first[0] + math.sin(math.pi / 6) * second[0])
    a, b = torch.randn(1, 50), torch.randn(1, 50)
    b = b * a.norm() / b.norm()
    torch.testing.assert_close(spherical(a, b, torch.tensor([0.3])).norm(), a.norm())
    torch.testing.assert_close(spherical(a, a, torch.tensor([0.3])), a)


def test_samples_lead_from_one_file_to_another(model):
    """For N(0, 1) the flow is a factor, so what is blended in noise is blended alike in the data."""
    last = torch.tensor([[-3.0, 1.0, 0.0, 2.0, -1.0, 2.0]])
    got, how = made(model, Edit(toward=last), count=5)
    assert how == "blended"
    torch.testing.assert_close(got[0], GIVEN, rtol=0.02, atol=0.02)
    torch.testing.assert_close(got[-1], last, rtol=0.02, atol=0.02)
    torch.testing.assert_close(got[2], spherical(GIVEN, last, torch.tensor([0.5])), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_file_is_carried_over_to_another_condition(model, strength):
    """The flows of N(-2, 1) and N(2, 1) differ by a shift of 4 (1 - 1 / sqrt(1 + sigma^2))."""
    edit = Edit(source={"kind": "low"}, strength=strength)
    got, how = made(model, edit, cond={"kind": "high"})
    assert how == "carried over"
    assert torch.equal(got[0], got[1])  # nothing in it is random
    sigma = Karras().grid(30, strength)[0].item()
    torch.testing.assert_close(got[0], GIVEN + 4 * (1 - 1 / math.sqrt(1 + sigma**2)), rtol=0, atol=0.1)


def test_a_measurement_is_heeded(model):
    got, how = made(model, Edit(measured="place:0:3", noise=1.0, inverse=pigdm), count=400)
    assert how == "restored"
    expected = torch.cat([GIVEN[:, :3] / 2, torch.zeros(1, 3)], 1)  # half prior, half measurement
    torch.testing.assert_close(got.mean(0), expected, rtol=0, atol=0.2)
    assert (got.var(0)[:, :3] - 0.5).abs().max() < 0.15
    assert (got.var(0)[:, 3:] - 1).abs().max() < 0.3
    everything, _ = made(model, Edit(measured="all", noise=0.0, inverse=pigdm))
    torch.testing.assert_close(everything, GIVEN.expand(3, 1, 6), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("noise", [0.01, 0.5, 1.0])
def test_noise_all_over_is_taken_away_from_its_level_on(model, noise):
    """For data N(0, 1) the flow leads from y to y / sqrt(1 + noise^2), fresh noise to the posterior."""
    edit = Edit(measured="all", noise=noise, inverse=pigdm)
    got, how = made(model, edit)
    assert how == "denoised"
    torch.testing.assert_close(got, (GIVEN / math.sqrt(1 + noise**2)).expand(3, 1, 6), rtol=1e-3, atol=1e-3)
    model.config.solver = {"_target_": "mmdiff.solvers.ancestral", "_partial_": True}
    model.config.steps = 200
    got, _ = made(model, edit, count=400)
    variance = noise**2 / (1 + noise**2)
    torch.testing.assert_close(got.mean(0), GIVEN / (1 + noise**2), rtol=0, atol=5 * (variance / 400) ** 0.5 + 1e-3)
    assert got.var(0).mean().item() == pytest.approx(variance, rel=0.1)


def test_noise_below_and_above_the_schedule(model):
    got, _ = made(model, Edit(measured="all", noise=0.001, inverse=pigdm))
    torch.testing.assert_close(got, GIVEN.expand(3, 1, 6), rtol=0, atol=0.001)
    with pytest.raises(ValueError, match=r"noise=100 lies above the highest level of the schedule, 80\."):
        made(model, Edit(measured="all", noise=100.0, inverse=pigdm))


def test_files_and_their_record(model, tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(map(str, GIVEN[0].tolist())))
    edit = Edit(keep="place:1:4", repeats=2)
    said = edit_files(
        model, [{}] * 3, [path], [GIVEN], edit, tmp_path / "out", seed=5, batch_size=2, record={"keep": "place:1:4"}
    )
    assert "resampling (RePaint)" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [5, 6, 7]
    assert lines[1]["given"] == str(path)
    assert (lines[1]["edit"], lines[1]["keep"]) == ("repaint", "place:1:4")
    assert lines[1]["solver"] == {"name": "repaint", "jump": 4, "repeats": 2}
    written = [float(line) for line in (tmp_path / "out" / "00002.txt").read_text().split()]
    assert written[1:4] == [2.0, 3.0, 4.0]
    assert (tmp_path / "out" / "preview.png").is_file()


def test_what_was_refined_is_on_record(model, tmp_path):
    movable = trained_with(model._replace(modality=Movable(6)), LEVELS)
    edit = Edit(keep="place:1:4", repeats=3, refine=0.3)
    said = edit_files(
        movable, [{}], [tmp_path / "numbers.txt"], [GIVEN], edit, tmp_path, seed=5, batch_size=2, record={}
    )
    assert said == SAYS["levels, refined"]
    (line,) = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert line["edit"] == "levels, refined"
    assert line["refine"] == {"strength": 0.3, "solver": {"name": "repaint", "jump": 4, "repeats": 2}}
    assert line["solver"] == {"name": "heun"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "nothing is asked for: give keep=, strength= below 1"),
        ({"keep": "all", "measured": "all"}, "keep and measured are different edits"),
        ({"strength": 0.0}, "strength must lie above 0 and be at most 1, got 0"),
        ({"strength": 1.5}, "strength must lie above 0 and be at most 1, got 1.5"),
        ({"keep": "x", "method": "guess"}, "method must be one of auto, levels, repaint, got guess"),
        ({"keep": "x", "refine": 1.5}, "refine must lie between 0 and 1, got 1.5"),
        ({"measured": "all", "noise": -1.0}, "noise must not be negative, got -1"),
        ({"keep": "x", "repeats": 0}, "repeats must be a whole number of at least 1, got 0"),
    ],
)
def test_mistakes(options, named):
    with pytest.raises(ValueError, match=named):
        Edit(**options)


def test_mistakes_that_the_model_finds(model):
    with pytest.raises(ValueError, match="keep=place:: keeps all of what is given"):
        made(model, Edit(keep="place::"))
    with pytest.raises(ValueError, match="'middle' names no part; parts are place:FROM:TO"):
        made(model, Edit(keep="middle"))
    with pytest.raises(ValueError, match="count must be a whole number of at least 2, got 1"):
        made(model, Edit(toward=GIVEN), count=1)
    with pytest.raises(ValueError, match=r"cond\.mood is not a condition of this model"):
        made(model, Edit(source={"mood": "sad"}))
