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
NUMBER = r"(?<![\w.,])(-?\d+(?:\.\d+)?) ?"
UNIT = re.compile(NUMBER + r"([^\W\d_]+)(?: (?=([^\W\d_]+)))?")


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
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)


def warn_of_length(length: int, units: str) -> None:
    """Say, in the same words each time and so once, that a text is longer than what is read of it."""
    warnings.warn(f"texts are read up to {length} {units}; the end of a longer one is left out", stacklevel=2)


def warn_of_unknown(texts: Iterable[str]) -> None:
    """Say of each text that the model has learned nothing about it."""
    for text in texts:
        warnings.warn(f"no word of {text!r} was in the captions that the model learned from", stacklevel=2)


class ByteEmbedder(TextEmbedder):
    """Words and numbers, and a small transformer on the bytes of UTF-8; trained with the model, nothing to download.

    The vector, of unit variance, adds up what is said: a vector for each known word, and for each number in a known
    measure a linear map of its Fourier features, weighted by what they tell. Captions that differ in one word then
    differ like classes do. A text without a known word, in another language or none, is read by its bytes: these pass
    a convolution, which makes parts of words of them, and blocks of attention with rotary positions. They are the
    tokens too, and know the order of the words.

    Args:
        features: size of the vector and of the tokens.
        width: channels of a byte.
        depth: blocks.
        length: bytes that are read; what is longer is cut, with a warning.
        tokens: also give one token for each byte, for networks with cross-attention.
        words: weight of each word that is known one by one, learned by `fit`; others say nothing beside known ones.
        numbers: mean, standard deviation and weight of the numbers in each known measure, learned by `fit`.
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
        texts = [self.read(value) for value in values]
        codes = [[START, *text] for text in texts]
        device = self.bytes.weight.device
        index = padded(codes, device)
        places = torch.arange(index.shape[1], device=device)
        known = torch.tensor([len(row) for row in codes], device=device)[:, None] > places
        h = self.bytes(index) * known[..., None]
        h = h + self.local(h.mT).mT
        for block in self.blocks:
            h = block(h, known)
        h = F.layer_norm(h, h.shape[-1:])
        said = self.add_words([text.decode() for text in texts])
        heard = said.any(1, keepdim=True)
        if self.words and not self.training:
            warn_of_unknown(
                [text.decode() for text, is_heard in zip(texts, heard, strict=True) if text and not is_heard]
            )
        vector = torch.where(heard, said, self.vector(h[:, 0]))
        vector = F.layer_norm(vector, vector.shape[-1:])
        if self.tokens is None:
            return Context(vector=vector)
        return Context(vector=vector, tokens=self.tokens(h), token_mask=known)

    def add_words(self, texts: Sequence[str]) -> Float[Tensor, "b f"]:
        """Weighted sum of the vectors of known words and numbers in each text, of unit variance while untrained."""
        index = padded([[self.words.get(word, 0) for word in words_of(text)] for text in texts], self.weights.device)
        weights = self.weights[index]
        total, square = (weights[:, None] @ self.table(index))[:, 0], weights.square().sum(1, keepdim=True)
        if self.numbers is not None:
            numbers, squares = self.numbers(texts)
            total, square = total + numbers, square + squares
        return total / square.clamp(min=1e-12).sqrt()

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        """Measures of numbers, and weights by inverse document frequency: Sparck Jones 1972."""
        texts = [normalize(value) for value in values]
        numbers = fit_numbers(texts)
        pattern = pattern_of(numbers)
        words = Counter(word for text in texts for word in words_of(pattern.sub(r"\2", text))).most_common(WORDS)
        return {"words": {word: rarity(count, len(texts)) for word, count in sorted(words)}, "numbers": numbers}

    def read(self, text: Any) -> bytes:
        """The bytes of a text, at most ``length`` of them and whole characters."""
        code = normalize(text).encode()
        if len(code) > self.length:
            warn_of_length(self.length, "bytes")
            code = code[: self.length].decode(errors="ignore").encode()
        return code


def rarity(count: int, total: int) -> float:
    """What is told by something that ``count`` of ``total`` texts have, to four digits: log((1 + total) / count)."""
    return float(f"{math.log((1 + total) / count):.4g}")


def fit_numbers(texts: Sequence[str]) -> dict[str, list[float]]:
    """Mean, standard deviation and weight of the numbers in each measure.

    A unit is a word that nine times of ten stands behind a number; with the word behind it, which tells what is
    measured, it is a measure: "cm high", "bpm".
    """
    behind = Counter(match[2] for text in texts for match in UNIT.finditer(text))
    total = Counter(word for text in texts for word in WORD.findall(text))
    found: dict[str, list[float]] = {}
    for text in texts:
        for number, unit, of in UNIT.findall(text):
            if behind[unit] >= 0.9 * total[unit]:
                found.setdefault(f"{unit} {of}".strip(), []).append(float(number))
    common = sorted(found, key=lambda measure: -len(found[measure]))[:MEASURES]
    return {
        measure: [float(f"{value:.4g}") for value in (mean(numbers), pstdev(numbers))]
        + [rarity(len(numbers), len(texts))]
        for measure in common
        if len(numbers := found[measure]) >= len(texts) / 100 and len(set(numbers)) > 1
    }


def pattern_of(measures: Iterable[str]) -> re.Pattern[str]:
    """Matches a number in one of the measures: the groups are the number and the measure."""
    names = "|".join(map(re.escape, sorted(measures, key=len, reverse=True)))
    return re.compile(rf"{NUMBER}({names or '(?!)'})\b")


class _Numbers(nn.Module):
    """What the numbers of texts say, in known measures."""

    def __init__(self, features: int, measures: Mapping[str, Sequence[float]]):
        super().__init__()
        self.measures = {measure: tuple(row) for measure, row in measures.items()}
        self.pattern = pattern_of(measures)
        self.fourier = FourierFeatures(features, bandwidth=2.0)
        self.maps = nn.Parameter(torch.randn(len(measures), features, features) / features**0.5)

    def forward(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b 1"]]:
        """The weighted sum for each text, and the sum of the squared weights."""
        found = [{measure: float(number) for number, measure in self.pattern.findall(text)} for text in texts]
        rows = [
            [
                ((row[measure] - mean) / std, weight) if measure in row else (0.0, 0.0)
                for measure, (mean, std, weight) in self.measures.items()
            ]
            for row in found
        ]
        number, weight = self.maps.new_tensor(rows).unbind(-1)
        features = self.fourier(number) * weight[..., None]
        return torch.einsum("bmf,mfo->bo", features, self.maps), weight.square().sum(1, keepdim=True)


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
