"""mmdiff: one diffusion core for every modality.

The letters used everywhere: ``x0`` is clean data in model space (std near 1), ``eps`` is unit Gaussian noise,
``sigma`` is the noise-to-signal ratio and ``x = x0 + sigma * eps`` is the state that a solver moves.
"""

from importlib.metadata import version

from mmdiff.errors import DataError

__all__ = ["DataError", "__version__"]
__version__ = version("mmdiff")
