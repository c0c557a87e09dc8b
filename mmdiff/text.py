"""Text as a condition: embedders that read captions and prompts.

None, an empty text and blanks are one: nothing said. Texts are compared as people do: composed Unicode (NFKC),
without case, blanks collapsed.
"""

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmdiff.conditioning import Embedder
from mmdiff.nn.attention import heads, rotate
from mmdiff.types import Context

START = 256
"""The code before the first byte, whose place gathers what the text says."""

WORDS = 4096
"""Words of captions that are known one by one, the commonest ones."""


WORD = re.compile(r"[^\W_][\w#]*")  # no key of a configuration that means something, such as _target_


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


class ByteEmbedder(TextEmbedder):
    """A small transformer on the bytes of UTF-8, trained with the model: any language, nothing to download.

    Bytes pass a convolution, which makes parts of words of them, and blocks of attention with rotary positions. What
    the attention gathers joins a sum of vectors, one for each known word, weighted by what it tells: captions that
    differ in one word then differ like classes do, where an untrained transformer tells them apart a hundred times
    less. The vector has unit variance.

    Args:
        features: size of the vector and of the tokens.
        width: channels of a byte.
        depth: blocks.
        length: bytes that are read; what is longer is cut, with a warning.
        tokens: also give one token for each byte, for networks with cross-attention.
        words: weight of each word that is known one by one, learned by `fit`; the sum passes over others.
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
        vector = self.vector(h[:, 0]) + self.add_words([text.decode() for text in texts])
        vector = F.layer_norm(vector, vector.shape[-1:])
        if self.tokens is None:
            return Context(vector=vector)
        return Context(vector=vector, tokens=self.tokens(h), token_mask=known)

    def add_words(self, texts: Sequence[str]) -> Float[Tensor, "b f"]:
        """Weighted vectors of the known words of each text, added up, of unit variance while untrained."""
        index = padded([[self.words.get(word, 0) for word in words_of(text)] for text in texts], self.weights.device)
        weights = F.normalize(self.weights[index], dim=1)
        return (weights[:, None] @ self.table(index))[:, 0]

    @classmethod
    def fit(cls, values: Sequence[Any]) -> dict[str, Any]:
        """Weights of the commonest words by inverse document frequency: Sparck Jones 1972."""
        texts = [words_of(normalize(value)) for value in values]
        common = Counter(word for words in texts for word in words).most_common(WORDS)
        return {"words": {word: float(f"{math.log((1 + len(texts)) / count):.4g}") for word, count in sorted(common)}}

    def read(self, text: Any) -> bytes:
        """The bytes of a text, at most ``length`` of them and whole characters."""
        code = normalize(text).encode()
        if len(code) > self.length:
            warn_of_length(self.length, "bytes")
            code = code[: self.length].decode(errors="ignore").encode()
        return code


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
