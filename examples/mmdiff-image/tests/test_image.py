"""Does image keep the contract of mmdiff, read what cameras write, and judge digits right?"""

import pytest
import torch
from mmdiff_image.digits import DigitAccuracy, Digits, digits
from mmdiff_image.modality import Picture
from PIL import Image

from mmdiff import DataError
from mmdiff.testing import check_plugin


def test_conformance():
    """The same as ``mmdiff check image network.width=16``."""
    check_plugin("image", "network.width=16")


def test_the_judge_reads_digits_it_has_not_seen():
    images, labels = digits()
    data = Digits()
    assert len(data) == 1200
    assert data[7][0].numpy().tolist() == images[7].tolist()
    metric = DigitAccuracy()
    for image, cond in (data[i] for i in range(len(data))):
        metric.update(image[None], real=True, cond={"label": [cond["label"]]})
    metric.update(data[0][0][None], real=False, cond={"label": [labels[0]]})
    metric.update(data[0][0][None], real=False, cond={"label": [str((int(labels[0]) + 1) % 10)]})
    metric.update(data[0][0][None], real=False, cond={"label": [None]})
    values = metric.compute()
    assert 0.95 < values["real_right"] < 1
    assert values["right"] == 0.5


def test_files_of_many_kinds(tmp_path):
    """The middle square of red on blue, in color and gray; a camera held upright; transparency on white."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (10, 0, 30, 20))
    for suffix in Picture.suffixes:
        path = tmp_path / f"image{suffix}"
        image.save(path)
        seen = Picture(size=16).read(path)
        assert seen.shape == (3, 16, 16)
        assert seen.dtype == torch.uint8
        assert (seen[..., 2:-2].float() - torch.tensor([255.0, 0, 0])[:, None, None]).abs().max() < 16
    gray = Picture(size=16, color=False).read(tmp_path / "image.png")
    assert gray.shape == (1, 16, 16)
    assert gray[0, 8, 8] == 76  # BT.601: 0.299 x 255

    left = Image.new("L", (10, 10), "white")
    left.paste("black", (0, 0, 5, 10))
    exif = left.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    left.save(tmp_path / "turned.png", exif=exif)
    seen = Picture(size=10, color=False).read(tmp_path / "turned.png")[0]
    assert (seen[:5] == 0).all()
    assert (seen[5:] == 255).all()

    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (Picture(size=4).read(tmp_path / "clear.png") == 255).all()


def test_what_cannot_be_read(tmp_path):
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep.png: has more than 8 bits per channel"):
        Picture(size=4).read(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"modality.mean must have 3 numbers, one per channel, got 1"):
        Picture(size=4, mean=[0.5])
