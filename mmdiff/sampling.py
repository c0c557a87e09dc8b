"""Sampling: noise that belongs to an example, the loop that runs a solver, and the choices that it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.denoiser import Denoiser, expand_sigma
from mmdiff.schedules import NoiseSchedule
from mmdiff.types import Context, Denoise, DenoiseInContext, Noise, Solver, Step


class SeededNoise:
    """Unit Gaussian noise with one generator per example.

    An example's noise depends on its seed and on how often noise was drawn before, not on the examples beside it,
    the size of the batch, the number of processes or the device (it is drawn on the CPU).

    Args:
        seeds: one per example of the batch.
    """

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        if len(x) != len(self.generators):
            raise ValueError(f"{len(self.generators)} seeds cannot make noise for {len(x)} examples.")
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in self.generators]).to(x)


@torch.no_grad()
def sample(
    denoise: Denoise,
    shape: Sequence[int],
    sigmas: Float[Tensor, "n *s"],
    solver: Solver,
    noise: Noise,
    on_step: Callable[[Step], None] | None = None,
    *,
    given: Float[Tensor, "b *d"] | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b *d"]:
    """Draw a batch from pure noise, or continue from given data.

    Args:
        denoise: a denoiser with its conditions bound (see `mmdiff.guidance`).
        shape: of the batch, (b, *d).
        sigmas: noise levels, (steps + 1,) or (steps + 1, *parts); parts at 0 from the start keep what is given.
        solver: one of `mmdiff.solvers`.
        noise: source of the initial and the solver's noise, for instance `SeededNoise`.
        on_step: called with every step.
        given: data to which noise of the first level is added; zeros if None.
        device: where to sample when nothing is given.

    Raises:
        ValueError: if ``sigmas`` has no step, or the given data the wrong shape.
    """
    if len(sigmas) < 2:
        raise ValueError(f"sigmas must hold at least two levels, got {len(sigmas)}.")
    x0 = torch.zeros(tuple(shape), device=device) if given is None else given
    if x0.shape != torch.Size(shape):
        raise ValueError(f"the given data have shape {tuple(x0.shape)}, the samples {tuple(shape)}.")
    x = x0 + expand_sigma(sigmas[0], x0) * noise(x0)
    for step in solver(denoise, x, sigmas, noise):
        if on_step:
            on_step(step)
        x = step.x
    return x


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are drawn: the four choices of a command line.

    Args:
        schedule: whose grid the solver walks.
        steps: of the solver.
        solver: one of `mmdiff.solvers`.
        guidance: one of `mmdiff.guidance`, called with the denoiser, what is asked and the null context.
    """

    schedule: NoiseSchedule
    steps: int
    solver: Solver
    guidance: Callable[[DenoiseInContext, Context, Context], Denoise]

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        cond: Mapping[str, Sequence[Any]],
        seeds: Sequence[int],
        on_step: Callable[[Step], None] | None = None,
        *,
        given: Float[Tensor, "b *d"] | None = None,
        known: Bool[Tensor, "b *parts"] | None = None,
    ) -> Float[Tensor, "b *d"]:
        """Samples of ``shape`` in model space, one per seed.

        Args:
            denoiser: the model.
            shape: of one sample.
            cond: one value per seed and name.
            seeds: of the samples.
            on_step: called with every step.
            given: data to complete.
            known: the parts of them to keep, broadcastable against them with one channel; they come out bitwise.
        """
        conditioner = denoiser.conditioner
        device = next(denoiser.parameters()).device
        context, null = conditioner(cond, len(seeds)), conditioner.null(len(seeds))
        sigmas = self.schedule.grid(self.steps)
        if given is not None and known is not None:
            given, known = given.to(device), known.to(device)
            given = torch.where(known, given, 0)
            sigmas = sigmas.to(given).reshape(-1, *[1] * known.ndim) * ~known
        return sample(
            self.guidance(denoiser, context, null),
            (len(seeds), *shape),
            sigmas,
            self.solver,
            SeededNoise(seeds),
            on_step,
            given=given,
            device=device,
        )
