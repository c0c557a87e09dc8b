"""A model reads classes off what it is given."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from conftest import Numbers
from mmdiff.checkpoint import Model
from mmdiff.conditioning import ClassEmbedder, Conditioner, NumberEmbedder
from mmdiff.denoiser import Denoiser, expand_sigma
from mmdiff.recognition import recognize
from mmdiff.scaling import EDM

MEANS = {"low": -2.0, "middle": 0.0, "high": 2.0}
STD = 0.5


class Exact(Denoiser):
    """The posterior mean of numbers around the mean of their class; around 0 where none is told."""

    def forward(self, x, sigma, context):
        sigma = expand_sigma(sigma, x)
        mean = context.vector[:, :1, None]
        return (mean * sigma**2 + STD**2 * x) / (STD**2 + sigma**2)


@pytest.fixture
def model() -> Model:
    place = ClassEmbedder(1, list(MEANS))
    place.table.weight.data[:, 0] = torch.tensor([*MEANS.values(), 0.0])
    schedule = {"_target_": "mmdiff.schedules.LogNormal", "mean": 0.0, "std": 1.2}
    denoiser = Exact(torch.nn.Linear(1, 1), EDM(), Conditioner(1, {"place": place}))
    return Model(denoiser.eval(), Numbers(), OmegaConf.create({"train_schedule": schedule}))


@pytest.mark.parametrize("label", MEANS)
def test_the_class_with_the_nearest_mean(label, model):
    """Which is the one whose posterior mean is nearest, whatever the level."""
    given = [MEANS[label] + STD * noise for noise in torch.randn(8, 1, 4)]
    expected = [min(MEANS, key=lambda name: abs(MEANS[name] - numbers.mean().item())) for numbers in given]
    assert recognize(model, ["place"], [{}] * 8, given) == [{"place": name} for name in expected]
    assert expected.count(label) >= 7


def test_only_what_is_kept_is_looked_at(model):
    class Half(Numbers):
        def part(self, word, media):
            return (torch.arange(4) < int(word))[None]

    given = [torch.tensor([[2.1, 1.9, -9.0, -9.0]])]
    model = model._replace(modality=Half())
    assert recognize(model, ["place"], [{}], given, "2") == [{"place": "high"}]
    assert recognize(model, ["place"], [{}], given) == [{"place": "low"}]


def test_what_is_told_stays(model):
    given = [torch.full((1, 4), -2.0), torch.full((1, 4), 2.0)]
    conds = [{"place": "high"}, {}, {"place": None}, {}]
    got = recognize(model, ["place"], conds, given)
    assert [cond["place"] for cond in got] == ["high", "high", "low", "high"]
    assert recognize(model, [], conds, ()) == conds


def test_mistakes(model):
    model.denoiser.conditioner.embedders["size"] = NumberEmbedder(1, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"infer=size: the conditions of this model with classes are place\."):
        recognize(model, ["size"], [{}], [torch.ones(1, 4)])
    with pytest.raises(ValueError, match=r"infer reads conditions off given media; add given=FILE\."):
        recognize(model, ["place"], [{}], ())


def test_the_command(checkpoint, command, tmp_path):
    assert command("sample", f"checkpoint={checkpoint}", "count=1", "steps=2", folder=tmp_path).status == 0
    options = ["given=samples/00000.wav", "known=seconds:0:0.1", "count=2", "steps=2", "output=out"]
    ran = command("sample", f"checkpoint={checkpoint}", *options, "infer=timbre", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert lines[0]["cond"] == lines[1]["cond"]
    assert lines[0]["cond"]["timbre"] in ("flute", "organ", "pluck", "reed")
    ran = command("sample", f"checkpoint={checkpoint}", *options, "infer=pitch", folder=tmp_path)
    assert (ran.status, "infer=pitch: the conditions of this model with classes are timbre." in ran.err) == (1, True)


def test_what_a_checkpoint_infers_by_itself(checkpoint, command, tmp_path):
    """Only where something is given, and not if the command says so."""
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["infer"] = ["timbre"]
    torch.save(content, tmp_path / "reads.ckpt")
    asked = ["checkpoint=reads.ckpt", "count=1", "steps=2"]
    assert command("sample", *asked, folder=tmp_path).status == 0
    given = [*asked, "given=samples/00000.wav", "known=seconds:0:0.1"]
    for options, told in ([], True), (["infer=[]"], False):
        assert command("sample", *given, *options, "output=out", folder=tmp_path).status == 0
        (line,) = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
        assert ("timbre" in json.loads(line)["cond"]) == told
