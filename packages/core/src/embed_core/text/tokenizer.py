"""Turns texts into token lists and these into tensors: ``tokenize`` and ``collate`` of every text model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embed_core.errors import CheckpointError
from embed_core.text.prompts import Prompt
from embed_core.text.varlen import packed
from embed_core.types import Encoded, Item, Role

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
        self.packed = False
        """Whether :meth:`collate` puts texts one after another instead of padding them."""
        self._most = max(max_lengths.values())
        self.prompts: Mapping[Role, Prompt] = prompts or {}
        # Truncation is state of the Rust object, and changing it while another thread encodes raises: each role has
        # its own copy, set once.
        self._backends: dict[Role, Tokenizer] = {role: _truncating(tokenizer, n) for role, n in max_lengths.items()}

    def fingerprint(self) -> str:
        """Hash all that the token lists depend on besides text, role and instruction. A model returns it from
        ``tokenizer_fingerprint``, so that its token lists may be cached (:mod:`embed_core.text.token_cache`)."""
        import tokenizers

        facts = [tokenizers.__version__]
        for role in sorted(self._backends):
            facts += [role, repr(self.prompts.get(role)), self._backends[role].to_str()]
        return blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Encoded]:
        """Token lists of ``texts``, unpadded; an instruction of ``None`` means the role's own prompt."""
        return [_encoded(encoding.ids) for encoding in self._encodings(texts, role, instructions)]

    def cut_off(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[int]:
        """Count the tokens that truncation takes from each of ``texts``; 0 where it is encoded whole."""
        # The tokens that did not fit come in further pieces, each with special tokens of its own.
        return [
            sum(len(piece.ids) - sum(piece.special_tokens_mask) for piece in encoding.overflowing)
            for encoding in self._encodings(texts, role, instructions)
        ]

    def _encodings(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Any]:
        prompt = self.prompts.get(role, Prompt())
        whole = [prompt.apply(text, instruction) for text, instruction in zip(texts, instructions, strict=True)]
        found: list[Any] = self._backends[role].encode_batch_fast(whole)
        return found

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """One chunk as the arguments of :func:`embed_core.text.varlen.chunk_tokens`.

        ``input_ids`` and ``attention_mask``, int64 [N,L], padded on the right to the longest of the chunk; or, where
        :attr:`packed` is set, what :func:`embed_core.text.varlen.packed` makes of the token lists.
        """
        if self.packed:
            return packed([one.data["input_ids"] for one in encoded])
        longest = max(one.length for one in encoded)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        width = max(longest, min(width, self._most))  # the encoder may have no positions beyond it
        ids_NL = np.full((len(encoded), width), self.pad_id, dtype=np.int64)
        mask_NL = np.zeros((len(encoded), width), dtype=np.int64)
        for row, one in enumerate(encoded):
            ids_NL[row, : one.length] = one.data["input_ids"]
            mask_NL[row, : one.length] = 1
        return {"input_ids": torch.from_numpy(ids_NL), "attention_mask": torch.from_numpy(mask_NL)}


class TokenizesTexts:
    """A mixin with the methods that all models with a :class:`TextTokenizer` in ``_text`` have."""

    _text: TextTokenizer

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """See :meth:`embed_core.protocols.Model.tokenize`; a row's prompt takes the place of the model's."""
        return self._text.encode(items, role, prompts)

    def tokenizer_fingerprint(self) -> str:
        """Hash all that :meth:`tokenize` depends on besides its arguments, as the key of cached token lists."""
        return self._text.fingerprint()

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """See :meth:`embed_core.protocols.Model.collate`."""
        return self._text.collate(encoded)

    @property
    def pad_to_multiple_of(self) -> int:
        """The multiple that the length of a padded chunk is rounded up to; settable."""
        return self._text.pad_to_multiple_of

    @pad_to_multiple_of.setter
    def pad_to_multiple_of(self, multiple: int) -> None:
        self._text.pad_to_multiple_of = multiple

    @property
    def packed(self) -> bool:
        """Whether chunks are packed instead of padded; settable."""
        return self._text.packed

    @packed.setter
    def packed(self, packed: bool) -> None:
        self._text.packed = packed


def _encoded(ids: list[int]) -> Encoded:
    return Encoded(key=np.asarray(ids, dtype=np.int32).tobytes(), length=len(ids), data={"input_ids": ids})


def _truncating(tokenizer: Any, max_length: int) -> Tokenizer:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    return backend
