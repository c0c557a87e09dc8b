"""Runs a command under Hydra and turns a user's mistake into one or two lines."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import hydra
import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from mmdiff import plugins
from mmdiff.errors import DataError, allowed

MISTAKES = (DataError, HydraException, OmegaConfBaseException, OSError, ValueError)
FULL = "HYDRA_FULL_ERROR"
WORDS = ("prompt", "negative", "source")
"""Options that are texts; ``source`` may be a mapping, too."""


def run(command: str, job: Callable[[DictConfig], None], config_name: str | None = None) -> None:
    """Compose the configuration of ``command``, or another one, from ``sys.argv`` and call ``job`` with it.

    Exits with status 1 after a mistake, saying what was given, what is allowed and which key to change.
    """
    plugins.register()
    sys.argv[0] = "mmdiff"  # the program that a shell completes; processes that Lightning starts go by the module
    if "COMP_LINE" in os.environ:  # Hydra takes one word off the line to be completed; "mmdiff COMMAND" is two
        os.environ["COMP_LINE"] = os.environ["COMP_LINE"].partition(" ")[2]
    full = os.environ.get(FULL)
    os.environ[FULL] = "1"  # else Hydra prints its own account of an error and exits

    def guarded(config: DictConfig) -> None:
        del os.environ[FULL]  # it is not meant for processes that the job starts
        warnings.showwarning = _show_warning
        try:
            job(config)
        except MISTAKES as error:
            _fail(command, error, show=full == "1")
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            _fail(command, error, show=full == "1")  # an option that a class or function does not take
        finally:
            os.environ[FULL] = "1"  # for the next job of a multirun

    guarded.__module__ = job.__module__
    try:
        hydra.main(version_base="1.3", config_path=str(plugins.core_conf()), config_name=config_name or command)(
            guarded
        )()
    except MISTAKES as error:
        _fail(command, error, show=full == "1")


@contextmanager
def mistakes(command: str) -> Iterator[None]:
    """The same for what runs inside, of a command that composes no configuration."""
    try:
        yield
    except MISTAKES as error:
        _fail(command, error, show=os.environ.get(FULL) == "1")


def _fail(command: str, error: BaseException, *, show: bool) -> NoReturn:
    if show:
        traceback.print_exception(error)
    print(f"mmdiff {command}: {explain(error)}", file=sys.stderr)
    if not show:
        print(f"({FULL}=1 shows the traceback)", file=sys.stderr)
    sys.exit(1)


def from_checkpoint(command: str, arguments: Sequence[str]) -> list[str]:
    """Let arguments say only what differs from the checkpoint.

    ``guidance.scale=3`` stands without ``guidance=...``; a word that is no option of the command is one of the
    modality, ``seconds=2`` for ``modality.seconds=2``.
    """
    if "-sc" in arguments:  # what follows is for the shell
        return list(arguments)
    options = yaml.safe_load((plugins.core_conf() / f"{command}.yaml").read_text(encoding="utf-8"))
    groups = {name for entry in options.pop("defaults") if isinstance(entry, dict) for name in entry}
    chosen = {argument.partition("=")[0] for argument in arguments}

    def completed(argument: str) -> str:
        key, equals, _ = argument.partition("=")
        first = key.split(".")[0]
        if first in {"schedule", "solver", "guidance", "modality", "data"} - chosen:
            return f"++{argument}"
        own = first in {*options, *groups, "hydra"} or not (equals and first.isidentifier())
        return argument if own else f"++modality.{argument}"

    return [completed(in_words(argument)) for argument in arguments]


def in_words(argument: str) -> str:
    """A prompt quoted for Hydra, which would stumble over its commas and colons; as it is if quoted already."""
    key, equals, text = argument.partition("=")
    quoted = len(text) > 1 and text[0] == text[-1] in "'\""
    if key not in WORDS or not equals or text in ("", "null") or quoted or (key == "source" and text[0] == "{"):
        return argument
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), text.replace("${", "\\${"))
    return f"{key}='{escaped}'"


def explain(error: BaseException) -> str:
    """A mistake in one sentence or two, without Hydra's vocabulary."""
    key_error = _find(error, (ConfigKeyError, ConfigAttributeError))
    missing = _find(error, (MissingConfigException,))
    mandatory = _find(error, (MissingMandatoryValue,))
    instantiation = _find(error, (InstantiationException,))
    if isinstance(missing, MissingConfigException) and missing.missing_cfg_file:
        group, _, option = str(missing.missing_cfg_file).partition("/")
        return f"{group}={option} does not exist; {allowed(option, plugins.options(group), group)}"
    if isinstance(mandatory, MissingMandatoryValue):
        return f"{mandatory.full_key} must be given: add {mandatory.full_key}=VALUE"
    if isinstance(key_error, OmegaConfBaseException) and key_error.parent_node is not None:
        owner, _, key = str(key_error.full_key).rpartition(".")
        known = [str(k) for k in key_error.parent_node if k != "hydra"]
        return f"{key_error.full_key} is not an option; {allowed(key, known, owner or 'the command')}"
    if isinstance(instantiation, InstantiationException) and instantiation.__cause__ is not None:
        where = str(instantiation).rpartition("full_key: ")[2].split()
        return ": ".join([*where[:1], _one_line(instantiation.__cause__)])
    unset = re.match("You must specify '(\\w+)'", str(error))
    if unset:
        group = unset[1]
        return f"{group} must be given: add {group}=NAME, one of {', '.join(plugins.options(group))}"
    return _one_line(error)


def _find(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {message}", file=sys.stderr)  # above a progress bar, not into its line
