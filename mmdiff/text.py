"""Text as a condition: embedders that read captions and prompts.

None, an empty text and blanks are one: nothing said. Texts are compared as people do: composed Unicode (NFKC),
without case, blanks collapsed.
"""

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import mean, pstdev
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmdiff.conditioning import Embedder
from mmdiff.nn.attention import heads, rotate
from mmdiff.nn.embed import FourierFeatures
from mmdiff.types import Context

START = 256
"""The code before the first byte, whose place gathers what the text says."""

WORDS = 4096
"""Words of captions that are known one by one, the commonest ones."""

MEASURES = 16
"""Measures that numbers in captions are told in, such as "cm high": the commonest ones, of one caption in a hundred."""

HAN = r"\u3040-\u30ff\u3400-\u9fff"  # written without blanks: each character counts as a word
WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}](?:[^\W{HAN}]|#)*")  # never a key that Hydra reads, as _target_
LETTERS = rf"[^\W\d_{HAN}]+"
NUMBER = r"(?<![\w.,#/'\u2019\u2044\u2212])(?<!\d )(-?\d+(?:\.\d+)?) ?"  # no part of a fraction or of a larger number
MEASURE = re.compile(rf"{NUMBER}({LETTERS})\b(?: (?=({LETTERS})\b))?")


class TextEmbedder(Embedder):
    """An embedder of texts: what ``prompt=`` is for."""


def normalize(text: Any) -> str:
    """The form in which texts are read; empty where nothing is said.

    Raises:
        ValueError: for what is no text.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"expected a text, got {text!r}")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> list[str]:
    """The distinct words of a normalized text, sorted; a sharp belongs to its letter."""
    return sorted(set(WORD.findall(text)))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "b n"]:
    """Rows of numbers with zeros behind the shorter ones."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)


def warn_of_length(length: int, units: str) -> None:
    """Say, in the same words each time and so once, that a text is longer than what is read of it."""
    warnings.warn(f"texts are read up to {length} {units}; the end of a longer one is left out", stacklevel=2)


def warn_of_unknown(texts: Iterable[str]) -> None:
    """Say of each text that the model has learned nothing about it."""
    for text in texts:
        warnings.warn(f"no word of {text!r} was in the captions that the model learned from", stacklevel=2)


class ByteEmbedder(TextEmbedder):
    """Words and numbers, and a small transformer on the bytes of UTF-8; trained with the model, nothing to download.

    The vector, of unit variance, adds up what is said: a vector for each known word, rare ones weighing most, and for
    the number in each known measure a linear map of its Fourier features. Captions that differ in one word then differ
    like classes do. The tokens are of the bytes, which pass a convolution, which makes parts of words of them, and
    blocks of attention with rotary positions, and so know the order of the words. They give the vector where no word
    is known: beside a model that learned words, it is told from others, but nothing was learned about it.

    Args:
        features: size of the vector and of the tokens.
        width: channels of a byte.
        depth: blocks.
        length: bytes that are read; what is longer is cut, with a warning.
        tokens: also give one token for each byte, for networks with cross-attention.
        words: weight of each word that is known one by one, learned by `fit`; others say nothing beside known ones.
        numbers: mean and standard deviation of the numbers in each known measure, learned by `fit`. Of two numbers in
            one measure the last one counts.
    """

    weights: Tensor

    def __init__(
        self,
        features: int,
        *,
        width: int = 64,
        depth: int = 2,
        length: int = 256,
        tokens: bool = False,
        words: Mapping[str, float] | None = None,
        numbers: Mapping[str, Sequence[float]] | None = None,
        drop: float = 0.1,
    ):
        super().__init__(drop)
        self.length = length
        self.bytes = nn.Embedding(START + 1, width)
        self.local = nn.Conv1d(width, width, 5, padding=2)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.words = {word: i for i, word in enumerate(words or {}, 1)}
        self.table = nn.Embedding(1 + len(self.words), features)
        self.register_buffer("weights", torch.tensor([0.0, *(words or {}).values()]), persistent=False)
        self.numbers = _Numbers(features, numbers) if numbers else None
        self.vector = nn.Linear(width, features)
        self.tokens = nn.Linear(width, features) if tokens else None

    def forward(self, values: Sequence[Any]) -> Context:
        codes = [self.read(value) for value in values]
        texts = [code.decode() for code in codes]
        heard = [self.hears(text) for text in texts]
        if self.words and not self.training:
            warn_of_unknown(text for text, is_heard in zip(texts, heard, strict=True) if text and not is_heard)
        if self.tokens is None:
            codes = [b"" if is_heard else code for code, is_heard in zip(codes, heard, strict=True)]
        h, known = self.read_bytes(codes)
        said = torch.tensor(heard, device=h.device)[:, None]
        vector = torch.where(said, self.add_words(texts), self.vector(h[:, 0]))
        vector = F.layer_norm(vector, vector.shape[-1:])
        if self.tokens is None:
            return Context(vector=vector)
        return Context(vector=vector, tokens=self.tokens(h), token_mask=known)

    def hears(self, text: str) -> bool:
        """Whether a normalized text has a known word or number."""
        words = any(word in self.words for word in words_of(text))
        return words or (self.numbers is not None and self.numbers.pattern.search(text) is not None)

    def add_words(self, texts: Sequence[str]) -> Float[Tensor, "b f"]:
        """Weighted sum of the vectors of known words and numbers in each text, of unit variance while untrained."""
        left = texts if self.numbers is None else self.numbers.left(texts)
        index = padded([[self.words.get(word, 0) for word in words_of(text)] for text in left], self.weights.device)
        weights = self.weights[index]
        total, square = (weights[:, None] @ self.table(index))[:, 0], weights.square().sum(1, keepdim=True)
        if self.numbers is not None:
            numbers, count = self.numbers(texts)
            total, square = total + numbers, square + count
        return total / square.clamp(min=1e-12).sqrt()

    def read_bytes(self, codes: Sequence[bytes]) -> tuple[Float[Tensor, "b n w"], Bool[Tensor, "b n"]]:
        """What is known at each byte, the first one being `START`, and which bytes there are."""
        device = self.bytes.weight.device
        index = padded([[START, *code] for code in codes], device)
        places = torch.arange(index.shape[1], device=device)
        known = torch.tensor([1 + len(code) for code in codes], device=device)[:, None] > places
        h = self.bytes(index) * known[..., None]
        h = h + self.local(h.mT).mT
        for block in self.blocks:
            h = block(h, known)
        return F.layer_norm(h, h.shape[-1:]), known

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        """Measures of numbers, and weights of words by inverse document frequency: Sparck Jones 1972."""
        texts = [normalize(value) for value in values]
        words = Counter(word for text in texts for word in words_of(text)).most_common(WORDS)
        weights = {word: float(f"{math.log((1 + len(texts)) / count):.4g}") for word, count in sorted(words)}
        return {"words": weights, "numbers": fit_numbers(texts)}

    def read(self, text: Any) -> bytes:
        """The bytes of a text, at most ``length`` of them and whole characters."""
        code = normalize(text).encode()
        if len(code) > self.length:
            warn_of_length(self.length, "bytes")
            code = code[: self.length].decode(errors="ignore").encode()
        return code


def fit_numbers(texts: Sequence[str]) -> dict[str, list[float]]:
    """Mean and standard deviation of the numbers in each measure.

    A unit is a word that nine times of ten stands behind a number, parted from other words. It is a measure with the
    word behind it, which tells what is measured, where both are common ("cm high"), and else alone ("bpm").
    """
    found = [MEASURE.findall(text) for text in texts]
    behind = Counter(unit for matches in found for _, unit, _ in matches)
    total = Counter(word for text in texts for word in re.findall(LETTERS, text))
    units = {unit for unit in behind if behind[unit] >= 0.9 * total[unit]}
    pairs = Counter(pair for matches in found for pair in {(unit, of) for _, unit, of in matches})
    numbers: dict[str, list[float]] = {}
    for number, unit, of in chain.from_iterable(found):
        if unit in units:
            alone = not of or pairs[unit, of] < len(texts) / 100
            numbers.setdefault(unit if alone else f"{unit} {of}", []).append(float(number))
    varied = [measure for measure, told in numbers.items() if len(told) >= len(texts) / 100 and len(set(told)) > 1]
    common = sorted(varied, key=lambda measure: -len(numbers[measure]))[:MEASURES]
    return {measure: [float(f"{f(numbers[measure]):.4g}") for f in (mean, pstdev)] for measure in common}


def pattern_of(measures: Iterable[str]) -> re.Pattern[str]:
    """Matches a number in one of the measures: the groups are the number and the measure."""
    names = "|".join(map(re.escape, sorted(measures, key=len, reverse=True)))
    return re.compile(rf"{NUMBER}({names})\b")


class _Numbers(nn.Module):
    """What the numbers of texts say, in known measures; each weighs 1."""

    def __init__(self, features: int, measures: Mapping[str, Sequence[float]]):
        super().__init__()
        self.measures = {measure: (mean, std) for measure, (mean, std) in measures.items()}
        self.pattern = pattern_of(measures)
        self.fourier = FourierFeatures(features, bandwidth=2.0)
        self.maps = nn.Parameter(torch.randn(len(measures), features, features) / features**0.5)

    def forward(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b f"], Int[Tensor, "b 1"]]:
        """For each text the sum, and how many measures it tells."""
        found = [{measure: float(number) for number, measure in self.pattern.findall(text)} for text in texts]
        rows = [[(row.get(m, math.nan) - mean) / std for m, (mean, std) in self.measures.items()] for row in found]
        number = self.maps.new_tensor(rows)
        told = ~number.isnan()
        features = self.fourier(number.nan_to_num().clamp(-1e3, 1e3)) * told[..., None]
        return torch.einsum("bmf,mfo->bo", features, self.maps), told.sum(1, keepdim=True)

    def left(self, texts: Sequence[str]) -> list[str]:
        """The texts without these numbers."""
        return [self.pattern.sub(r"\2", text) for text in texts]


class _Block(nn.Module):
    """Attention among the known bytes, then a multilayer perceptron, each beside an identity."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = heads(width, 16)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n w"], known: Bool[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        q, k, v = rearrange(
            self.qkv(F.layer_norm(x, x.shape[-1:])), "b n (qkv h c) -> qkv b h n c", qkv=3, h=self.heads
        )
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        seen = F.scaled_dot_product_attention(
            rotate(q, places), rotate(k, places), v, attn_mask=known[:, None, None, :]
        )
        x = x + self.out(rearrange(seen, "b h n c -> b n (h c)"))
        return x + self.mlp(F.layer_norm(x, x.shape[-1:]))
