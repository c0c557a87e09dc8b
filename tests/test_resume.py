"""A run that was cut equals the run that was not, bit for bit."""

import pytest
import torch

from runs import ADVICE, assert_same_state, fit

pytestmark = pytest.mark.filterwarnings(*ADVICE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 22 steps, 9 in a pass over the data, and the checkpoints that it left behind on the way."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder, 22, keep=(4, 7, 9, 18)), folder


@pytest.mark.parametrize(("cut", "workers"), [(4, 0), (7, 2), (9, 0), (18, 0)])
def test_a_resumed_run_is_the_run_that_was_not_cut(cut, workers, whole, tmp_path):
    """In the middle of a pass, at its end, where a validation is due, with other workers than before."""
    expected, folder = whole
    got = fit(tmp_path, 22, resume=folder / f"{cut}.ckpt", workers=workers)
    assert got["seen"][0] == expected["seen"][0][cut:]
    assert_same_state(got, expected)


def test_cut_twice(whole, tmp_path):
    expected, folder = whole
    fit(tmp_path, 9, resume=folder / "7.ckpt")
    fit(tmp_path, 11, resume=tmp_path / "9.ckpt", keep=(10,))
    assert_same_state(fit(tmp_path, 22, resume=tmp_path / "10.ckpt"), expected)


def test_a_step_of_several_batches(tmp_path):
    expected = fit(tmp_path / "whole", 8, keep=(5,), accumulate=2)
    assert_same_state(fit(tmp_path, 8, resume=tmp_path / "whole" / "5.ckpt", accumulate=2), expected)


def test_every_example_once_in_a_pass(whole):
    indices = [i for batch, *_ in whole[0]["seen"][0] for i in batch]
    passes = [sorted(indices[36 * i : 36 * (i + 1)]) for i in range(2)]
    assert passes[0] == passes[1] == sorted(set(indices))
    assert len(passes[0]) == 36
    assert indices[:36] != indices[36:72]


def test_no_two_examples_share_their_random_numbers(whole):
    """The shift of an example, recovered from what the network saw, is new every time it is read."""
    shifts = torch.tensor([values for _, values, _ in whole[0]["seen"][0]]).double() * 12 + 20
    shifts = (shifts % 1).flatten()
    assert shifts.unique().numel() > 0.99 * shifts.numel()
    assert abs(shifts.mean() - 0.5) < 0.05
