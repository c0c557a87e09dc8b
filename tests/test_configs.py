"""Every option of every configuration group is composed with an experiment, built, and trained for two steps."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mmdiff import plugins
from mmdiff.checkpoint import load_dict

NEEDS = {
    "debug=overfit": ["trainer.max_steps=2", "trainer.log_every_n_steps=1"],
    "debug=profile": ["trainer.max_steps=2", "trainer.val_check_interval=2", "steps=2"],
    "trainer=ddp": ["trainer.devices=1"],
    "trainer=ddp_cpu": ["trainer.devices=1"],
    "trainer=fsdp": ["trainer.devices=1"],
    "logger=wandb": ["logger.wandb.offline=true"],
}
"""What an option needs beside itself to run for two steps here; two processes have a test of their own."""

PACKAGES = {"logger=tensorboard": "tensorboard", "logger=wandb": "wandb"}
"""What an option imports that is installed only where it is wanted."""

EXPERIMENTS = {"audio": "notes", "video": "shapes", "pointcloud": "furniture"}
"""The experiment on embedded data with which the options of each modality go."""

SMALL = {
    "audio": ["modality.seconds=0.3", "modality.representation.iterations=2"],
    "video": ["modality.height=16", "modality.width=16"],
    "pointcloud": ["data.dataset.points=64"],
}
NETWORK = {
    "audio": ["network.width=8", "network.multipliers=[1, 2]", "network.attention=[]"],
    "video": ["network=video/dit_tiny", "network.width=32", "network.depth=2"],
    "pointcloud": [
        "network.width=16",
        "network.cells=4",
        "network.cell_width=16",
        "network.stages=1",
        "network.depth=1",
    ],
}
DATA = ["data.dataset.size=12", "data.held_out=6", "data.batch_size=2", "conditioner.features=16"]


def options() -> list[str]:
    """All but the experiments, which are run as shipped, and what training has no use for."""
    found = [f"{group}={option}" for group in plugins.groups() for option in plugins.options(group)]
    return [option for option in found if not option.startswith(("experiment=", "inverse="))]


def shipped(option: str) -> dict:
    """The file of an option."""
    group, _, name = option.partition("=")
    folders = [plugins.core_conf(), *filter(None, map(plugins.plugin_conf, plugins.plugins()))]
    paths = [folder / group / f"{name}.yaml" for folder in folders]
    return yaml.safe_load(next(path for path in paths if path.is_file()).read_text())


def base(modality: str, *, without: str = "") -> list[str]:
    """Options of a tiny run of a modality, without those of one group."""
    options = [f"experiment={modality}/{EXPERIMENTS[modality]}", "debug=fast"]
    options += [*DATA, *SMALL[modality], *NETWORK[modality]]
    return [option for option in options if re.split("[.=]", option)[0] != without]


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """For each modality a folder of a few files in two classes, which its own embedded data made."""
    folder = tmp_path_factory.mktemp("roots")
    plugins.register()
    for name in EXPERIMENTS:
        with initialize_config_dir(str(plugins.core_conf()), version_base="1.3"):
            config = compose("train", [*base(name), f"output={folder}"])
        modality, dataset = instantiate(config.modality), instantiate(config.data.dataset)
        for i in range(8):
            path = folder / name / ("one", "two")[i % 2] / f"{i}{modality.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            modality.write(dataset[i][0], path)
    return {name: folder / name for name in EXPERIMENTS}


def check_run(run: Path) -> dict:
    """Check what two steps left behind; returns the configuration."""
    checkpoint = load_dict(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert yaml.safe_load((run / "config.yaml").read_text()) == checkpoint["config"]
    assert (run / "metrics.csv").is_file()
    return checkpoint["config"]


@pytest.mark.parametrize("option", options())
def test_option_trains(option, tiny, train, roots, files, tmp_path):
    if option == "trainer=gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU; test_gpu_where_there_is_none shows that it is composed and reaches the trainer")
    if option in PACKAGES:
        pytest.importorskip(PACKAGES[option])
    if option == "conditioner=encoder":
        pytest.skip("needs a pretrained model; tests/test_encoders.py makes one")
    group, _, name = option.partition("=")
    modality, _, choice = name.partition("/")
    if not choice:
        options = [o for o in tiny if o.partition("=")[0] != group]
    elif choice == "folder" and group == "data":
        kind = [o for o in SMALL[modality] if o.startswith("modality.")]
        options = [f"experiment={modality}/folder", "debug=fast", f"data.root={roots[modality]}", *kind[:1]]
        options += [*NETWORK[modality], "conditioner.features=16"]
    else:
        options = base(modality, without=group)
    both = [option.replace("schedule=", "schedule@train_schedule=")] if group == "schedule" else []
    needs = [*NEEDS.get(option, []), *files.get(option, []), "data.batch_size=2"]
    needs += [need.replace("schedule.", "train_schedule.") for need in needs if need.startswith("schedule.")]
    if group not in ("callbacks", "guidance", "schedule", "solver"):
        needs.append("callbacks.preview.count=0")
    ran = train(*options, option, *both, *needs, folder=tmp_path)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert [line for line in ran.err.splitlines() if not line.startswith("wandb: ")] == []
    config = check_run(tmp_path / "run")
    if "_target_" in shipped(option):
        assert config[group]["_target_"] == shipped(option)["_target_"]
    if both:
        assert config["train_schedule"]["_target_"] == shipped(option)["_target_"]


@pytest.mark.parametrize("experiment", plugins.options("experiment"))
def test_experiment_trains_as_shipped(experiment, train, roots, tmp_path):
    root = [f"data.root={roots[experiment.partition('/')[0]]}"] if experiment.endswith("/folder") else []
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
