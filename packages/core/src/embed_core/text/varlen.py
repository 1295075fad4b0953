"""The layouts of a chunk's tokens: padded, a row per text, or packed, one text after another in a single row.

Flash-attention takes packed ones (Dao 2023, arXiv 2307.08691: its *varlen* kernels): no token is wasted on padding.
Both layouts have the same interface, so that a model's heads are written once.

Suffixes besides those of :mod:`embed_core.types`: X rows and Y columns of the chunk, [N,L] where it is padded to L
tokens, [1,T] where it is packed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embed_core.text.pooling import Pooling, pool, pool_packed


@dataclass(frozen=True, slots=True)
class Padded:
    """A chunk with a row per text, padded on the right."""

    input_ids: Tensor
    """int64 [N,L]."""
    attention_mask: Tensor
    """[N,L], 1 on real tokens."""

    def states(self, encoder: Any) -> Tensor:
        """[N,L,D]: the last hidden states of a transformers model."""
        options = _without_cache(encoder)
        states_XYD: Tensor = encoder(
            input_ids=self.input_ids, attention_mask=self.attention_mask, **options
        ).last_hidden_state
        return states_XYD

    def pool(self, states_XYD: Tensor, method: Pooling) -> Tensor:
        """[N,D]: a vector per text."""
        return pool(states_XYD, self.attention_mask, method)

    @property
    def count(self) -> int:
        """N, the number of texts."""
        return int(self.input_ids.shape[0])

    @property
    def lengths_N(self) -> Tensor:
        """int64 tokens of each text."""
        return self.attention_mask.long().sum(1)

    @property
    def texts_XY(self) -> Tensor:
        """int64 [N,L]: the number of the text that a token belongs to."""
        rows_N = torch.arange(self.count, device=self.input_ids.device)
        return rows_N.unsqueeze(1).expand_as(self.input_ids)

    @property
    def real_XY(self) -> Tensor:
        """bool [N,L]: True where there is no padding."""
        return self.attention_mask.bool()

    @property
    def later_XY(self) -> Tensor:
        """bool [N,L]: real tokens but the first of each text."""
        later_XY = self.real_XY.clone()
        later_XY[:, 0] = False
        return later_XY


@dataclass(frozen=True, slots=True)
class Packed:
    """A chunk with one row for all texts, as :func:`packed` builds it."""

    input_ids: Tensor
    """int64 [1,T]."""
    position_ids: Tensor
    """int64 [1,T], from 0 in every text."""
    offsets_N1: Tensor
    """int32: text n has the columns ``offsets_N1[n]:offsets_N1[n+1]``. All texts have tokens."""
    longest: int
    """Tokens of the longest text."""

    def states(self, encoder: Any) -> Tensor:
        """[1,T,D]: the last hidden states of a transformers model whose attention keeps the texts apart.

        The texts' offsets have the names that transformers hands on to flash-attention.
        """
        states_XYD: Tensor = encoder(
            input_ids=self.input_ids,
            position_ids=self._positions(encoder),
            cu_seq_lens_q=self.offsets_N1,
            cu_seq_lens_k=self.offsets_N1,
            max_length_q=self.longest,
            max_length_k=self.longest,
            **_without_cache(encoder),
        ).last_hidden_state
        return states_XYD

    def pool(self, states_XYD: Tensor, method: Pooling) -> Tensor:
        """[N,D]: a vector per text."""
        return pool_packed(states_XYD[0], self.offsets_N1, method)

    @property
    def count(self) -> int:
        """N, the number of texts."""
        return int(self.offsets_N1.shape[0]) - 1

    @property
    def lengths_N(self) -> Tensor:
        """int64 tokens of each text."""
        return self.offsets_N1.diff().long()

    @property
    def texts_XY(self) -> Tensor:
        """int64 [1,T]: the number of the text that a token belongs to."""
        return (self.position_ids == 0).cumsum(1) - 1

    @property
    def real_XY(self) -> Tensor:
        """bool [1,T]: True everywhere."""
        return torch.ones_like(self.input_ids, dtype=torch.bool)

    @property
    def later_XY(self) -> Tensor:
        """bool [1,T]: tokens but the first of each text."""
        return self.position_ids > 0

    def _positions(self, encoder: Any) -> Tensor:
        """int64 [1,T]: positions as ``encoder`` counts them in a text alone."""
        table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        if padding is None:
            return self.position_ids
        # RoBERTa and its kin start behind the padding id, and do not count padding ids that a text has in it.
        counts_XY = self.input_ids != padding
        counted_XY = counts_XY.cumsum(1)
        before_N = (counted_XY - counts_XY.long())[0, self.offsets_N1[:-1]]
        return (counted_XY - before_N[self.texts_XY]) * counts_XY + padding


ChunkTokens = Padded | Packed


def chunk_tokens(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    offsets: Tensor | None = None,
    longest: Tensor | None = None,
) -> ChunkTokens:
    """Turn the tensors of ``TextTokenizer.collate`` into one of the two layouts."""
    if offsets is None or position_ids is None or longest is None:
        assert attention_mask is not None, "a padded chunk comes with its mask"
        return Padded(input_ids, attention_mask)
    return Packed(input_ids, position_ids, offsets, longest.shape[0])


def packed(texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Pack token lists, none of them empty, into the arguments of :func:`chunk_tokens`."""
    lengths = [len(ids) for ids in texts]
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    return {
        "input_ids": torch.from_numpy(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in texts])[None]),
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])[None]),
        "offsets": torch.from_numpy(offsets),
        # A number that the host has to know: as the shape of an empty tensor it goes to a GPU and back without waiting.
        "longest": torch.empty(max(lengths), 0),
    }


def _without_cache(encoder: Any) -> dict[str, bool]:
    """Options that turn off a decoder's cache of keys and values, which only generation needs."""
    return {"use_cache": False} if "use_cache" in inspect.signature(encoder.forward).parameters else {}
