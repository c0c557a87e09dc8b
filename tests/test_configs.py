"""Every option of every configuration group is composed with an experiment, built, and trained for two steps."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from mmdiff import plugins
from mmdiff.checkpoint import load_dict

NEEDS = {
    "debug=overfit": ["trainer.max_steps=2", "trainer.log_every_n_steps=1"],
    "debug=profile": ["trainer.max_steps=2", "trainer.val_check_interval=2", "steps=2"],
    "trainer=ddp": ["trainer.devices=1"],
}
"""What an option needs beside itself to run for two steps here; two processes have a test of their own."""

ON_FILES = ("data=audio/folder", "modality=audio/stft")
"""Options that go with an experiment on files: the other one sets what only its own options know."""


def options() -> list[str]:
    """All but the experiments, which are run as shipped."""
    found = [f"{group}={option}" for group in plugins.groups() for option in plugins.options(group)]
    return [option for option in found if not option.startswith("experiment=")]


def shipped(option: str) -> dict:
    """The file of an option."""
    group, _, name = option.partition("=")
    folders = [plugins.core_conf(), *filter(None, map(plugins.plugin_conf, plugins.plugins()))]
    paths = [folder / group / f"{name}.yaml" for folder in folders]
    return yaml.safe_load(next(path for path in paths if path.is_file()).read_text())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of 24 short sounds in two classes."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / ("noise", "tone")[i % 2] / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * (np.sin(np.arange(20000) * 0.1) if i % 2 else rng.standard_normal(20000)), 16000)
    return folder


def check_run(run: Path) -> dict:
    """Check what two steps left behind; returns the configuration."""
    checkpoint = load_dict(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert yaml.safe_load((run / "config.yaml").read_text()) == checkpoint["config"]
    assert (run / "metrics.csv").is_file()
    return checkpoint["config"]


@pytest.mark.parametrize("option", options())
def test_option_trains(option, tiny, tiny_folder, train, sounds, tmp_path):
    if option == "trainer=gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU; test_gpu_where_there_is_none shows that it is composed and reaches the trainer")
    base = [*tiny_folder, f"data.root={sounds}"] if option in ON_FILES else tiny
    group = option.partition("=")[0]
    base = [o for o in base if o.partition("=")[0] != group]
    both = [option.replace("schedule=", "schedule@train_schedule=")] if group == "schedule" else []
    needs = [*NEEDS.get(option, []), "data.batch_size=2"]
    if group not in ("callbacks", "guidance", "schedule", "solver"):
        needs.append("callbacks.preview.count=0")
    ran = train(*base, option, *both, *needs, folder=tmp_path)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert ran.err == ""
    config = check_run(tmp_path / "run")
    if "_target_" in shipped(option):
        assert config[group]["_target_"] == shipped(option)["_target_"]
    if both:
        assert config["train_schedule"]["_target_"] == shipped(option)["_target_"]


@pytest.mark.parametrize("experiment", plugins.options("experiment"))
def test_experiment_trains_as_shipped(experiment, train, sounds, tmp_path):
    root = [f"data.root={sounds}"] if experiment.endswith("/folder") else []
    ran = train(f"experiment={experiment}", "debug=fast", *root, folder=tmp_path)
    assert ran.err == ""
    check_run(tmp_path / "run")
    assert (tmp_path / "run" / "previews" / "step_0000002.png").is_file()


def test_gpu_where_there_is_none(tiny, command, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    ran = command("train", *tiny, "trainer=gpu", folder=tmp_path)
    assert ran.status == 1
    assert ran.err.startswith("mmdiff train: trainer: ")
    assert "gpu" in ran.err
    assert len(ran.err.splitlines()) <= 3


@pytest.mark.slow
def test_two_processes_write_one_run(tiny, process, tmp_path):
    """The installed command: Lightning starts it a second time from its arguments."""
    ran = process("train", *tiny, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", folder=tmp_path)
    assert ran.status == 0, ran.err
    runs = [path.parent for path in tmp_path.rglob("config.yaml")]
    assert len(runs) == 1
    check_run(runs[0])
    assert {path.name for path in runs[0].iterdir()} == {"checkpoints", "config.yaml", "metrics.csv", "previews"}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
