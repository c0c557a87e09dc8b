"""Text encoders trained elsewhere, read through the library transformers (``pip install 'mmdiff[text]'``)."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmdiff.errors import DataError
from mmdiff.text import TextEmbedder, normalize, warn_of_length
from mmdiff.types import Context


class PretrainedEmbedder(TextEmbedder):
    """A frozen text encoder (T5, CLIP, CLAP, BERT, sentence encoders) and a learned map of what it says.

    The vector comes from the mean over the tokens. What the encoder says of a text is kept on disk, so each distinct
    text is encoded once, in training and ever after. Its weights are no part of a checkpoint, which names it only.

    Args:
        features: size of the vector and of the tokens.
        model: a folder that transformers reads, or a name on the hub.
        length: tokens that are read; what is longer is cut, with a warning.
        tokens: also give the encoder's tokens, for networks with cross-attention.
        cache: folder for what was encoded; the user's cache if None.

    Raises:
        ValueError: if transformers is missing, or the model.
    """

    def __init__(
        self,
        features: int,
        model: str,
        *,
        length: int = 128,
        tokens: bool = False,
        cache: str | None = None,
        drop: float = 0.1,
    ):
        super().__init__(drop)
        self.model = str(model)
        self.length = length
        key = hashlib.sha256(f"{self.model} {length}".encode()).hexdigest()[:16]
        self.cache = (
            Path(cache or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "mmdiff", "text")).expanduser() / key
        )
        config = self._load("AutoConfig")
        config = getattr(config, "text_config", config)
        width = config.hidden_size
        self.vector = nn.Linear(width, features)
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.null = nn.Parameter(torch.randn(features))
        self.tokens = nn.Linear(width, features) if tokens else None

    def forward(self, values: Sequence[Any]) -> Context:
        device, dtype = self.null.device, self.null.dtype
        said = [self.encode(text) if (text := normalize(value)) else None for value in values]
        blank = torch.zeros(1, self.vector.in_features)
        rows = nn.utils.rnn.pad_sequence([blank if row is None else row for row in said], batch_first=True)
        rows = rows.to(device, dtype)
        counts = torch.tensor([0 if row is None else len(row) for row in said], device=device)
        pooled = rows.sum(1) / counts.clamp(min=1)[:, None]
        vector = torch.where(counts[:, None] > 0, self.norm(self.vector(pooled)), self.null)
        if self.tokens is None:
            return Context(vector=vector)
        # The first token says whether anything is said, so that attention never has nothing to look at.
        tokens = torch.cat([vector[:, None], self.tokens(rows)], 1)
        known = torch.arange(tokens.shape[1], device=device) <= counts[:, None]
        return Context(vector=vector, tokens=tokens, token_mask=known)

    def encode(self, text: str) -> Float[Tensor, "n w"]:
        """What the encoder says of each token of a text, from the disk if it was asked before."""
        name = hashlib.sha256(text.encode()).hexdigest()
        path = self.cache / name[:2] / f"{name}.safetensors"
        try:
            return load_file(path)["tokens"]
        except OSError:
            tokens = self._encode(text)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            save_file({"tokens": tokens}, part)
            part.replace(path)  # other processes see a whole file or none
        except OSError as error:
            raise DataError(path, f"cannot be written ({error.strerror}); choose another cache=DIR") from error
        return tokens

    @torch.no_grad()
    def _encode(self, text: str) -> Float[Tensor, "n w"]:
        tokenizer, encoder = self._encoder
        inputs = tokenizer(text, truncation=True, max_length=self.length, return_tensors="pt")
        if len(tokenizer(text, verbose=False)["input_ids"]) > self.length:
            warn_of_length(self.length, "tokens")
        return encoder(**inputs).last_hidden_state[0].float().contiguous()

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        """Tokenizer and encoder, loaded when a text is not on the disk; of a pair of towers the one for text."""
        model = self._load("AutoModel").eval().requires_grad_(False)
        model = model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)
        return self._load("AutoTokenizer"), model

    def _load(self, kind: str) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise ValueError("a pretrained text encoder needs transformers: pip install 'mmdiff[text]'") from error
        try:
            return getattr(transformers, kind).from_pretrained(self.model)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model {self.model} is no folder and no name on the hub that can be read: {error}"
            ) from error
