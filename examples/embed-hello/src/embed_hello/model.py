"""A text encoder in one file: averages hashed character n-gram vectors and applies a perceptron.

The n-grams and the hashing are fastText's (Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information").
Shape suffixes: N texts, L n-grams of the longest text of a chunk, W width of an n-gram vector, D of the embedding.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights

SIZES_OF_NGRAMS = (3, 4, 5)
PADDING = 0
"""The table's row 0 belongs to no n-gram."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shapes of the weights; they are written into ``config.json``."""

    buckets: int = 16384
    width: int = 128
    dimension: int = 128


class NgramEncoder(nn.Module):
    """``forward`` returns the L2-normalised mean of a text's n-gram vectors after a residual perceptron."""

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}

    def __init__(self, sizes: Sizes, max_characters: int, seed: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.max_characters = max_characters
        # The weights depend only on the seed, not on random numbers drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.ngrams = nn.EmbeddingBag(sizes.buckets, sizes.width, mode="mean", padding_idx=PADDING)
            self.project = nn.Linear(sizes.width, sizes.dimension)
            self.refine = nn.Sequential(nn.GELU(), nn.Linear(sizes.dimension, sizes.dimension))

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Queries and passages are encoded alike; a prompt is read as part of the text."""
        return [self._encoded((prompt or "") + text) for text, prompt in zip(items, prompts, strict=True)]

    def _encoded(self, text: str) -> Encoded:
        ids = list(ngram_ids(text[: self.max_characters], self.sizes.buckets))
        # Equal n-grams in equal order give the same embedding, so they are the key.
        return Encoded(key=array("q", ids).tobytes(), length=max(1, len(ids)), data={"ids": ids})

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """The argument ``ids_NL`` of :meth:`forward`, int64, padded with :data:`PADDING`."""
        longest = max(text.length for text in encoded)
        rows = [[*text.data["ids"], *[PADDING] * (longest - len(text.data["ids"]))] for text in encoded]
        return {"ids_NL": torch.tensor(rows, dtype=torch.int64)}

    def forward(self, ids_NL: Tensor) -> Embeddings:
        """The bag leaves padding out of its mean, so a text's embedding does not depend on its neighbours."""
        hidden_ND = self.project(self.ngrams(ids_NL))
        dense_ND = hidden_ND + self.refine(hidden_ND)
        return Embeddings(dense_ND=nn.functional.normalize(dense_ND, dim=-1))


def ngram_ids(text: str, buckets: int) -> Sequence[int]:
    """Bucket of every n-gram of every word, in 1..buckets-1; ``<`` and ``>`` mark where a word begins and ends."""
    return [_bucket(ngram, buckets) for word in text.lower().split() for ngram in _ngrams(f"<{word}>")]


def _ngrams(word: str) -> Iterator[str]:
    """Yields a word's n-grams; a short word has fewer, but at least one: ``<a>``."""
    for size in SIZES_OF_NGRAMS:
        for start in range(len(word) - size + 1):
            yield word[start : start + size]


def _bucket(ngram: str, buckets: int) -> int:
    # crc32 and not hash(): the latter differs from process to process.
    return 1 + zlib.crc32(ngram.encode()) % (buckets - 1)
