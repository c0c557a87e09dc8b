"""What all checks share."""

import pickle
from typing import Any, NoReturn

import torch
from torch import Tensor

PAGE = "docs/rules.md"


def expect(holds: bool, expected: str, seen: object, see: str) -> None:
    """Check one rule.

    Args:
        holds: whether it is kept.
        expected: what the rule says.
        seen: what was found instead.
        see: the module, class, method or function whose docstring holds the rule.

    Raises:
        AssertionError: if it is not kept, saying all of it.
    """
    if not holds:
        fail(expected, seen, see)


def fail(expected: str, seen: object, see: str) -> NoReturn:
    """Say that a rule is not kept."""
    raise AssertionError(message(expected, seen, see))


def message(expected: str, seen: object, see: str) -> str:
    """What is said of a rule that is not kept: its last part is the docstring and the section of ``PAGE``."""
    return f"expected: {expected}; seen: {seen}; documented in {see} and {PAGE}#{see.rpartition('.')[2].lower()}"


def pickled(thing: Any, what: str, see: str) -> Any:
    """A copy such as workers get."""
    try:
        return pickle.loads(pickle.dumps(thing))
    except Exception as error:
        fail(f"{what} can be pickled, for workers", in_one_line(error), see)


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.double().square().mean().sqrt().item()


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal, bit by bit but for the kinds of nan: media may mark what is missing with it."""
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def alike(x: Tensor, y: Tensor, atol: float = 1e-4) -> bool:
    """Whether two tensors are equal but for rounding."""
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=atol)


def in_one_line(error: BaseException) -> str:
    """The kind, text and place of an error, in one line."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
