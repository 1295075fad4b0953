"""Texts to token lists and back to padded tensors: what every text model's ``tokenize`` and ``collate`` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embed_core.errors import CheckpointError
from embed_core.prompts import Prompt
from embed_core.types import Encoded, Role

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


class TextTokenizer:
    """A tokenizer with a maximum length and a prompt per role. Safe to call from several threads."""

    def __init__(
        self,
        tokenizer: Any,
        max_lengths: Mapping[Role, int],
        prompts: Mapping[Role, Prompt] | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        """``tokenizer`` is a fast transformers tokenizer; ``max_lengths`` count special tokens.

        Raises CheckpointError for a tokenizer that is not fast or has no padding token.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError(
                f"{type(tokenizer).__name__} is no fast tokenizer: save the model with its `tokenizer.json`"
            )
        if tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"the tokenizer {type(tokenizer).__name__} has no padding token: set `pad_token` and save it again"
            )
        self.pad_id: int = tokenizer.pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        self.prompts: Mapping[Role, Prompt] = prompts or {}
        # Truncation is state of the Rust object, and changing it while another thread encodes raises: each role has
        # its own copy, set once.
        self._backends: dict[Role, Tokenizer] = {role: _truncating(tokenizer, n) for role, n in max_lengths.items()}

    def encode(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Encoded]:
        """Token lists of ``texts``, unpadded; an instruction of ``None`` means the role's own prompt."""
        prompt = self.prompts.get(role, Prompt())
        whole = [prompt.apply(text, instruction) for text, instruction in zip(texts, instructions, strict=True)]
        encodings = self._backends[role].encode_batch_fast(whole)
        return [_encoded(encoding.ids) for encoding in encodings]

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 [N,L], padded on the right to the longest of the chunk."""
        longest = max(one.length for one in encoded)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids_NL = np.full((len(encoded), width), self.pad_id, dtype=np.int64)
        mask_NL = np.zeros((len(encoded), width), dtype=np.int64)
        for row, one in enumerate(encoded):
            ids_NL[row, : one.length] = one.data["input_ids"]
            mask_NL[row, : one.length] = 1
        return {"input_ids": torch.from_numpy(ids_NL), "attention_mask": torch.from_numpy(mask_NL)}


def _encoded(ids: list[int]) -> Encoded:
    return Encoded(key=np.asarray(ids, dtype=np.int32).tobytes(), length=len(ids), data={"input_ids": ids})


def _truncating(tokenizer: Any, max_length: int) -> Tokenizer:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    return backend
