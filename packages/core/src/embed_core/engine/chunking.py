"""Cut the texts of a step into chunks of similar length: padding, not arithmetic, is where a naive loop spends time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embed_core.types import Encoded


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a model's texts are cut into chunks."""

    budget: int
    """Tokens of a chunk, padding included."""
    multiple: int = 1
    """What lengths are padded to; 1 where chunks are packed."""
    packed: bool = False
    """Whether chunks have no padding at all."""

    @classmethod
    def of(cls, model: Any, budget: int) -> Cutting:
        """As ``model``, prepared by the engine, collates them."""
        packed = bool(getattr(model, "packed", False))
        return cls(budget, 1 if packed else getattr(model, "pad_to_multiple_of", None) or 1, packed)

    def lengths(self, encoded: Sequence[Encoded]) -> list[int]:
        """What each text takes of a chunk of such texts."""
        return [-(-one.length // self.multiple) * self.multiple for one in encoded]

    def cut(self, lengths: Sequence[int], count: int | None = None) -> list[list[int]]:
        """:func:`cut` within the budget."""
        return cut(lengths, self.budget, count, packed=self.packed)

    def tokens(self, lengths: Sequence[int], chunk: Sequence[int]) -> int:
        """Tokens of one chunk that the hardware sees."""
        return sum(lengths[i] for i in chunk) if self.packed else padded_tokens(lengths, [chunk])


def cut(lengths: Sequence[int], budget: int, count: int | None = None, *, packed: bool = False) -> list[list[int]]:
    """Indices of ``lengths`` in chunks, the longest texts first.

    A chunk's texts × its longest length (the sum of its lengths where it is ``packed``) stays within ``budget`` tokens;
    a single longer text is its own chunk. With ``count`` there are exactly that many chunks, at least as many as
    without: the largest are halved, and where texts run out the shortest text is repeated (ZeRO-3 needs every rank to
    run the same number of forwards). Longest first also shows at the first chunk of the first step whether memory
    suffices.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    chunks: list[list[int]] = []
    used = 0
    for index in order:
        # Padded, a text takes what the longest of its chunk takes, the first.
        size = max(1, lengths[index if packed or not chunks else chunks[-1][0]])
        if not chunks or used + size > budget:
            chunks.append([])
            used, size = 0, max(1, lengths[index])
        chunks[-1].append(index)
        used += size
    return chunks if count is None else _exactly(chunks, count)


def _exactly(chunks: list[list[int]], count: int) -> list[list[int]]:
    assert chunks, "no texts to cut"
    while len(chunks) < count:
        position = max(range(len(chunks)), key=lambda i: len(chunks[i]))
        chunk = chunks[position]
        if len(chunk) == 1:
            return chunks + [list(chunks[-1]) for _ in range(count - len(chunks))]
        half = len(chunk) // 2
        chunks[position : position + 1] = [chunk[:half], chunk[half:]]
    return chunks


def padded_tokens(lengths: Sequence[int], chunks: Sequence[Sequence[int]]) -> int:
    """Tokens the hardware sees, padding included."""
    return sum(len(chunk) * max(lengths[i] for i in chunk) for chunk in chunks)
