"""Completing what is given, and going on from it, with numbers: a kind of data that the core has never heard of."""

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, BrokenBarrierError, Lock
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from conftest import Numbers
from mmdiff import DataError
from mmdiff.checkpoint import Model
from mmdiff.conditioning import Conditioner
from mmdiff.denoiser import Denoiser
from mmdiff.generation import ROUND, batches, generate, override
from mmdiff.outputs import Alone
from mmdiff.sampling import SeededNoise
from mmdiff.scaling import EDM


class Running(Numbers):
    """Numbers that can go on in time, of which single ones can be kept by their place."""

    time = -1

    def place(self, media, known=None):
        if known is None:
            return super().place(media)
        return self.encode(media), (torch.arange(self.size) == int(known))[None]

    def restore(self, media, path):
        return media + len(path.stem)


class Neighbors(nn.Module):
    """Predicts from the number before."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.9))

    def forward(self, x, noise, context):
        return self.weight * x.roll(1, -1)


CONFIG = {
    "modality": {"_target_": "conftest.Numbers", "size": 4, "mean": 0.0, "std": 1.0},
    "schedule": {"_target_": "mmdiff.schedules.Karras"},
    "solver": {"_target_": "mmdiff.solvers.heun", "_partial_": True},
    "guidance": {"_target_": "mmdiff.guidance.conditional", "_partial_": True},
    "steps": 4,
    "lag": 0,
}


@pytest.fixture
def model():
    denoiser = Denoiser(Neighbors(), EDM(), Conditioner(4)).eval()
    return Model(denoiser, Running(4), OmegaConf.create(CONFIG))


def drawn(model, count=3, **options):
    options = {"seed": 5, "batch_size": 2} | options
    return torch.cat(list(batches(model, [{}] * count, **options)))


def test_given_media_are_kept_and_used_in_turn(model):
    given = [torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 4.0]])]
    made = drawn(model, given=given)
    assert made.shape == (3, 1, 4)
    assert torch.equal(made[:, :, :2], torch.stack([given[0], given[1], given[0]]))
    assert not torch.isclose(made[0, :, 2:], made[2, :, 2:]).any()  # seeds differ


def test_known_parts_alone_are_kept(model):
    given = [torch.tensor([[1.0, 2.0, 3.0, 4.0]])]
    made = drawn(model, given=given, known="2")
    assert (made[..., 2] == 3).all()
    assert not torch.isclose(made[..., [0, 1, 3]], given[0][:, [0, 1, 3]]).any()


def test_new_elements_keep_out_of_named_parts(model):
    class Movable(Running):
        def confine(self, media, known):
            return torch.abs

    given = [torch.tensor([[-1.0, 2.0, -3.0, 4.0]])]
    made = drawn(model._replace(modality=Movable(4)), given=given, known="2")
    assert (made[..., 2] == -3).all()
    assert (made[..., [0, 1, 3]] >= 0).all()
    assert (drawn(model, given=given, known="2")[..., [0, 1, 3]] < 0).any()


@pytest.mark.parametrize("times", [1, 3])
def test_going_on_keeps_what_was_there(model, times):
    clip = drawn(model)
    longer = drawn(model, extend=times)
    assert longer.shape == (3, 1, 4 + 2 * times)
    assert torch.equal(longer[..., :4], clip)
    if times > 1:
        assert torch.equal(longer[..., :6], drawn(model, extend=1))
    parts = longer.unfold(-1, 2, 2).reshape(3, -1, 2)
    assert torch.pdist(parts[0]).min() > 1e-3  # every part has noise of its own


def test_rounds_have_noise_of_their_own():
    """Torch's generators on the CPU look at 32 bits of a seed."""
    x = torch.zeros(1, 100)
    draws = torch.cat([SeededNoise([5 + round_ * ROUND])(x) for round_ in range(4)])
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.5


def test_going_on_from_what_is_given(model):
    given = [torch.tensor([[1.0, 2.0]])]
    longer = drawn(model, given=given, extend=1)
    assert torch.equal(longer[:, 0, :2], given[0].expand(3, 2))
    assert torch.equal(longer[..., :4], drawn(model, given=given))


def test_a_sample_depends_on_its_seed_alone(model):
    together = drawn(model, extend=1)
    torch.testing.assert_close(drawn(model, batch_size=1, extend=1), together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn(model, count=1, seed=7, extend=1)[0], together[2], rtol=1e-4, atol=1e-4)


def test_samples_lead_from_one_seed_to_another(model, tmp_path):
    way = drawn(model, count=5, seed=5, toward=9)
    assert torch.equal(way[0], drawn(model, count=1, seed=5)[0])
    torch.testing.assert_close(way[-1], drawn(model, count=1, seed=9)[0])
    # the model is linear and so is the way: each sample blends the ends as its noise blends theirs
    angle = math.radians(90 / 4)
    for i in (1, 2, 3):
        blend = math.cos(i * angle) * way[0] + math.sin(i * angle) * way[-1]
        torch.testing.assert_close(way[i], blend, rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn(model, count=5, seed=5, toward=9, extend=1)[..., :4], way)
    generate(model, [{}] * 3, tmp_path, seed=5, toward=9)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["toward"], line["share"]) for line in lines] == [(5, 9, 0), (5, 9, 0.5), (5, 9, 1)]


def test_a_lag_needs_time(model):
    model.config.lag = 2
    assert drawn(model).shape == (3, 1, 4)
    with pytest.raises(ValueError, match="lag is between moments"):
        drawn(model._replace(modality=Numbers(4)))


def test_the_record_says_what_was_given(model, tmp_path):
    path = tmp_path / "start.txt"
    path.write_text("1\n2")
    made = generate(model, [{}] * 2, tmp_path / "out", given=[model.modality.read(path)], paths=[path], extend=1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(line["given"], line["known"], line["extend"]) for line in lines] == [(str(path), None, 1)] * 2
    written = torch.tensor([float(v) for v in (tmp_path / "out" / "00001.txt").read_text().split()])
    torch.testing.assert_close(written, made[0][1, 0] + len("start"))  # in the units of the file


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"known": "1"}, "add given=FILE"),
        ({"given": [torch.ones(1, 4)]}, "known=null keeps all of what is given"),
        ({"toward": 3, "count": 1}, "count must be a whole number of at least 2, got 1"),
        ({"toward": -3}, "toward must be a whole number of at least 0, got -3"),
        ({"extend": -1}, "extend must be a whole number of at least 0, got -1"),
    ],
)
def test_mistakes(model, options, named):
    with pytest.raises(ValueError, match=named):
        drawn(model, **options)


def test_a_modality_without_parts_and_time(model):
    plain = model._replace(modality=Numbers(4))
    with pytest.raises(ValueError, match="known=2 means nothing to Numbers"):
        drawn(plain, given=[torch.ones(1, 4)], known="2")
    with pytest.raises(ValueError, match="extend continues in time"):
        drawn(plain, extend=1)


def test_values_of_the_modality_apply_to_what_is_generated(model):
    longer = override(model, OmegaConf.create({"modality": {"size": 6}}))
    assert drawn(longer).shape == (3, 1, 6)
    with pytest.raises(
        ValueError, match=r"sizes is not an option; did you mean size\? the command takes steps, modality, "
    ):
        override(model, OmegaConf.create({"steps": 3, "modality": {"sizes": 6}}))
    same = override(model, OmegaConf.create({"modality": None, "steps": 7}))
    assert same.modality is model.modality
    assert same.config.steps == 7


draw_many = partial(drawn, count=40)


def test_the_model_hears_what_is_given(model):
    """The number after a given one follows it as the network says: x0 grows with what stands before."""
    low, high = (draw_many(model, given=[torch.tensor([[v]])])[:, 0, 1].mean() for v in (-2.0, 2.0))
    assert high - low > 0.5


# Many processes


def written(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(Exception):
    """In place of a signal."""


def by_threads(model, folder, world, *, count=50, die=None, **options):
    """What ``world`` processes write, each a thread; ``die=(rank, n)`` kills one when it has begun its n-th file."""
    barrier, counts, lock = Barrier(world, timeout=60), Counter(), Lock()

    def one(rank):
        class Dying(type(model.modality)):
            def write(self, media, path):
                with lock:
                    counts[rank] += 1
                if die == (rank, counts[rank]):
                    path.write_text("half a f")
                    barrier.abort()
                    raise Killed
                super().write(media, path)

        mine = model._replace(modality=Dying(4))
        processes = SimpleNamespace(global_rank=rank, world_size=world, barrier=barrier.wait)
        try:
            generate(mine, [{}] * count, folder, batch_size=4, processes=processes, **options)
        except (Killed, BrokenBarrierError) as error:
            return error
        return None

    with ThreadPoolExecutor(world) as pool:
        failures = list(pool.map(one, range(world)))
    assert any(failures) == bool(die), failures
    return counts


@pytest.fixture
def fifty(model, tmp_path, monkeypatch):
    """The files that one process writes, with a picture that takes less time to draw."""

    def pile(pictures, labels, path):
        path.write_bytes(b"".join(picture.numpy().tobytes() for picture in pictures))
        assert len(pictures) == len(labels)

    monkeypatch.setattr("mmdiff.outputs.save_grid", pile)
    generate(model, [{}] * 50, tmp_path / "one", batch_size=4)
    files = written(tmp_path / "one")
    assert sorted(files) == [*(f"{i:05d}.txt" for i in range(50)), "preview.png", "samples.jsonl"]
    assert len(set(files.values())) == 52
    return files


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_work_and_write_the_same(world, model, fifty, tmp_path):
    counts = by_threads(model, tmp_path / "many", world)
    assert written(tmp_path / "many") == fifty
    assert sum(counts.values()) == 50
    assert max(counts.values()) <= 4 * math.ceil(13 / world)


@pytest.mark.parametrize("worlds", [(1, 1), (1, 2), (2, 2), (2, 1), (3, 2)])
def test_nothing_whole_is_made_again_after_one_is_killed(worlds, model, fifty, tmp_path):
    out = tmp_path / "out"
    by_threads(model, out, worlds[0], die=(worlds[0] - 1, 7))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.txt")}
    lines = [line for record in out.glob(".unfinished/*/samples.jsonl") for line in record.read_text().splitlines()]
    assert 6 <= len(before) == len(lines) < 50  # the torn file is none of them
    counts = by_threads(model, out, worlds[1], resume=True)
    assert written(out) == fifty
    assert sum(counts.values()) == 50 - len(before)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_file_without_a_whole_line_is_made_again(model, fifty, tmp_path):
    out = tmp_path / "out"
    by_threads(model, out, 2, die=(1, 9))
    record = max(out.glob(".unfinished/*/samples.jsonl"), key=lambda path: len(path.read_text()))
    record.write_text(record.read_text()[:-20])
    kept = len(list(out.glob("*.txt"))) - 1
    assert sum(by_threads(model, out, 2, resume=True).values()) == 50 - kept
    assert written(out) == fifty


def test_more_of_the_same_keeps_what_is_there(model, fifty, tmp_path):
    out = tmp_path / "out"
    generate(model, [{}] * 21, out, batch_size=4)
    assert sum(by_threads(model, out, 2, resume=True).values()) == 29
    assert written(out).keys() == fifty.keys()
    assert all(written(out)[name] == fifty[name] for name in fifty if name != "preview.png")
    assert not by_threads(model, out, 2, resume=True)


def test_samples_of_something_else_are_not_kept(model, fifty, tmp_path):
    def made_again(other, **options):
        return sum(by_threads(other, tmp_path / "one", 1, count=3, **{"resume": True} | options).values())

    assert made_again(model) == 0
    assert made_again(model, resume=False) == 3
    assert made_again(model, seed=1) == 3
    assert made_again(model) == 3
    assert all(written(tmp_path / "one")[name] == fifty[name] for name in ("00000.txt", "00001.txt", "00002.txt"))
    model.config.steps = 5
    assert made_again(model) == 3
    with torch.no_grad():
        model.denoiser.network.weight += 0.1
    assert made_again(model) == 3


def test_processes_need_one_folder(model, tmp_path):
    class Elsewhere(Alone):
        world_size = 2

    with pytest.raises(DataError, match=r"lacks 00002\.txt, one of 2; output must be one folder for all processes"):
        generate(model, [{}] * 4, tmp_path, batch_size=2, processes=Elsewhere())


def test_what_goes_with_a_file_comes_along(model, tmp_path):
    class Twins(Numbers):
        def write(self, media, path):
            super().write(media, path)
            path.with_suffix(".twin").write_text("twin")

    generate(model._replace(modality=Twins(4)), [{}] * 2, tmp_path)
    names = ["00000.twin", "00000.txt", "00001.twin", "00001.txt", "preview.png", "samples.jsonl"]
    assert sorted(written(tmp_path)) == names
