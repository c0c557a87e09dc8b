"""Files <-> objects: configurations become models, checkpoints become models, models become files.

A checkpoint holds the resolved configuration of its run beside the weights, so a path is all that sampling needs.
Nothing is ever unpickled: checkpoints are loaded with ``weights_only=True`` and exports are safetensors.
"""

import hashlib
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.denoiser import Denoiser
from mmdiff.errors import DataError
from mmdiff.modality import Modality
from mmdiff.sampling import Sampler

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
PREFIX = "denoiser."
PARTS = ("modality", "conditioner", "network", "scaling")


class Model(NamedTuple):
    """What a checkpoint describes."""

    denoiser: Denoiser
    modality: Modality
    config: DictConfig


def build_denoiser(config: DictConfig, modality: Modality) -> Denoiser:
    """The untrained denoiser of a configuration; modality and conditioner tell the network its shapes."""
    conditioner = instantiate(config.conditioner)
    network = instantiate(config.network)(shape=modality.shape, features=conditioner.features)
    return Denoiser(network, instantiate(config.scaling), conditioner)


def build_sampler(config: DictConfig) -> Sampler:
    """The sampling choices of a configuration."""
    parts = {name: instantiate(config[name]) for name in ("schedule", "solver", "guidance")}
    return Sampler(steps=config.steps, lag=config.lag, **parts)


def load(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """Load a training checkpoint (.ckpt, its averaged weights), the last of a run's folder, or an export.

    Raises:
        DataError: if the file is missing, incomplete, not a checkpoint of mmdiff, or carries a pickle payload.
    """
    config, state = _read(Path(path))
    modality = instantiate(config.modality)
    denoiser = build_denoiser(config, modality)
    try:
        denoiser.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(path, f"its weights do not fit its own configuration: {error}") from error
    return Model(denoiser.to(device).eval().requires_grad_(False), modality, config)


def read_config(path: str | Path) -> DictConfig:
    """The configuration that a checkpoint describes itself with (see `load`)."""
    return _read(Path(path))[0]


def check_same_model(
    path: str | Path, config: DictConfig, *, option: str = "resume", parts: Sequence[str] = PARTS
) -> None:
    """Check that a checkpoint, to resume from or named by another option, has the parts of a configuration.

    Raises:
        ValueError: naming the first key that differs.
    """
    saved = read_config(path)
    for key in parts:
        here, there = to_dict(config[key]), to_dict(saved[key])
        for name in sorted(set(here) | set(there)):
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"{option}={path} holds another model: "
                    f"its {key}.{name} is {there.get(name)}, here it is {here.get(name)}."
                )


def export(model: Model, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.yaml``, all that is needed to sample, loadable without pickle."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.denoiser.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(to_yaml(model.config), encoding="utf-8")


def fingerprint(model: Model) -> str:
    """Of the weights and the modality: two models that draw other samples have another one."""
    digest = hashlib.sha256(to_yaml(model.config.modality).encode())
    for name, tensor in model.denoiser.state_dict().items():
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def to_dict(config: DictConfig) -> dict[str, Any]:
    """Resolved, as plain dictionaries, lists and values."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def to_yaml(config: DictConfig) -> str:
    """Resolved YAML with lists of numbers on one line."""
    return yaml.dump(
        to_dict(config), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that OmegaConf would read as numbers: ``1e5`` is none in YAML 1.1."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), None)


def _read(path: Path) -> tuple[DictConfig, dict[str, Tensor]]:
    last = path / "checkpoints" / "last.ckpt"
    if last.is_file():
        return _read_checkpoint(last)
    return _read_export(path) if path.is_dir() else _read_checkpoint(path)


def _read_export(folder: Path) -> tuple[DictConfig, dict[str, Tensor]]:
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise DataError(
                folder, f"holds no {name}; an export has {WEIGHTS} and {CONFIG}, a run checkpoints/last.ckpt"
            )
    try:
        config, state = OmegaConf.load(folder / CONFIG), load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise DataError(folder / WEIGHTS, f"is not a whole safetensors file ({error})") from error
    except (yaml.YAMLError, OSError) as error:
        raise DataError(folder / CONFIG, f"is not valid yaml ({error})") from error
    return _checked(folder / CONFIG, config), state


def _checked(path: Path, config: object) -> DictConfig:
    missing = [name for name in PARTS if not isinstance(config, DictConfig) or name not in config]
    if missing:
        raise DataError(path, f"is not from mmdiff: its config has no {missing[0]}")
    return cast(DictConfig, config)


def _read_checkpoint(path: Path) -> tuple[DictConfig, dict[str, Tensor]]:
    checkpoint = load_dict(path)
    if not isinstance(checkpoint.get("config"), dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise DataError(path, "is not a checkpoint of mmdiff: it holds no config")
    state = checkpoint["state_dict"]
    return _checked(path, OmegaConf.create(checkpoint["config"])), {
        name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)
    }


def load_dict(path: Path) -> dict[str, Any]:
    """The raw content of a training checkpoint.

    Raises:
        DataError: if the file is missing, incomplete or carries a pickle payload.
    """
    if not path.is_file():
        raise DataError(path, "does not exist; checkpoint must name a .ckpt file, a run's folder or an exported one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(path, "is not a checkpoint, or carries pickled objects, which are never loaded") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise DataError(path, "is not a whole checkpoint") from error
    if not isinstance(checkpoint, dict):
        raise DataError(path, "is not a checkpoint of mmdiff")
    return checkpoint
