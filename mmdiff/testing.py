"""What the author of a plugin runs to know that it is right.

def test_my_modality(tmp_path):
    check_modality(MyModality(), media=[...], folder=tmp_path)
"""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.errors import DataError
from mmdiff.modality import Modality


def check_modality(modality: Modality, media: Sequence[Tensor], folder: Path) -> None:
    """Check that a modality keeps the contract of `mmdiff.modality.Modality`.

    Args:
        modality: the modality, fitted.
        media: at least two full-size examples of real data.
        folder: for the files that the check writes.

    Raises:
        AssertionError: saying what was expected and what was seen.
    """
    batch = torch.stack(list(media))
    x = modality.encode(batch)
    _check(len(media) >= 2, "media must hold at least two examples", len(media))
    _check(x.shape == (len(media), *modality.shape), f"encode keeps the batch and gives {modality.shape}", x.shape)
    _check(x.is_floating_point() and bool(x.isfinite().all()), "encode gives finite floating point", x.dtype)
    _check(0.2 < x.std().item() < 5, "encode gives a standard deviation near 1", x.std().item())
    _check(torch.equal(batch, torch.stack(list(media))), "encode leaves the media as they are", "changed media")
    one = modality.encode(media[0])
    _check(one.shape == modality.shape, f"encode of one example gives {modality.shape}", one.shape)
    _check(torch.allclose(one, x[0], atol=1e-4), "encode treats an example alone as in a batch", "a difference")

    decoded = modality.decode(x)
    _check(decoded.shape == batch.shape, f"decode inverts the shapes of encode, {tuple(batch.shape)}", decoded.shape)
    _check(torch.equal(decoded, modality.decode(x)), "decode is deterministic", "two results")
    wild = modality.decode(10 * torch.randn_like(x))
    _check(bool(wild.isfinite().all()), "decode gives finite media for any model output", "inf or nan")

    _check_files(modality, decoded[0], folder)
    picture = modality.preview(decoded[0])
    is_picture = picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3
    _check(is_picture, "preview is a uint8 picture of shape (3, h, w)", (picture.dtype, tuple(picture.shape)))
    _check(bool((picture != picture.flatten(1)[:, :1, None]).any()), "preview shows something", "one color")

    copy = pickle.loads(pickle.dumps(modality))
    _check(torch.equal(copy.encode(batch), x), "a pickled modality (a worker's) encodes alike", "a difference")
    for name, metric in modality.metrics().items():
        for is_real in (True, False):
            for item in media:
                metric.update(item[None], real=is_real, cond={})
        _check(metric.compute() is not None, f"metric {name} computes", None)


def _check_files(modality: Modality, media: Tensor, folder: Path) -> None:
    _check(modality.suffix in modality.suffixes, f"suffix is one of suffixes {modality.suffixes}", modality.suffix)
    path = folder / f"example{modality.suffix}"
    modality.write(media, path)
    again = modality.encode(modality.read(path))
    error = (again - modality.encode(media)).square().mean().sqrt().item()
    _check(error < 0.3, "write and read keep an example within 0.3 standard deviations in model space", error)
    for name, content in (("empty", b""), ("text", b"this is text\n" * 100)):
        bad = folder / f"{name}{modality.suffix}"
        bad.write_bytes(content)
        try:
            modality.read(bad)
        except DataError as caught:
            _check(str(bad) in str(caught), "the DataError of a bad file names it", str(caught))
        else:
            _check(False, f"a file that holds {name} raises DataError", "no error")


def _check(holds: bool, expected: str, seen: object) -> None:
    if not holds:
        raise AssertionError(f"expected: {expected}; seen: {seen}")
