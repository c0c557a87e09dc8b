"""``mmdiff check``: does a plugin keep the contract?"""

import sys
from collections.abc import Sequence

from mmdiff.cli.app import mistakes

USAGE = "usage: mmdiff check NAME [experiment=NAME/...] [factor=10] [key=value ...]"
HELP = f"""{USAGE}

Checks an installed plugin: its options, and each experiment from data to written samples.

  NAME        of the plugin, as in `mmdiff info`
  experiment  the only one to check; all by default
  factor      by which some steps on one batch must lower the loss; 10 by default
  key=value   any override of the experiments: data.root=DIR, network.width=16
"""


def check(name: str, overrides: Sequence[str], factor: float) -> bool:
    """Print what each check finds; returns whether none failed."""
    from mmdiff.testing.plugin import results

    count = failed = 0
    for result in results(name, overrides, factor):
        measured = ", ".join(f"{what} {value:.4g}" for what, value in result.measured.items())
        print(f"{'FAILED' if result.failure else 'ok':7} {result.check:30} {measured}".rstrip(), flush=True)
        if result.failure:
            print(f"        {result.failure}".replace("; ", "\n        "), flush=True)
        count, failed = count + 1, failed + bool(result.failure)
    print(f"{failed} of {count} checks failed" if failed else f"all {count} checks passed")
    return not failed


def parse(arguments: Sequence[str]) -> tuple[str, list[str], float]:
    """NAME, the overrides and the factor.

    Raises:
        ValueError: if not exactly one NAME is given, or a factor that is no number.
    """
    names = [argument for argument in arguments if "=" not in argument]
    if len(names) != 1:
        raise ValueError(f"one NAME must be given, got {len(names)}; {USAGE}")
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("factor=")]
    (factor,) = [argument.partition("=")[2] for argument in arguments if argument.startswith("factor=")][-1:] or ["10"]
    try:
        return names[0], overrides, float(factor)
    except ValueError:
        raise ValueError(f"factor must be a number, got {factor!r}.") from None


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
    else:
        with mistakes("check"):
            sys.exit(not check(*parse(sys.argv[1:])))
