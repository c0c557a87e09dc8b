"""A solver whose levels and weights were fitted to one model (see `mmdiff.tuning`)."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmdiff.errors import DataError
from mmdiff.solvers.formula import Multiplier
from mmdiff.solvers.multistep import combine
from mmdiff.solvers.steps import aligned
from mmdiff.types import Denoise, Noise, Step


class Coefficients(NamedTuple):
    """A linear multistep method in the angle atan(sigma), float64 on the CPU.

    The rescaled state y = x cos(angle) at the i-th level is the sum of row i of ``weights`` times the state at the
    first level and the velocities dy / dangle at the levels before.
    """

    angles: Float[Tensor, "{steps}+1"]
    weights: Float[Tensor, "{steps}+1 {steps}+1"]

    @property
    def steps(self) -> int:
        """How often the denoiser is called."""
        return len(self.angles) - 1


def tuned(
    denoise: Denoise,
    x: Float[Tensor, "b *d"],
    sigmas: Float[Tensor, "n *s"],
    noise: Noise = torch.randn_like,
    *,
    file: str | Path,
) -> Iterator[Step]:
    """Bespoke non-stationary solver: Shaul et al. 2024, equation 17; what `mmdiff tune` wrote.

    Walks levels of its own: of ``sigmas`` only the ends and the number count, and parts that are 0 from the start.
    1 evaluation per step.

    Args:
        denoise: the denoiser.
        x: initial state.
        sigmas: decreasing noise levels, the same for all parts that move.
        noise: not used.
        file: of the coefficients.

    Raises:
        ValueError: for another number of steps, other ends, or levels that differ between moving parts.
        DataError: if the file holds no coefficients.
    """
    c = read(file)
    sigmas = aligned(sigmas, x)
    highest = sigmas.reshape(len(sigmas), -1).amax(1).double().cpu()
    largest = math.tan(c.angles[0])
    if len(sigmas) - 1 != c.steps:
        raise ValueError(f"steps must be {c.steps} for the solver in {file}, got {len(sigmas) - 1}.")
    if not math.isclose(highest[0], largest, rel_tol=1e-4) or highest[-1] > 0:
        raise ValueError(
            f"the solver in {file} goes from sigma {largest:.6g} to 0, "
            f"the schedule from {highest[0]:.6g} to {highest[-1]:.6g}; set schedule.sigma_max."
        )
    moving = None if sigmas.ndim == 1 else sigmas[0] > 0
    if moving is not None and not torch.equal(sigmas, sigmas.amax(tuple(range(1, sigmas.ndim)), keepdim=True) * moving):
        raise ValueError(f"the solver in {file} moves all parts at once; levels that differ (lag) need another solver.")
    return _walk(denoise, x, c, moving)


def _walk(denoise: Denoise, x: Tensor, c: Coefficients, moving: Tensor | None) -> Iterator[Step]:
    start, velocities = x * c.angles[0].cos(), list[Tensor]()
    sigmas = [angle.tan() if moving is None else angle.tan().item() * moving.to(x) for angle in c.angles]
    for i in range(c.steps):
        x0 = denoise(x, sigmas[i])
        velocities.append(velocity(x, x0, c.angles[i]))
        ahead = state(c, i + 1, start, velocities)
        x = ahead if moving is None else torch.where(moving, ahead, x)
        yield Step(i, sigmas[i + 1], x, x0)


def velocity(x: Tensor, x0: Tensor, angle: Tensor) -> Tensor:
    """dy / dangle = cos eps - sin x0 of y = x cos(angle): v of Salimans & Ho 2022."""
    return combine((angle.cos() / angle.tan()).item(), x, [(-1 / angle.sin()).item()], [x0])


def state(c: Coefficients, i: int, start: Tensor, velocities: Sequence[Tensor]) -> Tensor:
    """x at the i-th level."""
    row: list[Multiplier] = (c.weights[i, : i + 1] / c.angles[i].cos()).tolist()
    return combine(row[0], start, row[1:], velocities[:i])


def read(file: str | Path) -> Coefficients:
    """The coefficients in a file of `write`.

    Raises:
        DataError: if it cannot be read or holds none.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        sigmas = torch.tensor(content["sigmas"], dtype=torch.float64)
        rows = [torch.tensor(row, dtype=torch.float64) for row in content["weights"]]
        weights = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if [len(row) for row in rows] != list(range(1, len(sigmas) + 1)) or not (sigmas.diff() < 0).all():
            raise ValueError("its levels do not fall, or its weights do not fit them")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(file, f"holds no solver that mmdiff tune wrote ({error!r})") from error
    return Coefficients(sigmas.atan(), weights)


def write(c: Coefficients, file: str | Path, **about: object) -> None:
    """Write coefficients, and what is to be known about them, as JSON."""
    rows = [row[: i + 1].tolist() for i, row in enumerate(c.weights)]
    content = {"steps": c.steps, **about, "sigmas": c.angles.tan().tolist(), "weights": rows}
    Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
