"""The contract of a plugin as a whole: what `mmdiff check NAME` goes through."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from mmdiff import plugins
from mmdiff.testing.data import check_conditioner, check_dataset
from mmdiff.testing.expect import expect, fail, in_one_line, message
from mmdiff.testing.modality import check_modality
from mmdiff.testing.network import check_network
from mmdiff.testing.solver import check_solver

RULES = "mmdiff.plugins"
MEDIA = 16  # examples that the modality is checked with


class Result(NamedTuple):
    """What one check found."""

    check: str
    measured: dict[str, float]
    failure: str | None


def check_plugin(name: str, *overrides: str, factor: float = 10.0) -> None:
    """Check an installed plugin and everything in it: its options, and each experiment from data to written samples.

    Args:
        name: of the plugin.
        overrides: of the experiments, as on the command line; ``experiment=NAME`` checks that one alone.
        factor: by which some steps on one batch must lower the loss; state a smaller one if no more can be attained.

    Raises:
        AssertionError: with all that failed, saying what was expected, what was seen and where the rule is documented.
        ValueError: if no such plugin is installed.
    """
    failures = [f"{result.check}: {result.failure}" for result in results(name, overrides, factor) if result.failure]
    if failures:
        raise AssertionError("\n".join(failures))


def results(name: str, overrides: Sequence[str] = (), factor: float = 10.0) -> Iterator[Result]:
    """What each check of a plugin finds; an experiment is left at its first failure."""
    plugin = plugins.find(name)
    plugins.register()
    package = _run("package", partial(_check_package, plugin))
    yield package
    conf = plugins.plugin_conf(plugin)
    if package.failure or conf is None:
        return
    asked = [override.partition("=")[2] for override in overrides if override.startswith("experiment=")]
    overrides = [override for override in overrides if not override.startswith("experiment=")]
    names = asked or plugins.options_in(conf, "experiment")
    yield _run("options", partial(_check_options, name, conf, names))
    for option in plugins.options_in(conf, "solver"):
        yield _run(f"solver {option}", partial(_check_solver, option, names[0]))
    with tempfile.TemporaryDirectory() as folder:
        experiments = [Experiment(option, overrides, Path(folder), factor) for option in names]
        # Those that need a folder of files come last: the others leave them one.
        for experiment in sorted(experiments, key=Experiment.needs_files):
            for check in experiment.checks():
                result = _run(f"{experiment.name}: {check.__name__}", check)
                yield result
                if result.failure:
                    break


class Experiment:
    """The checks of one experiment; each builds on those before it.

    Args:
        name: of the experiment.
        overrides: of its configuration.
        folder: for files; ``folder/files`` holds examples of the first one that came this far with each suffix.
        factor: by which the loss must fall (see `check_plugin`).
    """

    config: DictConfig
    data: Any

    def __init__(self, name: str, overrides: Sequence[str], folder: Path, factor: float):
        self.name = name
        self.factor = factor
        self.overrides = overrides
        self.files = folder / "files"
        self.folder = folder / name.replace("/", "_")

    def checks(self) -> list[Callable[[], dict[str, float]]]:
        """All checks, in order."""
        return [
            self.configuration,
            self.dataset,
            self.modality,
            self.conditions,
            self.network,
            self.training,
            self.samples,
        ]

    def needs_files(self) -> bool:
        """Whether its data are a folder that nobody named."""
        try:
            return "data.root" in OmegaConf.missing_keys(_compose(self._options()))
        except Exception:  # `configuration` will tell
            return False

    def configuration(self) -> dict[str, float]:
        """It composes."""
        own = self._options()
        if self.needs_files():
            given = self.files.is_dir()
            expect(given, "data.root=DIR for an experiment without data of its own", "none", "mmdiff.folder.Folder")
            own.append(f"data.root={self.files}")
        self.config = _compose(own)
        return {}

    def dataset(self) -> dict[str, float]:
        """Its data set keeps the contract."""
        from mmdiff.fitting import fit_config

        self.data = instantiate(self.config.data)
        fit_config(self.config, self.data)
        return check_dataset(self.data.dataset, self.data.modality)

    def modality(self) -> dict[str, float]:
        """The modality keeps the contract with these data, of which some are written for other experiments."""
        modality = self.data.modality
        self.folder.mkdir(parents=True)
        some = [self.data.train[i][0] for i in range(min(MEDIA, len(self.data.train)))]
        full = [media for media in some if modality.mask(media) is None]
        if len(full) < 2:  # decoded media have full size
            full = [modality.decode(modality.encode(media)) for media in some]
        short = next((media for media in some if modality.mask(media) is not None), None)
        if not any(self.files.rglob(f"*{modality.suffix}")):
            for i, media in enumerate(islice(some, 8)):
                path = self.files / ("one", "two")[i % 2] / f"{i}{modality.suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                modality.write(media, path)
        return check_modality(modality, full, self.folder, short=short)

    def conditions(self) -> dict[str, float]:
        """Conditions of the data are read, and may be left out."""
        torch.manual_seed(0)
        return check_conditioner(instantiate(self.config.conditioner), self._cond())

    def network(self) -> dict[str, float]:
        """The network keeps the contract with these shapes and conditions."""
        from mmdiff.checkpoint import build_denoiser

        torch.manual_seed(0)
        denoiser = build_denoiser(self.config, self.data.modality).eval()
        x0 = torch.stack([self.data.modality.encode(self.data.train[i][0]) for i in range(2)])
        with torch.no_grad():
            context = denoiser.conditioner(self._cond(), 2)
        return check_network(denoiser.network, x0, context, scaling=denoiser.scaling, factor=self.factor)

    def training(self) -> dict[str, float]:
        """Two steps of training leave a checkpoint and an export from which the same model comes back."""
        from mmdiff.checkpoint import export, load
        from mmdiff.cli.train import train

        train(self.config)
        checkpoint = self._checkpoint()
        see = "mmdiff.checkpoint"
        expect(checkpoint.is_file(), "training leaves checkpoints/last.ckpt", "none", see)
        models = []
        for seed in range(2):  # what a constructor draws and a checkpoint does not hold would differ
            torch.manual_seed(seed)
            models.append(load(checkpoint))
        export(models[0], self.folder / "export")
        models.append(load(self.folder / "export"))
        x = torch.randn(2, *models[0].modality.shape)
        outputs = [m.denoiser(x, 1.0, m.denoiser.conditioner(self._cond(), 2)) for m in models]
        same = all(torch.equal(outputs[0], output) for output in outputs[1:])
        expect(same, "a checkpoint and its export hold all that the output depends on", "another output", see)
        return {}

    def samples(self) -> dict[str, float]:
        """Two samples of two steps are written, the same for the same seed, and read back."""
        from mmdiff.checkpoint import load
        from mmdiff.generation import generate

        model = load(self._checkpoint())
        modality = model.modality
        conds = [dict(zip(self._cond(), values, strict=True)) for values in zip(*self._cond().values(), strict=True)]
        made = [generate(model, conds or [{}, {}], self.folder / f"samples_{i}")[0] for i in range(2)]
        expect(torch.equal(*made), "the same seed gives the same samples", "others", "mmdiff.sampling.SeededNoise")
        paths = sorted((self.folder / "samples_0").glob(f"0*{modality.suffix}"))  # preview.png is none of them
        expect(len(paths) == 2, "two samples make two files", len(paths), "mmdiff.generation.generate")
        for path in paths:
            x = modality.encode(modality.read(path))
            good = x.shape == tuple(modality.shape) and bool(x.isfinite().all())
            expect(good, "a written sample is read back", tuple(x.shape), "mmdiff.modality.Modality.write")
        return {}

    def _options(self) -> list[str]:
        own = [f"experiment={self.name}", "debug=fast", f"output={self.folder}/run"]
        return [*own, *self.overrides]

    def _checkpoint(self) -> Path:
        return self.folder / "run" / "checkpoints" / "last.ckpt"

    def _cond(self) -> dict[str, list[Any]]:
        """Conditions of the model, from two examples."""
        conds = [self.data.train[i][1] for i in range(2)]
        return {name: [cond.get(name) for cond in conds] for name in self.config.conditioner.embedders}


def _check_package(plugin: EntryPoint) -> dict[str, float]:
    problem = plugins.problem(plugin)
    expect(problem is None, f"{plugin.value} can be imported and fits this mmdiff", problem, RULES)
    expect(plugins.plugin_conf(plugin) is not None, f"{plugin.value} has a folder conf", "none", RULES)
    return {}


def _check_options(name: str, conf: Path, experiments: Sequence[str]) -> dict[str, float]:
    """Options are prefixed with the plugin's name, clash with no other, compose, and name things that are there."""
    expect(bool(experiments), f"an option experiment={name}/...", "none", RULES)
    found = [(group, option) for group in plugins.groups_in(conf) for option in plugins.options_in(conf, group)]
    for group, option in found:
        expect(option.startswith(f"{name}/"), f"options begin with {name}/", f"{group}={option}", RULES)
    for option, packages in plugins.clashes().items():
        ours = tuple(option.split("=")) not in found
        expect(ours, "options that no other package brings", f"{option} in {' and '.join(packages)}", RULES)
    for group, option in found:
        try:
            _compose(_choice(group, option, experiments[0]))
            for target in _targets(yaml.safe_load((conf / group / f"{option}.yaml").read_text(encoding="utf-8"))):
                get_object(target)
        except Exception as error:
            fail(f"{group}={option} composes, and its targets exist", in_one_line(error), RULES)
    return {"options": float(len(found))}


def _check_solver(option: str, experiment: str) -> dict[str, float]:
    return check_solver(instantiate(_compose(_choice("solver", option, experiment)).solver))


def _choice(group: str, option: str, experiment: str) -> list[str]:
    """Overrides that choose an option beside an experiment."""
    if group == "experiment":
        return [f"experiment={option}"]
    defaults = yaml.safe_load((plugins.core_conf() / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    known = {name for entry in defaults if isinstance(entry, dict) for name in entry}
    return [f"experiment={experiment}", f"{'' if group in known else '+'}{group}={option}"]


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(plugins.core_conf()), version_base="1.3"):
        return compose("train", list(overrides))


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a configuration."""
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _targets(part)


def _run(name: str, check: Callable[[], dict[str, float]]) -> Result:
    """Run a check in silence; whatever it raises is a failure."""
    state = torch.get_rng_state()
    level = logging.root.manager.disable
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            logging.disable()
            return Result(name, check(), None)
    except AssertionError as error:
        return Result(name, {}, str(error))
    except Exception as error:
        return Result(name, {}, message("no error", in_one_line(error), "mmdiff.testing.check_plugin"))
    finally:
        logging.disable(level)
        torch.set_rng_state(state)
