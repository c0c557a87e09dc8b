"""Noise schedules: quantile functions from t in [0, 1] to the noise-to-signal ratio sigma.

One function serves three purposes. A uniform t gives the noise levels of a training batch (``draw``), a
decreasing linspace gives the steps of a sampler (``grid``), and the density of the levels is its derivative.
Every Gaussian path x_t = alpha_t x0 + s_t eps enters through sigma = s_t / alpha_t alone.
All arithmetic is float64 on the CPU, so that a grid costs no device synchronization.
"""

from mmdiff.schedules.base import NoiseSchedule, Resized
from mmdiff.schedules.paths import Cosine, Flow, LinearVP, ScaledLinearVP, Sigmoid
from mmdiff.schedules.spacings import Angular, Karras, Laplace, LogLinear, LogNormal

__all__ = [
    "Angular",
    "Cosine",
    "Flow",
    "Karras",
    "Laplace",
    "LinearVP",
    "LogLinear",
    "LogNormal",
    "NoiseSchedule",
    "Resized",
    "ScaledLinearVP",
    "Sigmoid",
]
