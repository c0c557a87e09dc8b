"""Words for parts."""

import pytest
import torch

from mmdiff.regions import region, span

AXES = {"place": torch.arange(6)[None, :, None], "height": torch.tensor([0.0, 0.5, 1.0])[None, None]}


def meant(words):
    return region(words, lambda word: span(word, AXES, "first:K")).expand(1, 6, 3)


def test_ranges_hold_their_beginning_and_not_their_end():
    assert meant("place:2:4")[0, :, 0].tolist() == [False, False, True, True, False, False]
    assert meant("place::2")[0, :, 0].tolist() == [True, True, False, False, False, False]
    assert meant("height:0.5:")[0, 0].tolist() == [False, True, True]
    assert meant("place::").all()


def test_not_binds_strongest_and_or_weakest():
    low, high, early = meant("height::0.5"), meant("height:0.9:"), meant("place::2")
    assert torch.equal(meant("place::2 and height::0.5 or height:0.9:"), (early & low) | high)
    assert torch.equal(meant("height:0.9: or place::2 and height::0.5"), high | (early & low))
    assert torch.equal(meant("not place::2 and height::0.5"), ~early & low)
    assert torch.equal(meant("not not place::2"), early)


@pytest.mark.parametrize("word", ["middle", "place", "place:1", "place:a:b", "width:0:1", "place:0:1:2", "not ", ""])
def test_unknown_words_name_the_known_ones(word):
    with pytest.raises(ValueError, match=r"names no part; parts are first:K, place:FROM:TO, height:FROM:TO, joined by"):
        meant(word)


def test_an_empty_range_says_how_far_its_axis_goes():
    with pytest.raises(ValueError, match=r"'height:2:3' holds nothing; height go from 0 to 1\."):
        meant("height:2:3")
