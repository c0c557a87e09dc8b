"""Texts become contexts: what is the same to people is the same, in any language, however long."""

import math
import warnings

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mmdiff.checkpoint import to_yaml
from mmdiff.conditioning import Conditioner
from mmdiff.testing import check_conditioner
from mmdiff.text import WORDS, ByteEmbedder, normalize, pattern_of, words_of


def build(**options) -> ByteEmbedder:
    options = {"features": 8, "width": 16, "depth": 2, "drop": 0.0} | options
    return ByteEmbedder(**options).eval().requires_grad_(False)


@pytest.mark.parametrize("nothing", ["", "   ", "\n\t", "\u3000"])
def test_an_empty_text_says_nothing(nothing):
    embedder = build(tokens=True)
    for a, b in zip(embedder([nothing]), embedder([None]), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_conditioner_with_texts_keeps_the_rules():
    for tokens in (False, True):
        check_conditioner(Conditioner(8, {"text": build(tokens=tokens)}), {"text": ["a low note", "", "ein hoher Ton"]})


@pytest.mark.parametrize(
    ("one", "other"),
    [("Caf\u00e9", "cafe\u0301"), ("a  low\nnote ", "A low Note"), ("\uff21\uff14", "a4"), ("STRASSE", "straße")],
)
def test_what_people_read_alike_is_one_text(one, other):
    assert normalize(one) == normalize(other)
    embedder = build()
    assert torch.equal(embedder([one]).vector, embedder([other]).vector)


def test_texts_of_any_language_are_told_apart():
    embedder = build(width=32)
    texts = ["a low note", "a note low", "低い音", "高い音", "нота", "نغمة", "🎻", "🎺", None]
    assert torch.pdist(embedder(texts).vector).min() > 1e-2


def test_a_text_is_what_it_is_beside_a_longer_one():
    embedder = build(tokens=True)
    alone, beside = embedder(["short"]), embedder(["short", "a text that is much longer than the other one"])
    torch.testing.assert_close(alone.vector[0], beside.vector[0])
    assert beside.token_mask.sum(1).tolist() == [6, 46]
    torch.testing.assert_close(alone.tokens[0], beside.tokens[0, :6])


def test_vectors_have_unit_variance():
    vector = ByteEmbedder(64)(["a note", None, "x" * 100]).vector
    torch.testing.assert_close(vector.var(1, correction=0), torch.ones(3), rtol=0, atol=1e-2)


def test_untrained_a_word_matters_like_a_class():
    """Captions of four words that share three."""
    texts = [f"a flute note, {word}" for word in ("c4", "d4", "e5", "g5", "a5", "b5")]
    vector = ByteEmbedder(512, **ByteEmbedder.fit(texts))(texts).vector
    assert vector.var(0).mean() > 0.5


def test_a_word_weighs_what_it_tells():
    """Inverse document frequency, by hand: 1 of 4 texts has c4, 3 have note."""
    weights = ByteEmbedder.fit(["a note C4", "a note", "a note note", "a"])["words"]
    assert list(weights) == ["a", "c4", "note"]
    assert list(weights.values()) == pytest.approx([math.log(5 / 4), math.log(5), math.log(5 / 3)], rel=1e-3)
    embedder = build(words=weights)
    c4, note = embedder.table.weight[2:]
    expected = (weights["c4"] * c4 + weights["note"] * note) / math.hypot(weights["c4"], weights["note"])
    torch.testing.assert_close(embedder.add_words(["c4 note c4"])[0], expected)


def test_characters_of_languages_without_blanks_are_words():
    assert words_of("低い音 midi音 한국어") == ["midi", "い", "低", "音", "한국어"]


def test_a_text_without_known_words_is_read_by_its_bytes():
    embedder = build(words=ByteEmbedder.fit(["a flute", "a harp"])["words"])
    said = embedder.add_words(["a flute"])
    torch.testing.assert_close(embedder(["a flute"]).vector, torch.nn.functional.layer_norm(said, said.shape[1:]))
    with pytest.warns(UserWarning, match="no word of '(flöte|harfe|リード)' was in the captions"):
        vector = embedder(["Flöte", "Harfe", "", "リード"]).vector
    assert torch.pdist(vector).min() > 1e-2


def test_numbers_are_learned_from_captions_with_what_they_measure():
    """By hand: widths 3, 5 and 4 cm; "of" does not stand behind numbers only, "legs" behind one number only."""
    texts = ["3 cm wide, of oak", "5cm wide, 7.5 cm high", "box 4 cm wide of 2 legs", "6 cm high, of 2 legs"]
    numbers = ByteEmbedder.fit(texts)["numbers"]
    assert list(numbers) == ["cm wide", "cm high"]
    assert numbers["cm wide"] == pytest.approx([4, math.sqrt(2 / 3)], rel=1e-3)
    assert numbers["cm high"] == pytest.approx([6.75, 0.75], rel=1e-3)


def test_a_unit_before_varied_words_is_a_measure_alone():
    styles = [first + second for first in "abcdefghijkl" for second in "aeiouy"]
    texts = [f"{60 + i % 90} bpm {style} loop" for i, style in enumerate(5 * styles)]
    assert list(ByteEmbedder.fit([*texts, *["a loop"] * 200])["numbers"]) == ["bpm"]


def test_words_before_which_no_number_stands_are_no_units():
    texts = [f"{n} on the flute, {n}m²" for n in range(60, 80)] + [f"a note on the {n}" for n in range(5)]
    assert ByteEmbedder.fit(texts)["numbers"] == {}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a box, 50 cm wide", [("50", "cm wide")]),
        ("50cm wide and -2.5 cm high", [("50", "cm wide"), ("-2.5", "cm high")]),
        ("10-20 bpm", [("20", "bpm")]),
        ("1,200 bpm, 50 cm, v2 bpm, 3 cm wider, ½ bpm, 1/2 bpm, \u22125 bpm, 50 000 bpm, c#4 bpm", []),
    ],
)
def test_numbers_are_read_in_their_measure(text, read):
    assert pattern_of(["cm high", "bpm", "cm wide"]).findall(normalize(text)) == read


def test_a_number_in_a_measure_is_no_word():
    texts = [f"type {n}, {n} cm wide" for n in range(20)]
    embedder = build(**ByteEmbedder.fit(texts))
    assert torch.equal(embedder.add_words(["4 cm wide"]), embedder.add_words(["4.0cm wide"]))
    assert not torch.equal(embedder.add_words(["type 4"]), embedder.add_words(["type 5"]))
    words = build(**{**ByteEmbedder.fit(texts), "numbers": {}})
    assert not torch.equal(words.add_words(["4 cm wide"]), words.add_words(["5 cm wide"]))


def test_numbers_near_each_other_say_nearly_the_same():
    """What differs is 2 - 2 exp(-(2 pi 2 d)^2 / 2) for d standard deviations: normal frequencies, two cycles wide."""
    texts = [f"{n} cm {side}" for n in range(10, 100) for side in ("wide", "high")]
    numbers = ByteEmbedder.fit(texts)["numbers"]
    std = numbers["cm wide"][1]
    embedder = build(features=512, words=None, numbers=numbers)
    said, _ = embedder.numbers(["50 cm wide", "50.5 cm wide", "52 cm wide", "90 cm wide", "50 cm high", "50"])
    differ = (said[1:4] - said[0]).square().mean(1)
    expected = [2 - 2 * math.exp(-((4 * math.pi * d / std) ** 2) / 2) for d in (0.5, 2, 40)]
    torch.testing.assert_close(differ, torch.tensor(expected), rtol=0.2, atol=0)
    assert (said[4] - said[0]).square().mean() > 1.6
    assert not said[5].any()


def test_it_reads_numbers_that_training_never_had():
    sizes = [n for n in range(10, 100) if n % 5]
    colors = ["red", "green", "blue"]
    texts = [f"a {colors[n % 3]} box, {n} cm wide, {109 - n} cm high" for n in sizes]
    embedder, head = ByteEmbedder(64, width=16, depth=1, **ByteEmbedder.fit(texts), drop=0), torch.nn.Linear(64, 1)
    optimizer = torch.optim.Adam([*embedder.parameters(), *head.parameters()], 3e-3)
    target = (torch.tensor(sizes) - 54.5)[:, None] / 26
    for _ in range(150):
        loss = (head(embedder(texts).vector) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    asked = list(range(15, 95, 5))
    found = head(embedder([f"a {colors[n // 2 % 3]} box, {n} cm wide, {109 - n} cm high" for n in asked]).vector)
    assert (found - (torch.tensor(asked) - 54.5)[:, None] / 26).square().mean() < 0.02


def test_words_can_be_keys_of_a_configuration():
    weights = ByteEmbedder.fit(["a _target_ of 60 1e5 yes null c#4 Übung"])["words"]
    assert list(weights) == ["1e5", "60", "a", "c#4", "null", "of", "target_", "yes", "übung"]
    config = OmegaConf.create({"_target_": "mmdiff.text.ByteEmbedder", "features": 8, "words": weights})
    assert list(instantiate(OmegaConf.create(to_yaml(config))).words) == list(weights)


def test_the_commonest_words_are_known():
    texts = [f"often word{i}" for i in range(WORDS)]
    weights = ByteEmbedder.fit([*texts, "word7"])["words"]
    assert len(weights) == WORDS
    assert {"often", "word7"} <= set(weights)


def test_words_that_training_never_had_are_passed_over():
    embedder = build(words=ByteEmbedder.fit(["a flute", "a harp"])["words"])
    assert torch.equal(embedder.add_words(["please play a flute"]), embedder.add_words(["a flute"]))
    assert not embedder.add_words(["xylophone", ""]).any()


def test_a_long_text_is_cut_with_one_warning_that_names_the_limit():
    embedder = build(length=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        cut = embedder(["abcdefghijk", "abcdefghij and more"]).vector
    assert [str(w.message) for w in caught] == ["texts are read up to 10 bytes; the end of a longer one is left out"]
    assert torch.equal(cut[0], cut[1])
    torch.testing.assert_close(cut[:1], embedder(["abcdefghij"]).vector)


def test_characters_are_not_cut_in_two():
    with pytest.warns(UserWarning, match="up to 10 bytes"):
        assert build(length=10).read("äääää音") == "äääää".encode()
    with pytest.warns(UserWarning, match="up to 10 bytes"):
        assert build(length=10).read("音音音音") == "音音音".encode()


@pytest.mark.parametrize("value", [5, ["a"], b"bytes"])
def test_a_text_must_be_one(value):
    with pytest.raises(ValueError, match=r"cond\.text: expected a text, got"):
        Conditioner(8, {"text": build()}).eval()({"text": [value]}, 1)


def test_every_parameter_learns():
    embedder = ByteEmbedder(8, width=16, tokens=True, **ByteEmbedder.fit(["a note of 5 s", "a note of 6 s"]))
    context = embedder(["a note of 5 s", None])
    (context.vector.sin().sum() + context.tokens.sin().sum()).backward()
    assert [name for name, p in embedder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_learns_which_of_two_words_a_text_has():
    embedder, head = ByteEmbedder(16, width=16, depth=1, drop=0), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*embedder.parameters(), *head.parameters()], 5e-3)
    target = torch.tensor([0.0, 1.0] * 4)
    frames = ["a {} note", "the {}", "{}, please", "notes: {} ones"]
    texts = [frame.format(word) for frame in frames for word in ("low", "high")]
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(embedder(texts).vector)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
