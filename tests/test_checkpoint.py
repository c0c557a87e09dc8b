"""Checkpoints that describe themselves, hold averaged weights, and run no code of theirs."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from mmdiff import DataError
from mmdiff.callbacks import EMA
from mmdiff.checkpoint import check_same_model, export, fingerprint, load, load_dict, read_config


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_is_data_alone_and_describes_itself(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["global_step"] == 2
    assert content["config"]["network"]["width"] == 8
    assert content["config"]["conditioner"]["embedders"]["timbre"]["classes"] == ["flute", "organ", "pluck", "reed"]
    assert len(content["config"]["modality"]["mean"]) == 64
    model = load(checkpoint)
    assert model.modality.shape == (1, 64, 10)
    assert not model.denoiser.training
    assert not any(p.requires_grad for p in model.denoiser.parameters())
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"denoiser.{name}"])


@pytest.mark.parametrize("place", ["config", "state_dict", "callbacks", "alone"])
def test_a_payload_is_refused_and_not_run(place, checkpoint, tmp_path):
    trap = tmp_path / "executed"
    content = load_dict(checkpoint)
    torch.save(Payload(trap) if place == "alone" else content | {place: Payload(trap)}, tmp_path / "bad.ckpt")
    with pytest.raises(DataError, match="pickled objects, which are never loaded"):
        load(tmp_path / "bad.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Payload(trap), protocol=2))
    with pytest.raises(DataError, match=r"plain\.ckpt"):
        load(tmp_path / "plain.ckpt")
    assert not trap.exists()


def test_a_payload_is_not_run_by_resuming(checkpoint, tiny, command, tmp_path):
    trap = tmp_path / "executed"
    torch.save(load_dict(checkpoint) | {"loops": Payload(trap)}, tmp_path / "bad.ckpt")
    ran = command("train", *tiny, "resume=bad.ckpt", folder=tmp_path)
    assert ran.status == 1
    assert "bad.ckpt" in ran.err
    assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file(kept, checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"cut\.ckpt"):
        load(tmp_path / "cut.ckpt")


def test_what_is_no_checkpoint(checkpoint, tmp_path):
    content = load_dict(checkpoint)
    for wrong in ([1, 2], {"state_dict": {}}, {"config": {}}, {"config": [], "state_dict": {}}):
        torch.save(wrong, tmp_path / "wrong.ckpt")
        with pytest.raises(DataError, match="is not a checkpoint of mmdiff"):
            load(tmp_path / "wrong.ckpt")
    for part in ("modality", "network"):
        torch.save(
            content | {"config": {k: v for k, v in content["config"].items() if k != part}}, tmp_path / "wrong.ckpt"
        )
        with pytest.raises(DataError, match=f"its config has no {part}"):
            load(tmp_path / "wrong.ckpt")
    content["config"]["network"]["width"] = 16
    torch.save(content, tmp_path / "misfit.ckpt")
    with pytest.raises(DataError, match="its weights do not fit its own configuration"):
        load(tmp_path / "misfit.ckpt")
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere.ckpt")


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(checkpoint, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("a run has one, too")
    with pytest.raises(DataError, match=r"holds no model\.safetensors; .* a run checkpoints/last\.ckpt"):
        load(tmp_path / "run")
    shutil.copy(checkpoint, tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert fingerprint(load(tmp_path / "run")) == fingerprint(load(checkpoint))
    assert read_config(tmp_path / "run") == read_config(checkpoint)


def test_export_and_back(checkpoint, tmp_path):
    model = load(checkpoint)
    export(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == model.config == read_config(tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert set(state) == set(model.denoiser.state_dict())
    assert all(torch.equal(again.denoiser.state_dict()[name], value) for name, value in state.items())
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DataError, match="is not a whole safetensors file"):
        load(tmp_path / "model")
    (tmp_path / "model" / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"holds no config\.yaml"):
        load(tmp_path / "model")


@pytest.mark.parametrize("text", ["a: [1", "just words", "- 1", "", "a: 1"])
def test_a_bad_config_in_an_export(text, checkpoint, tmp_path):
    export(load(checkpoint), tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml"):
        load(tmp_path)


def test_check_same_model(checkpoint):
    config = read_config(checkpoint)
    check_same_model(checkpoint, config)
    other = OmegaConf.merge(config, {"network": {"width": 4}})
    with pytest.raises(ValueError, match=r"its network\.width is 8, here it is 4"):
        check_same_model(checkpoint, other)
    check_same_model(checkpoint, OmegaConf.merge(config, {"optimizer": {"lr": 1.0}, "seed": 5}))


@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_average_is_the_power_function_profile(gamma):
    """After n updates weight i of the history counts t^gamma, integrated over the i-th step of the run: EDM2."""
    history = torch.randn(9, 5, dtype=torch.float64)
    average, value = EMA(gamma), torch.zeros(5, dtype=torch.float64)
    for count, weights in enumerate(history):
        value = value.lerp(weights, 1 - average.decay(count))
    # The recursion in the docstring, unrolled: the factor of weights i is (1 - d_i) d_(i+1) ... d_n.
    decay = [(1 - 1 / n) ** (gamma + 1) for n in range(1, 10)]
    expected = sum(
        (1 - decay[i]) * torch.tensor(decay[i + 1 :]).prod().double() * history[i] for i in range(len(history))
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    # Telescoped: the part of the first i of n weights is (i / n)^(gamma + 1).
    share = torch.diff((torch.arange(10, dtype=torch.float64) / 9) ** (gamma + 1))
    torch.testing.assert_close(value, share @ history, rtol=1e-6, atol=1e-6)


def test_ema_arguments():
    with pytest.raises(ValueError, match=r"callbacks\.ema\.gamma must not be negative"):
        EMA(-1.0)
