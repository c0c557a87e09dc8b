"""What training holds out is held out."""

from collections import Counter

import numpy as np
import pytest

from mmdiff.captions import SPLITS, belongs, check_split, choose
from mmdiff_audio.notes import Notes
from mmdiff_pointcloud.furniture import Furniture
from mmdiff_video.shapes import Shapes

DATA = {
    "notes": (Notes, {"seconds": 0.3}, ("pitch", "timbre")),
    "shapes": (Shapes, {"frames": 6, "resolution": 16}, ("kind", "color", "direction", "speed")),
    "furniture": (Furniture, {"points": 8}, ("kind", "legs", "back")),
}
every_data = pytest.mark.parametrize("name", DATA)


@pytest.fixture(scope="module")
def told():
    """Conditions of 250 examples by data set and split; None is all."""
    made = {}
    for name, (kind, options, _) in DATA.items():
        for split in (None, *SPLITS):
            data = kind(size=250, seed=3, split=split, complete=True, **options)
            made[name, split] = [data[i][1] for i in range(250)]
    return made


def combinations(name, conds):
    return {tuple(cond[factor] for factor in DATA[name][2]) for cond in conds}


@every_data
def test_combinations_are_held_out(name, told):
    seen, wordings, held = (combinations(name, told[name, split]) for split in SPLITS)
    assert len(held) > 1
    assert not held & (seen | wordings)
    assert held <= combinations(name, told[name, None]) | held


@every_data
def test_training_sees_every_value_of_every_factor(name, told):
    for i, factor in enumerate(DATA[name][2]):
        seen, everything = ({c[i] for c in combinations(name, told[name, s])} for s in ("train", None))
        assert seen == everything, factor


@every_data
def test_wordings_are_held_out(name, told):
    """No caption of the one split is one of the other, though the combinations are the same."""
    captions = {split: {cond["text"] for cond in told[name, split]} for split in SPLITS}
    assert not captions["wordings"] & (captions["train"] | captions["combinations"])
    words = {split: Counter(word for text in texts for word in text.split()) for split, texts in captions.items()}
    assert len(words["wordings"]) > 10


@every_data
def test_captions_can_leave_parts_open(name):
    kind, options, _ = DATA[name]
    whole, some = (kind(size=200, seed=1, complete=complete, **options) for complete in (True, False))
    lengths = [np.mean([len(data[i][1]["text"]) for i in range(200)]) for data in (whole, some)]
    assert lengths[1] < lengths[0]


@every_data
def test_a_split_must_be_one(name):
    with pytest.raises(ValueError, match=r"split must be one of train, wordings, combinations or null, got 'test'"):
        DATA[name][0](split="test")


def test_splits_of_numbers_and_words():
    assert [belongs(n, None) for n in range(3)] == [True] * 3
    assert [n for n in range(30) if belongs(n, "combinations")] == [0, 10, 20]
    assert (
        [n for n in range(30) if not belongs(n, "train")]
        == [0, 10, 20]
        == [n for n in range(30) if not belongs(n, "wordings")]
    )
    rng = np.random.default_rng(0)
    drawn = {split: {choose(rng, ("a", "b"), ("c",), split) for _ in range(50)} for split in (None, *SPLITS)}
    assert drawn == {None: {"a", "b", "c"}, "train": {"a", "b"}, "wordings": {"c"}, "combinations": {"a", "b"}}
    check_split(None)
