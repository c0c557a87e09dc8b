"""The contracts of a data set and of what reads its conditions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdiff.conditioning import Conditioner
from mmdiff.data import collate
from mmdiff.modality import Modality
from mmdiff.testing.expect import expect, pickled, same
from mmdiff.types import Context, Example, MediaSet

SEEN = 4  # examples that are looked at
CONDITIONS = "mmdiff.conditioning"


def check_dataset(dataset: MediaSet, modality: Modality) -> dict[str, float]:
    """Check that a data set keeps the contract of `mmdiff.types.MediaSet`.

    Args:
        dataset: the data set.
        modality: of its media.

    Returns:
        The number of examples.

    Raises:
        AssertionError: saying what was expected, what was seen and where the rule is documented.
    """
    see, count = "mmdiff.types.MediaSet", len(dataset)
    expect(count >= 2, "a data set has at least two examples", count, see)
    indices = range(min(count, SEEN))
    examples = [_seeded(dataset, i) for i in indices]
    for example in examples:
        pair = isinstance(example, tuple) and len(example) == 2
        good = pair and isinstance(example[0], Tensor) and isinstance(example[1], dict)
        expect(good, "an example is a pair of a tensor and a dictionary", _kinds(example), see)
        named = all(isinstance(name, str) for name in example[1])
        expect(named, "conditions have names", list(example[1]), see)
    for source, what in ((dataset, "seed of torch"), (pickled(dataset, "a data set", see), "pickled copy's index")):
        again = [_seeded(source, i) for i in indices]
        repeated = all(same(a[0], b[0]) and a[1] == b[1] for a, b in zip(examples, again, strict=True))
        expect(repeated, f"the same index and {what} give the same example", "a difference", see)
    differ = any(not same(a[0], examples[0][0]) for a in examples)
    expect(differ, "indices give different examples", f"{len(examples)} equal ones", see)
    shape = tuple(modality.shape)
    encoded = []
    for media, cond in examples:
        example = Example(modality.encode(media), cond, modality.mask(media))
        expect(example.x.shape == shape, f"media encode to {shape}", tuple(example.x.shape), see)
        if example.mask is not None:
            fits = example.mask.shape == shape and example.mask.dtype == torch.bool and bool(example.mask.any())
            seen = (example.mask.dtype, tuple(example.mask.shape))
            expect(fits, f"the mask is bool of shape {shape} with some data", seen, "mmdiff.modality.Modality.mask")
        encoded.append(example)
    collate(encoded)
    return {"examples": float(count)}


def check_conditioner(conditioner: Conditioner, cond: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Check that conditions which are unknown or dropped change nothing but values (see `mmdiff.conditioning`).

    Args:
        conditioner: the conditioner.
        cond: raw values of all its conditions, for as many examples as each list is long.

    Returns:
        The number of conditions.

    Raises:
        AssertionError: saying what was expected, what was seen and where the rule is documented.
    """
    conditioner = conditioner.eval()
    count = max(map(len, cond.values()), default=1)
    known = conditioner(cond, count)
    for name in cond:
        dropped = conditioner({other: values for other, values in cond.items() if other != name}, count)
        _check_like(dropped, known, f"dropping condition {name}")
    null = conditioner.null(count)
    _check_like(null, known, "dropping all conditions")
    unknown = conditioner({name: [None] * len(values) for name, values in cond.items()}, count)
    _check_like(unknown, null, "leaving conditions unknown")
    for field, a, b, again in zip(Context._fields, unknown, null, conditioner.null(count), strict=True):
        expect(a is None or b is None or torch.equal(a, b), f"None gives the {field} of null", "another", CONDITIONS)
        expect(
            b is None or again is None or torch.equal(b, again),
            f"null gives the same {field} each time",
            "two results",
            CONDITIONS,
        )
    return {"conditions": float(len(cond))}


def _check_like(context: Context, other: Context, what: str) -> None:
    """Check that two contexts have the same fields of the same shapes, but for the number of tokens."""
    for field, a, b in zip(Context._fields, context, other, strict=True):
        expect(
            (a is None) == (b is None), f"{what} keeps the context's {field}", f"{_has(b)}, then {_has(a)}", CONDITIONS
        )
        if a is not None and b is not None:
            kept = [list(part.shape) for part in (a, b)]
            for shape in kept:
                if field in ("tokens", "token_mask"):
                    del shape[1]
            expect(kept[0] == kept[1], f"{what} keeps the shape of the context's {field}", kept, CONDITIONS)
            expect(bool(a.isfinite().all()), f"{what} leaves the context's {field} finite", "inf or nan", CONDITIONS)


def _seeded(dataset: MediaSet, index: int) -> Any:
    torch.manual_seed(index)
    return dataset[index]


def _has(part: Tensor | None) -> str:
    return "none" if part is None else "one"


def _kinds(example: object) -> str:
    parts = example if isinstance(example, tuple) else (example,)
    return " and ".join(type(part).__name__ for part in parts)
