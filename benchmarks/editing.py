"""Measures edits of held-out data by a trained model: joins beside real data, inverse problems beside interpolation.

    python benchmarks/editing.py joins CHECKPOINT [COUNT]
    python benchmarks/editing.py inverse CHECKPOINT [COUNT] [pigdm|mmps|dps]

Prints rows of RESULTS.md. Nothing is asked of the model (no conditions); seeds are those of `mmdiff edit`.
"""

import sys
import time
from functools import partial

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn.functional import interpolate

from joins import density_step, edge_difference, frame_difference, spectral_flux, within
from mmdiff.checkpoint import Model, load
from mmdiff.editing import Edit, edited
from mmdiff.evaluation import held_out
from mmdiff.inverse import dps, mmps, pigdm
from mmdiff_audio.representations import STFT

REAL = 256  # held-out examples that say what is usual


def run(model: Model, media: list[Tensor], edit: Edit, size: int = 8) -> tuple[Tensor, str]:
    parts = list(edited(model, [{}] * len(media), media, edit, seed=0, batch_size=size))
    return torch.cat([x for x, _ in parts]), parts[0][1]


def joins(model: Model, media: list[Tensor], count: int) -> None:
    """Edits, joins of unrelated examples in the same place (which must show), and real data."""
    kind, modality = type(model.modality).__name__, model.modality
    real = modality.decode(modality.encode(torch.stack(media)))  # as edits are: heard through the representation
    for keep, statistic, pasted in JOINS[kind]:
        usual = statistic(real)
        start = time.monotonic()
        made, how = run(model, media[:count], Edit(keep=keep))
        _, mask = model.modality.place(media[0], keep)
        wrong = statistic(pasted(real[:count], real[1 : count + 1], mask))
        values = statistic(modality.decode(made))
        print(
            f"| {kind} | `{keep}` | {how} | {values.mean():.3g} | {usual.mean():.3g} | {usual.quantile(0.95):.3g} "
            f"| {within(values, usual):.0%} | {within(wrong, usual):.0%} | {count} | {time.monotonic() - start:.0f} |",
            flush=True,
        )


def spliced(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Waves, the first in the kept time and the second elsewhere."""
    kept = interpolate(mask[:, :1].float(), first.shape[-1])[..., 0, :] > 0.5
    return torch.where(kept, first, second)


def masked(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, first, second)


def halves(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """The points of the first on one side of x = 0, and those of the second that are on the other side."""
    side = torch.cat([first[..., :1] < 0, second[..., :1] >= 0], 1)
    both = torch.cat([first, second], 1)
    return torch.where(side, both, 1e6)


def flux(media: Tensor) -> Tensor:
    return torch.maximum(*(spectral_flux(media[:, 0], 8000, seconds) for seconds in (0.4, 0.6)))


def cloud(media: Tensor) -> Tensor:
    return density_step(media[..., 0], 0.0, 0.1)


JOINS = {
    "Audio": [("not seconds:0.4:0.6", flux, spliced)],
    "Video": [
        ("frames::3", lambda x: frame_difference(x.float(), 3), masked),
        ("columns::8", lambda x: edge_difference(x.float(), 8), masked),
    ],
    "PointCloud": [("x::0", cloud, halves)],
}


def inverse(model: Model, media: list[Tensor], method: str) -> None:
    """Errors of restored examples in model space, beside the naive answer's."""
    kind = type(model.modality).__name__
    for measured, noise, options, naive, error in problems(model):
        start = time.monotonic()
        x0 = torch.stack([model.modality.encode(one) for one in media])
        generator = torch.Generator().manual_seed(1)
        given = [clipped(one) for one in media] if measured == "unclipped" else media
        seen = torch.stack([model.modality.encode(one) for one in given])
        seen = seen + noise * torch.randn(x0.shape, generator=generator)
        given = [model.modality.decode(x) for x in seen] if noise else given
        heed = {"dps": dps, "pigdm": pigdm, "mmps": mmps}[method]
        got, how = run(model, given, Edit(measured=measured, inverse=heed, **options))
        masks = torch.stack([model.modality.operator(measured, one)(torch.ones_like(x0[:1]))[0] for one in media])
        plain = naive(seen, masks)
        ours, theirs = (error(one, x0, masks) for one in (got, plain))
        wins = (ours < theirs).float().mean()
        print(
            f"| {kind} | `{measured}` | {noise:g} | {method if how == 'restored' else how} "
            f"| {ours.mean():.3f} | {theirs.mean():.3f} | {1 - ours.mean() / theirs.mean():.0%} | {wins:.0%} "
            f"| {len(media)} | {time.monotonic() - start:.0f} |",
            flush=True,
        )


def rms(got: Tensor, x0: Tensor, masks: Tensor) -> Tensor:
    """Root mean square error of the elements that were not measured; of all where measurements are not elements."""
    missing = masks == 0 if masks.shape == x0.shape else torch.ones_like(x0, dtype=torch.bool)
    error = torch.where(missing, (got - x0) ** 2, 0).flatten(1).sum(1)
    return (error / missing.flatten(1).sum(1)).sqrt()


def chamfer(got: Tensor, x0: Tensor, masks: Tensor) -> Tensor:
    distance = torch.cdist(got.mT[..., :3], x0.mT[..., :3])
    return (distance.amin(1).mean(1) + distance.amin(2).mean(1)) / 2


def across(seen: Tensor, masks: Tensor, dim: int) -> Tensor:
    """Straight lines along a dimension between what was measured, and its nearest value at the ends."""
    line, x = masks.movedim(dim, -1), seen.movedim(dim, -1).clone()
    known = line[0].flatten(0, -2)[0].nonzero().flatten().tolist()
    for i in range(x.shape[-1]):
        low, high = max([k for k in known if k <= i], default=known[0]), min([k for k in known if k >= i], default=-1)
        high = known[-1] if high < 0 else high
        share = (i - low) / (high - low) if high > low else 0.0
        x[..., i] = (1 - share) * seen.movedim(dim, -1)[..., low] + share * seen.movedim(dim, -1)[..., high]
    return x.movedim(-1, dim)


def enlarged(seen: Tensor, masks: Tensor) -> Tensor:
    frames = seen.transpose(1, 2).flatten(0, 1)
    small = torch.nn.functional.avg_pool2d(frames, 4)
    large = interpolate(small, frames.shape[-2:], mode="bicubic", align_corners=False)
    return large.unflatten(0, (len(seen), -1)).transpose(1, 2)


def partial_cloud(seen: Tensor, masks: Tensor) -> Tensor:
    """The points that were measured, again and again."""
    return torch.stack(
        [
            x[:, (m[0] > 0).nonzero().flatten()[torch.arange(x.shape[1]) % int(m[0].sum())]]
            for x, m in zip(seen, masks, strict=True)
        ]
    )


def off_surface(model: Model, got: Tensor, x0: Tensor, masks: Tensor) -> Tensor:
    """Mean distance of points to the surfaces that the held-out clouds were drawn from, by 16384 points of each."""
    config = model.config.copy()
    config.data.dataset.points = 16384
    dense = torch.stack([media for media, _ in held_out(config, len(got))])
    surface = (dense - model.modality.mean) / model.modality.std
    return torch.cdist(got.mT[..., :3], surface[..., :3]).amin(2).mean(1)


def clipped(wave: Tensor) -> Tensor:
    """A wave cut off at a third of its peak."""
    return wave.clamp(-wave.abs().max() / 3, wave.abs().max() / 3)


def splined(model: Model, seen: Tensor, masks: Tensor) -> Tensor:
    """Cubic splines through the samples of clipped waves that lie below the peak."""
    waves = model.modality.decode(seen)
    for wave in waves.flatten(0, -2):
        whole = (wave.abs() < 0.99 * wave.abs().max()).nonzero().flatten()
        wave.copy_(torch.from_numpy(CubicSpline(whole, wave[whole])(range(len(wave)))))
    return model.modality.encode(waves)


def off_wave(model: Model, got: Tensor, x0: Tensor, masks: Tensor) -> Tensor:
    """Root mean square error of the samples that were cut off, of their root mean square."""
    truth, wave = model.modality.decode(x0), model.modality.decode(got)
    cut = truth.abs() > truth.abs().amax(-1, keepdim=True) / 3
    errors, size = (torch.where(cut, one, 0).square().flatten(1).sum(1) for one in (wave - truth, truth))
    return (errors / size).sqrt()


def as_given(seen: Tensor, masks: Tensor) -> Tensor:
    return seen


def problems(model: Model) -> list:
    """What is measured, the noise put on it, options of the edit, the naive answer and the error."""
    if isinstance(getattr(model.modality, "representation", None), STFT):
        answers = (as_given, partial(splined, model))
        return [("unclipped", 0.0, {"strength": 0.5}, naive, partial(off_wave, model)) for naive in answers]
    exact = {"noise": 0.02}
    return {
        "Audio": [
            ("not seconds:0.4:0.6", 0.0, exact, partial(across, dim=3), rms),
            ("seconds::0.4", 0.0, exact, partial(across, dim=3), rms),
            ("hertz::1500", 0.0, exact, partial(across, dim=2), rms),
        ],
        "Video": [("every:2", 0.0, exact, partial(across, dim=2), rms), ("coarse:4", 0.0, exact, enlarged, rms)],
        "PointCloud": [
            ("all", 0.1, {"noise": 0.1}, as_given, partial(off_surface, model)),
            ("all", 0.3, {"noise": 0.3}, as_given, partial(off_surface, model)),
            ("x::0", 0.0, exact, partial_cloud, chamfer),
        ],
    }[type(model.modality).__name__]


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    loaded, number = load(path), int((rest or ["16"])[0])
    data = [media for media, _ in held_out(loaded.config, max(REAL, number) if what == "joins" else number)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        joins(loaded, data, number) if what == "joins" else inverse(loaded, data, (rest[1:] or ["pigdm"])[0])
