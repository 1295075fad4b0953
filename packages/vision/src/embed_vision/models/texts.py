"""Turns texts into padded token ids, with fast or slow tokenizers, for towers trained with padding or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from embed_core.text.prompts import Prompt
from embed_core.text.tokenizer import TextTokenizer
from embed_core.types import Encoded, Role


class TextReader:
    """Tokenizes texts and pads the token lists to tensors. It is thread-safe; a copy is the reader itself.

    ``fixed`` says that the tower was trained on texts padded to ``max_length`` and attends to the padding (SigLIP pools
    the last token, padding or not): lists are then padded when they are encoded, and have no mask.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, prompts: Mapping[Role, Prompt] | None = None, *, fixed: bool = False
    ) -> None:
        """Raises CheckpointError for a tokenizer without a padding token."""
        self.tokenizer, self.max_length, self.fixed = tokenizer, max_length, fixed
        self.prompts = prompts or {}
        self._lock = Lock()
        self._fast: TextTokenizer | None = None
        if getattr(tokenizer, "is_fast", False):
            self._fast = TextTokenizer(tokenizer, {"query": max_length, "passage": max_length}, self.prompts)
        self.pad_id = int(tokenizer.pad_token_id)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def fingerprint(self) -> str:
        """Identifies everything that the token lists depend on besides text, role and prompt."""
        if self._fast is not None:
            return f"{self._fast.fingerprint()}{'-fixed' if self.fixed else ''}"
        facts = f"{self.tokenizer!r}|{self.max_length}|{self.fixed}|{sorted(self.prompts.items())!r}"
        return blake2b(facts.encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Token lists, cut at ``max_length``; a prompt of ``None`` selects the role's own."""
        lists = self._lists(texts, role, prompts)
        if self.fixed:
            lists = [ids + [self.pad_id] * (self.max_length - len(ids)) for ids in lists]
        return [Encoded(np.asarray(ids, dtype=np.int32).tobytes(), len(ids), {"input_ids": ids}) for ids in lists]

    def padded(self, lists: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """``input_ids`` int64 [S,L], padded on the right, and ``attention_mask`` where padding must be masked."""
        longest = max(map(len, lists))
        ids_SL = np.full((len(lists), longest), self.pad_id, dtype=np.int64)
        mask_SL = np.zeros((len(lists), longest), dtype=np.int64)
        for row, ids in enumerate(lists):
            ids_SL[row, : len(ids)] = ids
            mask_SL[row, : len(ids)] = 1
        tensors = {"input_ids": torch.from_numpy(ids_SL)}
        return tensors if self.fixed else tensors | {"attention_mask": torch.from_numpy(mask_SL)}

    def _lists(self, texts: Sequence[str], role: Role, prompts: Sequence[str | None]) -> list[list[int]]:
        if not texts:
            return []
        if self._fast is not None:
            return [list(one.data["input_ids"]) for one in self._fast.encode(texts, role, prompts)]
        own = self.prompts.get(role, Prompt())
        whole = [own.apply(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        # sentencepiece's tokenizers keep state while they truncate, so one thread at a time uses them.
        with self._lock:
            found: list[list[int]] = self.tokenizer(whole, truncation=True, max_length=self.max_length)["input_ids"]
        return found
