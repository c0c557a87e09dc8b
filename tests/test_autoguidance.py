"""A second checkpoint that guidance moves away from."""

import pytest
import torch

from mmdiff.autoguidance import Autoguidance
from mmdiff.checkpoint import load
from mmdiff.sampling import Sampler
from mmdiff.schedules import Karras
from mmdiff.solvers import euler

COND = {"pitch": [60, 72], "timbre": ["organ", None]}


@pytest.fixture(scope="module")
def weak(tiny, train, tmp_path_factory):
    """A narrower network of other weights, which knows one of the conditions."""
    folder = tmp_path_factory.mktemp("weak")
    pitch = "{_target_: mmdiff.conditioning.NumberEmbedder, features: 16, mean: null, std: null}"
    train(
        *tiny,
        "seed=1",
        "network.width=4",
        "conditioner=auto",
        f"conditioner.embedders={{pitch: {pitch}}}",
        folder=folder,
    )
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_each_model_has_its_own_conditioner(checkpoint, weak, scale):
    strong, other = load(checkpoint).denoiser, load(weak).denoiser
    sampler = Sampler(schedule=Karras(), steps=2, solver=euler, guidance=Autoguidance(weak, scale))
    x, sigma = 3 * torch.randn(2, *load(checkpoint).modality.shape), torch.tensor(3.0)
    with torch.no_grad():
        got = sampler.bind(strong, COND, 2)(x, sigma)
        strong_x0 = strong(x, sigma, strong.conditioner(COND, 2))
        weak_x0 = other(x, sigma, other.conditioner({"pitch": COND["pitch"]}, 2))
    assert not torch.allclose(strong_x0, weak_x0)
    torch.testing.assert_close(got, weak_x0 + scale * (strong_x0 - weak_x0))


def test_samples_away_from_a_second_checkpoint(checkpoint, weak, command, tmp_path):
    def sample(name, *options):
        given = [f"checkpoint={checkpoint}", "count=2", "steps=2", "cond={pitch: 60}", f"output={name}"]
        ran = command("sample", *given, *options, folder=tmp_path)
        assert (ran.status, ran.err) == (0, "")
        return [(tmp_path / name / f"0000{i}.wav").read_bytes() for i in range(2)]

    chosen = ["guidance=autoguidance", f"guidance.weak={weak}"]
    assert sample("one", *chosen, "guidance.scale=1") == sample("plain")
    assert sample("two", *chosen) != sample("plain")
    assert "Autoguidance" in (tmp_path / "two" / "samples.jsonl").read_text()


def test_another_modality_is_refused(checkpoint, tiny, train, command, tmp_path):
    train(*tiny, "modality.representation.mels=32", folder=tmp_path)
    chosen = ["guidance=autoguidance", "guidance.weak=run/checkpoints/last.ckpt"]
    for options, named in (
        (chosen, "guidance.weak=run/checkpoints/last.ckpt holds another model: its modality."),
        (["guidance=autoguidance", "guidance.weak=none.ckpt"], "none.ckpt: does not exist"),
        (["guidance=autoguidance"], "guidance.weak must be given"),
    ):
        ran = command("sample", f"checkpoint={checkpoint}", "count=1", *options, folder=tmp_path)
        assert ran.status == 1
        assert named in ran.err
        assert len(ran.err.splitlines()) <= 3
