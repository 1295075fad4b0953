"""Cut the texts of a step into chunks of similar length: padding, not arithmetic, is where a naive loop spends time."""

from __future__ import annotations

from collections.abc import Sequence


def cut(lengths: Sequence[int], budget: int, count: int | None = None) -> list[list[int]]:
    """Indices of ``lengths`` in chunks, the longest texts first.

    A chunk's texts × its longest length stays within ``budget`` tokens (a single longer text is its own chunk). With
    ``count`` there are exactly that many chunks, at least as many as without: the largest are halved, and where texts
    run out the shortest text is repeated (ZeRO-3 needs every rank to run the same number of forwards).
    Longest first also shows at the first chunk of the first step whether memory suffices.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    chunks: list[list[int]] = []
    for index in order:
        if not chunks or (len(chunks[-1]) + 1) * max(1, lengths[chunks[-1][0]]) > budget:
            chunks.append([])
        chunks[-1].append(index)
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
