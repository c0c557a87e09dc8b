"""``python -m mmdiff`` is the command ``mmdiff``."""

from mmdiff.cli import main

main()
