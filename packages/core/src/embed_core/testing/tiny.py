"""A tiny encoder that gives all three kinds of embeddings: for tests of losses, loops and evaluators."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embed_core.embeddings import offsets_of
from embed_core.types import Embeddings, Encoded, Item, MultiVectors, Role, ScoreWeights, SparseVectors

PAD = 0


class TinyModel(nn.Module):
    """One transformer layer over hashed words: dense = mean of the tokens, sparse and multi-vector heads on each."""

    scores: Mapping[str, ScoreWeights] = {
        "all": {"dense": 1.0, "sparse": 0.3, "multi": 1.0},
        "dense": {"dense": 1.0},
        "sparse": {"sparse": 1.0},
        "multi-vector": {"multi": 1.0},
    }

    def __init__(self, vocabulary: int = 97, width: int = 16, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
            self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
            self.sparse_head = nn.Linear(width, 1)
            self.multi_head = nn.Linear(width, width)

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Words, hashed; a text without words is one unknown word."""
        texts = [(prompt or "") + str(item) for item, prompt in zip(items, prompts, strict=True)]
        return [self._encode(text) for text in texts]

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """``input_ids`` [N, L], padded with 0."""
        rows = [torch.tensor(item.data["input_ids"]) for item in encoded]
        return {"input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)}

    def forward(self, input_ids: Tensor) -> Embeddings:
        """All three kinds. Equal words of a text are one lexical entry, with the largest of their weights."""
        real_NL = input_ids != PAD
        hidden_NLD = self.layer(self.embedding(input_ids), src_key_padding_mask=~real_NL)
        mean_ND = (hidden_NLD * real_NL.unsqueeze(-1)).sum(1) / real_NL.sum(1, keepdim=True)
        dense_ND = nn.functional.normalize(mean_ND, dim=-1)
        lengths_N = real_NL.sum(1)
        flat_TD = hidden_NLD[real_NL]
        vectors_TC = nn.functional.normalize(self.multi_head(flat_TD), dim=-1)
        sparse = self._lexical(torch.relu(self.sparse_head(flat_TD)).squeeze(-1), input_ids, real_NL)
        return Embeddings(dense_ND, sparse, MultiVectors(vectors_TC, offsets_of(lengths_N)))

    def _lexical(self, weights_T: Tensor, input_ids: Tensor, real_NL: Tensor) -> SparseVectors:
        text_NL = torch.arange(input_ids.shape[0], device=input_ids.device).unsqueeze(1).expand_as(input_ids)
        key_T = text_NL[real_NL] * self.vocabulary + input_ids[real_NL]
        unique_K, entry_T = torch.unique(key_T, return_inverse=True)
        largest_K = weights_T.new_zeros(len(unique_K)).scatter_reduce(0, entry_T, weights_T, "amax")
        counts_N = torch.bincount(unique_K // self.vocabulary, minlength=input_ids.shape[0])
        return SparseVectors(largest_K, unique_K % self.vocabulary, offsets_of(counts_N))

    def _encode(self, text: str) -> Encoded:
        ids = [1 + zlib.crc32(word.encode()) % (self.vocabulary - 1) for word in text.split()] or [1]
        return Encoded(key=repr(ids).encode(), length=len(ids), data={"input_ids": ids})
