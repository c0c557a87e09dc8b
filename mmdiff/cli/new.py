"""``mmdiff new``: a plugin distribution that works at once, to be made one's own."""

import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import mmdiff
from mmdiff.cli.app import mistakes
from mmdiff.errors import allowed

USAGE = "usage: mmdiff new NAME [output=DIR]"
HELP = f"""{USAGE}

Writes the distribution mmdiff-NAME: a modality with its network, made-up data, options and a test. It works as it
stands, and its README says what to change.

  NAME    of the plugin: what its options begin with, as in experiment=NAME/folder
  output  the new folder; mmdiff-NAME by default
"""
TEMPLATE = Path(mmdiff.__file__).parent / "template"


def new(name: str, output: Path) -> None:
    """Write the distribution of a new plugin.

    Args:
        name: of the plugin.
        output: the folder, which must not exist.

    Raises:
        ValueError: for a name that no package can have or that is taken, and for a folder that exists.
    """
    from mmdiff.plugins import plugins

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(f"NAME must be lower-case letters, digits and _, beginning with a letter, got {name!r}.")
    if name in {plugin.name for plugin in plugins()}:
        raise ValueError(f"{name} is an installed plugin already; choose another NAME.")
    if output.exists():
        raise ValueError(f"{output} exists already; choose another output=DIR.")
    words = {
        "plugin_name": name,
        "PluginName": "".join(part.capitalize() for part in name.split("_")),
    }

    def filled(text: str) -> str:
        return re.sub("|".join(words), lambda match: words[match[0]], text)

    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_file() and source.suffix != ".pyc":
            path = output / filled(source.relative_to(TEMPLATE).as_posix())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(filled(source.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {output}; next:\n  pip install --editable {output}\n  mmdiff check {name}")
    print(f"  mmdiff train experiment={name}/waves")


def parse(arguments: Sequence[str]) -> tuple[str, Path]:
    """NAME and the folder.

    Raises:
        ValueError: for arguments that are no NAME or ``output=DIR``.
    """
    names = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    surplus = min(set(options) - {"output"}, default=None)
    if surplus:
        raise ValueError(f"{surplus} is not an option; {allowed(surplus, ['output'], 'the command')}.")
    if len(names) != 1:
        raise ValueError(f"one NAME must be given, got {len(names)}; {USAGE}")
    return names[0], Path(options.get("output") or f"mmdiff-{names[0]}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
    else:
        with mistakes("new"):
            new(*parse(sys.argv[1:]))
