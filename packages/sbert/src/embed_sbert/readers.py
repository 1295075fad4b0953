"""Turns texts into the unpadded input of a chain's first module, and that into the tensors of a chunk.

There is a reader for each kind of first module: in bulk for tokenizers that pad (:class:`BulkReader`, nearly every
model), for bags of tokens (:class:`BagReader`), and by the module itself, text by text (:class:`ModuleReader`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from embed_core.text.prompts import Prompt
from embed_core.text.tokenizer import TextTokenizer
from embed_core.types import Encoded, Role

_ONE_AT_A_TIME = threading.Lock()
"""A tokenizer keeps truncation and padding as its state, and the engine tokenises in a thread of its own."""
IDS = "input_ids"
MASK = "attention_mask"
PROMPT_LENGTHS = "prompt_lengths"
TASKS: Mapping[Role, str] = {"query": "query", "passage": "document"}
"""sentence-transformers' words for the two roles."""


class Reader(Protocol):
    """What a model asks of the first module of a chain."""

    constants: Mapping[str, Any]
    """Features that are not tensors and are the same for every text (``modality``)."""

    def encode(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Encoded]:
        """The unpadded texts; an instruction of ``None`` means the role's own prompt."""
        ...

    def collate(self, encoded: Sequence[Encoded], multiple: int) -> dict[str, Tensor]:
        """The tensors of a chunk, padded on the right to a multiple of so many tokens."""
        ...


class BulkReader:
    """A fast tokenizer's ids, by the core's tokeniser: the same ids as the module's own, without its padding."""

    constants: Mapping[str, Any] = {"modality": "text"}

    def __init__(self, text: TextTokenizer) -> None:
        self.text = text

    def encode(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Encoded]:
        """See :class:`Reader`. A text without any token becomes one padding token."""
        found = self.text.encode(texts, role, instructions)
        return [one if one.length else _ids([self.text.pad_id]) for one in found]

    def collate(self, encoded: Sequence[Encoded], multiple: int) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` [N,L], or the arguments of a packed chunk."""
        self.text.pad_to_multiple_of = multiple
        return self.text.collate(encoded)


class BagReader:
    """Token ids of ``StaticEmbedding``, one text after another."""

    constants: Mapping[str, Any] = {}

    def __init__(self, module: Any, prompts: Mapping[Role, Prompt]) -> None:
        self._tokenizer, self._prompts = module.tokenizer, prompts

    def encode(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Encoded]:
        """See :class:`Reader`. A text without any known token is an empty bag, whose vector is zero."""
        whole = [self._prompts[role].apply(text, one) for text, one in zip(texts, instructions, strict=True)]
        encodings = self._tokenizer.encode_batch(whole, add_special_tokens=False)
        return [_ids(encoding.ids) for encoding in encodings]

    def collate(self, encoded: Sequence[Encoded], multiple: int) -> dict[str, Tensor]:
        """``input_ids`` [T] and ``offsets`` [N], where each text starts."""
        lists = [one.data[IDS] for one in encoded]
        flat = [token for ids in lists for token in ids]
        starts = np.cumsum([0, *map(len, lists[:-1])])
        return {IDS: torch.tensor(flat, dtype=torch.int64), "offsets": torch.from_numpy(starts)}


class ModuleReader:
    """Uses the module's own ``preprocess`` text by text: works for any module, at the price of a call per text.

    Tensors of one row are kept as they are, and padded together on the right with zeros (ids with the padding id).
    """

    def __init__(self, module: Any, prompts: Mapping[Role, Prompt], *, with_task: bool) -> None:
        self._module, self._prompts, self._with_task = module, prompts, with_task
        self._pad_id = getattr(getattr(module, "tokenizer", None), "pad_token_id", None) or 0
        features = self._features("a", "", "query")
        self.constants: Mapping[str, Any] = {name: value for name, value in features.items() if isinstance(value, str)}

    def encode(self, texts: Sequence[str], role: Role, instructions: Sequence[str | None]) -> list[Encoded]:
        """See :class:`Reader`."""
        found = []
        for text, instruction in zip(texts, instructions, strict=True):
            prompt = (self._prompts[role].instruction if instruction is None else instruction) or ""
            features = self._features(text, prompt, role)
            data = {name: np.asarray(value[0]) for name, value in features.items() if isinstance(value, Tensor)}
            data[PROMPT_LENGTHS] = np.asarray(features.get("prompt_length", 0))
            found.append(Encoded(key=_digest(data), length=_length(data), data=data))
        return found

    def collate(self, encoded: Sequence[Encoded], multiple: int) -> dict[str, Tensor]:
        """The module's own features, [N, …] each, and ``prompt_lengths`` [N]."""
        collated = {}
        for name in encoded[0].data:
            rows = [torch.from_numpy(np.atleast_1d(one.data[name])) for one in encoded]
            if encoded[0].data[name].ndim == 0:
                collated[name] = torch.cat(rows)
                continue
            longest = max(row.shape[0] for row in rows)
            width = longest if rows[0].is_floating_point() else -(-longest // multiple) * multiple
            padded = torch.full((len(rows), width, *rows[0].shape[1:]), self._pad_id if name == IDS else 0)
            collated[name] = padded.to(rows[0].dtype)
            for place, row in zip(collated[name], rows, strict=True):
                place[: row.shape[0]] = row
        return collated

    def _features(self, text: str, prompt: str, role: Role) -> dict[str, Any]:
        task = {"task": TASKS[role]} if self._with_task else {}
        with _ONE_AT_A_TIME:
            features: dict[str, Any] = dict(self._module.preprocess([text], prompt=prompt or None, **task))
        return features


def _ids(ids: list[int]) -> Encoded:
    return Encoded(key=np.asarray(ids, dtype=np.int32).tobytes(), length=max(1, len(ids)), data={IDS: ids})


def _digest(data: Mapping[str, Any]) -> bytes:
    hashed = blake2b(digest_size=16)
    for name in sorted(data):
        hashed.update(f"{name}{data[name].shape}".encode())
        hashed.update(np.ascontiguousarray(data[name]).tobytes())
    return hashed.digest()


def _length(data: Mapping[str, Any]) -> int:
    """Length in tokens: the size that the module pads, else 1 (all bags of words cost the same)."""
    return max([1, *(len(value) for name, value in data.items() if name in (IDS, MASK) and value.ndim)])
