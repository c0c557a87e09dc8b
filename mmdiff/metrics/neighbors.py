"""What nearest neighbors tell about two sets of media, given any distance between two media.

Distances come as matrices: ``rr`` between real media, ``rg`` from real (rows) to generated media (columns), ``gg``
between generated media; ``r`` real and ``g`` generated. The diagonals of ``rr`` and ``gg`` are never read.

Shares lie between 0 and 1. All three figures depend on the sizes of the sets: compare them at equal sizes only.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


def nearest_neighbor_accuracy(
    rr: Float[Tensor, "r r"], rg: Float[Tensor, "r g"], gg: Float[Tensor, "g g"]
) -> Float[Tensor, ""]:
    """Leave-one-out accuracy of a nearest-neighbor classifier of real against generated: Lopez-Paz and Oquab 2017.

    0.5 if the sets cannot be told apart, 1 if they lie apart, below 0.5 if generated media are closer to real ones than
    real ones are to each other: memorized. It is the mean of the accuracies on the real and on the generated set, so
    0.5 means the same for sets of unequal size, at sizes large enough to ignore the one left out. Neighbors that are
    equally near vote by their share: of a real medium with one copy in each set, half is right.
    """
    real = own_share(rr, rg)
    fake = own_share(gg, rg.T)
    return (real.mean() + fake.mean()) / 2


def own_share(within: Float[Tensor, "n n"], across: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
    """Of the nearest neighbors of each row, in its own set without itself and in the other, the share in its own."""
    within = within.clone().fill_diagonal_(math.inf)
    nearest = torch.minimum(within.amin(1), across.amin(1))[:, None]
    own, other = (within == nearest).sum(1), (across == nearest).sum(1)
    return own / (own + other)


def coverage(rg: Float[Tensor, "r g"]) -> Float[Tensor, ""]:
    """Share of real media that are the nearest real one of some generated medium: Achlioptas et al. 2018.

    1 is best, but equal distributions reach about 0.6 at r = g. All real media that are equally near count.
    """
    return (rg == rg.amin(0)).any(1).to(rg.dtype).mean()


def minimum_matching_distance(rg: Float[Tensor, "r g"]) -> Float[Tensor, ""]:
    """Mean over real media of the distance to the nearest generated one: Achlioptas et al. 2018.

    In the unit of the distance; it rewards memorized media, and does not see poor ones beside good ones.
    """
    return rg.amin(1).mean()


class TwoSets(Metric):
    """Keeps all real and all generated media until ``compute``; they must be of one shape within a set.

    Args:
        features: what of a batch of media is kept; all by default.
    """

    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, features: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.features = features
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, media: Tensor, *, real: bool, cond: dict[str, list[Any]] | None = None) -> None:
        """Add a batch of media."""
        media = media if self.features is None else self.features(media)
        kept = self.real if real else self.fake
        if kept and kept[0].shape[1:] != media.shape[1:]:
            kind = "real" if real else "generated"
            raise ValueError(
                f"{kind} media must be of one shape, {tuple(kept[0].shape[1:])}, got {tuple(media.shape[1:])}."
            )
        kept.append(media.detach())

    def sets(self) -> tuple[Tensor, Tensor] | None:
        """Real and generated media, each stacked; None if one of the sets has fewer than two."""
        if not len(self.real) or not len(self.fake):
            return None
        real = torch.cat(self.real) if isinstance(self.real, list) else self.real
        fake = torch.cat(self.fake) if isinstance(self.fake, list) else self.fake
        return (real, fake) if min(len(real), len(fake)) > 1 else None


class Neighbors(TwoSets):
    """Nearest-neighbor accuracy, coverage and minimum matching distance of generated media, by one distance.

    Args:
        distance: maps two stacked sets of a and b media to their distances (a, b); the two are one object where a set
            is compared with itself.
        features: what of a batch of media is compared; all by default.
    """

    def __init__(
        self, distance: Callable[[Tensor, Tensor], Tensor], features: Callable[[Tensor], Tensor] | None = None
    ):
        super().__init__(features)
        self.distance = distance

    def compute(self) -> dict[str, Tensor]:
        """``one_nna``, its binomial standard error ``one_nna_se``, ``coverage`` and ``mmd``; nan below two media."""
        sets = self.sets()
        if sets is None:
            nan = torch.tensor(math.nan, device=self.device)
            return dict.fromkeys(("one_nna", "one_nna_se", "coverage", "mmd"), nan)
        real, fake = sets
        rg = self.distance(real, fake)
        accuracy = nearest_neighbor_accuracy(self.distance(real, real), rg, self.distance(fake, fake))
        return {
            "one_nna": accuracy,
            "one_nna_se": (accuracy * (1 - accuracy) / (len(real) + len(fake))).sqrt(),
            "coverage": coverage(rg),
            "mmd": minimum_matching_distance(rg),
        }
