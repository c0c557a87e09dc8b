"""Sampling: noise that belongs to an example, the loop that runs a solver, and the choices that it takes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmdiff.conditioning import unmix
from mmdiff.denoiser import Denoiser, expand_sigma
from mmdiff.errors import check_at_least
from mmdiff.guidance import Asking, Guidance, weighted
from mmdiff.schedules import NoiseSchedule
from mmdiff.types import Context, Denoise, Noise, Solver, Step


@dataclass(frozen=True)
class Between:
    """In place of a seed: noise between those of two seeds, a ``share`` of the way from the first to the second.

    The blend cos(a) n1 + sin(a) n2, for a from 0 to 90 degrees, is unit Gaussian as they are (a mean would not be).
    """

    first: int
    second: int
    share: float

    def __add__(self, offset: int) -> "Between":
        return replace(self, first=self.first + offset, second=self.second + offset)


class SeededNoise:
    """Unit Gaussian noise with generators of its own for each example.

    An example's noise depends on its seed and on how often noise was drawn before, not on the examples beside it,
    the size of the batch, the number of processes or the device (it is drawn on the CPU).

    Args:
        seeds: one per example of the batch.
    """

    def __init__(self, seeds: Sequence[int | Between]):
        self.sources = [_source(seed) for seed in seeds]

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        if len(x) != len(self.sources):
            raise ValueError(f"{len(self.sources)} seeds cannot make noise for {len(x)} examples.")
        return torch.stack([source(x.shape[1:]) for source in self.sources]).to(x)


def _source(seed: int | Between) -> Callable[[torch.Size], Tensor]:
    if isinstance(seed, Between):
        angle = math.pi / 2 * seed.share
        first, second = _source(seed.first), _source(seed.second)
        return lambda shape: math.cos(angle) * first(shape) + math.sin(angle) * second(shape)
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


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


def staggered(sigmas: Float[Tensor, "n"], parts: int, lag: int) -> Float[Tensor, "m {parts}"]:
    """Levels of parts that start one after another, each ``lag`` steps after the one before: rolling diffusion.

    Ruhe et al. 2024; the pyramid of Chen et al. 2024 (diffusion forcing). With a lag of all steps each part is drawn
    when those before it are data.
    """
    start = lag * torch.arange(parts)
    step = torch.arange(len(sigmas) + int(start[-1]))[:, None] - start
    return sigmas[step.clamp(0, len(sigmas) - 1)]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How samples are drawn: the choices of a command line.

    Args:
        schedule: whose grid the solver walks.
        steps: of the solver.
        solver: one of `mmdiff.solvers`.
        guidance: one of `mmdiff.guidance`, called with the denoiser, what is asked and the null context.
        lag: steps by which each moment starts after the one before (see `staggered`); 0 for all at once.
    """

    schedule: NoiseSchedule
    steps: int
    solver: Solver
    guidance: Guidance | Asking
    lag: int = 0

    def __post_init__(self):
        check_at_least(0, lag=self.lag)

    def bind(
        self,
        denoiser: Denoiser,
        cond: Mapping[str, Sequence[Any]],
        count: int,
        against: Mapping[str, Sequence[Any]] | None = None,
    ) -> Denoise:
        """The guided denoiser of ``count`` samples, told what is asked of them and what is asked against."""
        null = denoiser.conditioner(against or {}, count)
        conds, weights = unmix(cond, count)
        parts = [self._guide(denoiser, part, count, null) for part in conds]
        return parts[0] if len(parts) == 1 else weighted(parts, weights)

    def _guide(self, denoiser: Denoiser, cond: Mapping[str, Sequence[Any]], count: int, null: Context) -> Denoise:
        guidance = self.guidance
        if isinstance(guidance, Asking):
            guidance = guidance.ask(cond, count, next(denoiser.parameters()).device)
        return guidance(denoiser, denoiser.conditioner(cond, count), null)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        cond: Mapping[str, Sequence[Any]],
        seeds: Sequence[int | Between],
        on_step: Callable[[Step], None] | None = None,
        *,
        against: Mapping[str, Sequence[Any]] | None = None,
        given: Float[Tensor, "b *d"] | None = None,
        known: Bool[Tensor, "b *parts"] | None = None,
        time: int | None = None,
        strength: float = 1.0,
        resampling: Callable[..., Iterator[Step]] | None = None,
        adapt: Callable[[Denoise], Denoise] | None = None,
    ) -> Float[Tensor, "b *d"]:
        """Samples of ``shape`` in model space, one per seed.

        Args:
            denoiser: the model.
            shape: of one sample.
            cond: one value per seed and name; a mapping from value to weight asks for a mixture.
            seeds: of the samples.
            on_step: called with every step.
            against: conditions that guidance moves away from, like ``cond``; nothing said if None.
            given: data to complete, or to vary.
            known: the parts of them to keep, broadcastable against them with one channel; they come out bitwise.
            time: dimension of a sample along which it has moments, counted from its end; needed with a ``lag``.
            strength: in (0, 1], where on the schedule what is given gets noise and sampling starts: SDEdit,
                Meng et al. 2022. At 1 nothing stays of parts that are not kept.
            resampling: in place of the solver and of levels per part, for models trained without these: keeps the
                known parts at one level for all (see `mmdiff.solvers.repaint`).
            adapt: makes another denoiser of the guided one, which heeds a measurement (see `mmdiff.inverse`) or bounds.

        Raises:
            ValueError: if moments are to lag in samples that have none, or at one level for all.
        """
        device = next(denoiser.parameters()).device
        if not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {strength:g}.")
        sigmas, solver = self.schedule.grid(self.steps, strength), self.solver
        if self.lag:
            sigmas = self._one_after_another(sigmas, shape, time).to(device)
        if given is not None:
            given = given.to(device)
        if given is not None and known is not None:
            known = known.to(device)
            given = torch.where(known, given, 0) if strength == 1 else given
        if given is not None and known is not None and resampling:
            if self.lag:
                raise ValueError("lag is for levels per part, which resampling does without; set lag=0.")
            solver = partial(resampling, given=given, known=known)
        elif given is not None and known is not None:
            sigmas = sigmas if self.lag else sigmas.reshape(-1, *[1] * known.ndim)
            sigmas = sigmas.to(given) * ~known
            moves = (sigmas[1:] != sigmas[:-1]).flatten(1).any(1)  # none while a known part has its turn
            sigmas = torch.cat([sigmas[:1], sigmas[1:][moves]])
        denoise = self.bind(denoiser, cond, len(seeds), against)
        return sample(
            adapt(denoise) if adapt else denoise,
            (len(seeds), *shape),
            sigmas,
            solver,
            SeededNoise(seeds),
            on_step,
            given=given,
            device=device,
        )

    def _one_after_another(
        self, sigmas: Float[Tensor, "n"], shape: Sequence[int], time: int | None
    ) -> Float[Tensor, "m *parts"]:
        if time is None:
            raise ValueError("lag is between moments, which samples of this modality do not have; leave it out.")
        parts = [1] * (1 + len(shape))
        parts[time] = shape[time]
        return staggered(sigmas, shape[time], self.lag).reshape(-1, *parts)
