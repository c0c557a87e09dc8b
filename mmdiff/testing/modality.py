"""The contract of a modality."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from torchmetrics import Metric

from mmdiff.errors import DataError
from mmdiff.modality import Modality
from mmdiff.testing.expect import alike, expect, fail, in_one_line, pickled, rms, same

RULES = "mmdiff.modality.Modality"
ENOUGH = 8  # media, to see a distance between two halves of them rise


def check_modality(
    modality: Modality, media: Sequence[Tensor], folder: Path, *, short: Tensor | None = None
) -> dict[str, float]:
    """Check that a modality keeps the contract of `mmdiff.modality.Modality`.

    Args:
        modality: the modality, fitted.
        media: at least two full-size examples of real data; with eight or more, metrics that are distances must rise
            when the media are corrupted.
        folder: for the files that the check writes.
        short: media of one example smaller than the model's shape; by default half of one along ``modality.time``.

    Returns:
        Standard deviations in model space that `decode`, and `write` with `read`, lose.

    Raises:
        AssertionError: saying what was expected, what was seen and where the rule is documented.
    """
    expect(len(media) >= 2, "media holds at least two examples", len(media), "mmdiff.testing.check_modality")
    batch = torch.stack(list(media))
    x = _check_encode(modality, batch)
    decoded, lost = _check_decode(modality, batch, x)
    _check_mask(modality, media, short)
    _check_place(modality, media[0], x[0])
    _check_preview(modality, decoded[0])
    _check_fit(modality, media)
    copy = pickled(modality, "a modality", RULES)
    expect(alike(copy.encode(batch), x), "a pickled modality (a worker's) encodes alike", "a difference", RULES)
    lost_in_file = _check_files(modality, decoded[0], folder)
    for name, metric in modality.metrics().items():
        _check_metric(name, metric, modality, batch)
    return {"decode": lost, "write and read": lost_in_file}


def _check_encode(modality: Modality, batch: Tensor) -> Tensor:
    see, before, shape = f"{RULES}.encode", batch.clone(), tuple(modality.shape)
    x = modality.encode(batch)
    expect(x.shape == (len(batch), *shape), f"encode keeps the batch and gives {shape}", tuple(x.shape), see)
    expect(x.dtype == torch.float32, "encode gives float32", x.dtype, see)
    expect(bool(x.isfinite().all()), "encode gives finite numbers", "inf or nan", see)
    std, most = x.std().item(), x.movedim(1, 0).flatten(1).std(1).max().item()  # one channel may well be constant
    near = std > 0.2 and most < 5
    expect(near, "encode gives a standard deviation near 1 (0.2 to 5)", f"{std:.3g}, in a channel {most:.3g}", see)
    expect(same(batch, before), "encode leaves the media as they are", "changed media", see)
    one = modality.encode(batch[0])
    expect(one.shape == shape, f"encode of one example gives {shape}", tuple(one.shape), see)
    expect(alike(one, x[0]), "encode treats an example alone as in a batch", "a difference", see)
    more = modality.encode(batch[None])
    expect(alike(more, x[None]), "encode passes any leading batch dimensions through", tuple(more.shape), see)
    return x


def _check_decode(modality: Modality, batch: Tensor, x: Tensor) -> tuple[Tensor, float]:
    see, batch, x = f"{RULES}.decode", batch[:2], x[:2]
    decoded = modality.decode(x)
    expect(decoded.shape == batch.shape, f"decode gives the shape of media, {tuple(batch.shape)}", decoded.shape, see)
    expect(decoded.dtype == batch.dtype, f"decode gives the type of media, {batch.dtype}", decoded.dtype, see)
    expect(torch.equal(decoded, modality.decode(x)), "decode is deterministic", "two results", see)
    more = modality.decode(x[None])
    expect(more.shape == (1, *batch.shape), "decode passes any leading batch dimensions through", more.shape, see)
    wild = modality.decode(10 * torch.randn_like(x))
    expect(bool(wild.isfinite().all()), "decode gives finite media for any model output", "inf or nan", see)
    lost = rms(modality.encode(decoded) - x)
    expect(lost < 0.8, "decode and encode lose less than 0.8 standard deviations", f"{lost:.3g}", see)
    return decoded, lost


def _check_mask(modality: Modality, media: Sequence[Tensor], short: Tensor | None) -> None:
    see, shape, full = f"{RULES}.mask", tuple(modality.shape), modality.mask(media[0])
    expect(full is None or bool(full.all()), "mask of full-size media is None or all true", "false elements", see)
    if short is None and modality.time is not None:
        short = media[0].narrow(modality.time, 0, max(media[0].shape[modality.time] // 2, 1))
    if short is None:
        return
    x = modality.encode(short)
    expect(x.shape == shape, f"encode pads media of shape {tuple(short.shape)} to {shape}", tuple(x.shape), see)
    expect(bool(x.isfinite().all()), "encode pads with finite numbers", "inf or nan", see)
    mask = modality.mask(short)
    expect(mask is not None, "mask tells where padded media are padding", None, see)
    assert mask is not None
    expect(mask.shape == shape and mask.dtype == torch.bool, f"mask is bool, {shape}", (mask.dtype, mask.shape), see)
    expect(bool(mask.any() and not mask.all()), "mask of padded media has true and false elements", "only one", see)
    if modality.ragged is not None and short.shape != media[0].shape:
        ends = not mask.select(modality.ragged, -1).any()
        expect(ends, f"mask of padded media ends early along ragged={modality.ragged}", "data at the end", see)


def _check_place(modality: Modality, media: Tensor, x: Tensor) -> None:
    see, refuses = f"{RULES}.place", "place raises ValueError for a word that it does not know"
    placed, known = modality.place(media)
    expect(alike(placed, x), "place gives the given media in model space", "a difference", see)
    fits = known.dtype == torch.bool and known.ndim == x.ndim and len(known) == 1
    expect(fits, "place gives the known elements as bool with one channel", (known.dtype, tuple(known.shape)), see)
    try:
        modality.place(media, "no such word")
    except ValueError:
        return
    except Exception as error:
        fail(refuses, in_one_line(error), see)
    fail(refuses, "no error", see)


def _check_preview(modality: Modality, media: Tensor) -> None:
    see, picture = f"{RULES}.preview", modality.preview(media)
    is_picture = picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3
    expect(is_picture, "preview is a uint8 picture of shape (3, h, w)", (picture.dtype, tuple(picture.shape)), see)
    expect(bool((picture != picture.flatten(1)[:, :1, None]).any()), "preview shows something", "one color", see)


def _check_fit(modality: Modality, media: Sequence[Tensor]) -> None:
    see, learned = f"{RULES}.fit", modality.fit(iter(media))
    surplus = set(learned) - set(inspect.signature(type(modality)).parameters)
    expect(not surplus, "fit gives arguments of the constructor", ", ".join(surplus), see)
    try:
        json.dumps(learned)
    except TypeError as error:
        fail("fit gives plain numbers and lists, which a configuration can hold", error, see)


def _check_files(modality: Modality, media: Tensor, folder: Path) -> float:
    good = modality.suffix in modality.suffixes and all(s == s.lower() and s[0] == "." for s in modality.suffixes)
    seen = (modality.suffix, tuple(modality.suffixes))
    expect(good, "suffix is one of suffixes, which are lower-case with the dot", seen, RULES)
    path, see = folder / f"example{modality.suffix}", f"{RULES}.read"
    modality.write(media, path)
    expect(path.is_file(), "write writes the file", "none", f"{RULES}.write")
    again = modality.read(path)
    lost = rms(modality.encode(again) - modality.encode(media))
    expect(lost < 0.3, "write and read lose less than 0.3 standard deviations in model space", f"{lost:.3g}", see)
    expect(same(again, modality.read(path)), "read without a generator is deterministic", "two results", see)
    seeded = [modality.read(path, Generator().manual_seed(0)) for _ in range(2)]
    expect(same(*seeded), "read gives the same for generators of the same seed", "two results", see)
    whole, noise = path.read_bytes(), torch.randint(256, (999,), generator=Generator().manual_seed(0))
    for name, content in (
        ("nothing", b""),
        ("noise", bytes(noise.tolist())),
        ("half a file", whole[: len(whole) // 2]),
    ):
        bad = folder / f"bad{modality.suffix}"
        bad.write_bytes(content)
        _check_bad_file(modality, bad, f"a file that holds {name}", must_fail=name != "half a file")
    _check_bad_file(modality, folder / f"missing{modality.suffix}", "a file that is missing", must_fail=True)
    return lost


def _check_bad_file(modality: Modality, path: Path, what: str, *, must_fail: bool) -> None:
    see = f"{RULES}.read"
    try:
        modality.read(path)
    except DataError as error:
        expect(str(path) in str(error), "a DataError names its file", error, see)
    except Exception as error:
        fail(f"read raises DataError for {what}", in_one_line(error), see)
    else:
        expect(not must_fail, f"read raises DataError for {what}", "no error", see)


def _check_metric(name: str, metric: Metric, modality: Modality, batch: Tensor) -> None:
    see = f"{RULES}.metrics"
    half = len(batch) // 2
    real, fake = batch[:half], batch[half:]
    value = _value(metric, real, fake)
    if value is None:
        fail(f"metric {name} computes", None, see)
    if metric.higher_is_better is False and len(batch) >= ENOUGH:
        x = modality.encode(fake)
        noise = torch.randn(x.shape, generator=Generator().manual_seed(0))
        corrupted = _value(metric, real, modality.decode(x + 2 * noise))
        rises = corrupted is not None and corrupted > value
        seen = f"{value} for real ones, {corrupted} for corrupted ones"
        expect(rises, f"metric {name}, a distance, is larger for corrupted media", seen, see)


def _value(metric: Metric, real: Tensor, fake: Tensor) -> float | None:
    """A metric's value; of several the unnamed one, else the first."""
    metric.reset()
    for media, is_real in ((real, True), (fake, False)):
        for item in media:
            metric.update(item[None], real=is_real, cond={})
    result = metric.compute()
    if isinstance(result, dict):
        result = result.get("", next(iter(result.values()), None))
    return None if result is None else float(result)
