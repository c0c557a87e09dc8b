"""The command line: ``mmdiff COMMAND [key=value ...]``. Imports nothing heavy, so that help is instant."""

import os
import runpy
import sys

from mmdiff import __version__

COMMANDS = {
    "train": "train a model:                  mmdiff train experiment=NAME",
    "sample": "draw samples from a checkpoint: mmdiff sample checkpoint=PATH count=16 output=DIR",
    "edit": "change files with a model:      mmdiff edit checkpoint=PATH given=FILE keep=PARTS output=DIR",
    "evaluate": "measure a checkpoint:           mmdiff evaluate checkpoint=PATH count=256 output=DIR",
    "tune": "fit a solver of few steps:      mmdiff tune checkpoint=PATH steps=8 output=FILE",
    "export": "write weights without pickle:   mmdiff export checkpoint=PATH output=DIR",
    "shard": "pack a folder into shards:      mmdiff shard data.root=DIR output=DIR",
    "info": "show versions, devices, plugins, options; with experiment=NAME devices=N what training costs",
    "new": "write a plugin of your own:     mmdiff new NAME",
    "check": "does a plugin keep the rules:   mmdiff check NAME",
}

HELP = (
    f"""mmdiff {__version__}: one diffusion core for every modality.

usage: mmdiff COMMAND [key=value ...]

"""
    + "".join(f"  {name:9} {text}\n" for name, text in COMMANDS.items())
    + """
  mmdiff COMMAND --help       what the command takes, and the options of every group
  mmdiff COMMAND --cfg job    the composed configuration, without running it
  mmdiff train -m seed=1,2,3  one run per value

Shell completion (bash): eval "$(mmdiff -sc install=bash)"
"""
)


SPINS = "30000"
"""Turns for which a thread of GNU OpenMP waits for the others before it sleeps, see `benchmarks/threads.py`.

Left alone it hardly ever sleeps, and a training whose cores have anything else to do takes several times as long.
"""


def main() -> None:
    """Dispatch to ``mmdiff.cli.COMMAND`` so that the process looks like ``python -m mmdiff.cli.COMMAND ...``.

    Lightning's launcher starts further processes from ``sys.argv``, and Hydra reads it: both must see a module that
    can be run as it stands with nothing but overrides behind it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported
    if sys.argv[1:2] == ["-sc"] and not _complete_command():
        return
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif arguments[0] in ("-V", "--version"):
        print(f"mmdiff {__version__}")
    elif arguments[0] in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"mmdiff.cli.{arguments[0]}", run_name="__main__", alter_sys=True)
    else:
        print(f"mmdiff: {arguments[0]!r} is not a command; commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)


def _complete_command() -> bool:
    """Take the command from the line that a shell completes; False if it is the command that is to be completed."""
    words = os.environ.get("COMP_LINE", "mmdiff train ").split(" ")
    if len(words) < 3:
        print(" ".join(COMMANDS))
    if len(words) < 3 or words[1] in ("new", "check"):
        return False
    sys.argv.insert(1, words[1])
    return True
