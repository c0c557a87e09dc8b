"""Pictures for people: many previews in one labeled grid."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor


def save_grid(pictures: Sequence[UInt8[Tensor, "3 h w"]], labels: Sequence[str], path: str | Path) -> None:
    """Write pictures as a grid, each under its label, as the image format of the path's suffix.

    Args:
        pictures: of any sizes.
        labels: one per picture, may be empty; of longer ones the beginning is shown.
        path: of the file.
    """
    columns = min(math.ceil(math.sqrt(len(pictures))), 8)
    rows = math.ceil(len(pictures) / columns)
    height, width = (max(p.shape[i] for p in pictures) for i in (1, 2))
    scale = 2.0 / max(height, width)
    figure = Figure(figsize=(columns * (width * scale + 0.1), rows * (height * scale + 0.3)), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, picture, label in zip(axes, pictures, labels, strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title("\n".join(wrap(label, 36, max_lines=4, placeholder=" ...")), fontsize=7, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a label may be in any language
        figure.savefig(path, dpi=110)


def describe(cond: Mapping[str, object]) -> str:
    """A label from the known conditions of one example."""
    return "  ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{value}"
        for name, value in cond.items()
        if value is not None
    )
