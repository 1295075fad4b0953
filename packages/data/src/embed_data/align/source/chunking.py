"""Cuts documents into chunks: spans of the original text, so that a chunk is exactly what the document says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embed_data.align.request import ChunkChoice

_BLANK = re.compile(r"\n[ \t\r\f\v]*\n\s*")
_SPACED_END = r"[.!?…]+[\"'”’»)\]]*(?=\s)"
_CLOSED_END = r"[。！？｡．।॥؟۔]+[」』”’）)\]]*"
_END = re.compile(f"{_SPACED_END}|{_CLOSED_END}|\n\\s*\n")
_ABBREVIATED = re.compile(r"(?:^|[\s(\"'])(?:\w|(?:\w\.)+\w|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|Fig|etc|e\.g|i\.e|cf|al)$")


class Span(NamedTuple):
    """Characters ``start:stop`` of part number ``part``."""

    part: int
    start: int
    stop: int


def chunk(
    parts: Sequence[str], choice: ChunkChoice, offsets: Callable[[str], list[tuple[int, int]]] | None
) -> list[Span]:
    """The chunks of a document, in order; none is blank and none crosses the border of two parts.

    ``offsets`` gives the character spans of a text's tokens; only ``tokens`` needs it.
    """
    size, overlap = choice.resolved
    found: list[Span] = []
    for number, text in enumerate(parts):
        if choice.by == "tokens":
            assert offsets is not None, "tokens are counted by a tokenizer"
            units = offsets(text)
        else:
            units = sentences(text) if choice.by == "sentences" else paragraphs(text)
        for first, last in windows(len(units), size, overlap):
            start, stop = trimmed(text, units[first][0], units[last][1])
            if start < stop:
                found.append(Span(number, start, stop))
    return found


def windows(count: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """First and last index of windows of ``size`` over ``count`` things; the last window ends with the last thing, and
    none lies inside another."""
    found: list[tuple[int, int]] = []
    for first in range(0, count, size - overlap):
        found.append((first, min(first + size, count) - 1))
        if first + size >= count:
            break
    return found


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of a text's sentences in any script; a dot after an initial or a common abbreviation does not end one."""
    found, start = [], 0
    for end in _END.finditer(text):
        following = text[end.end() : end.end() + 8].lstrip()
        if end[0].strip() and following[:1].islower():  # "Why?" she asked.
            continue
        if end[0] == "." and _ABBREVIATED.search(text[max(start, end.start() - 12) : end.start()]):
            continue
        found.append((start, end.end()))
        start = end.end()
    found.append((start, len(text)))
    return [span for span in (trimmed(text, *one) for one in found) if span[0] < span[1]]


def paragraphs(text: str) -> list[tuple[int, int]]:
    """Spans of the paragraphs, which blank lines separate."""
    ends = [*_BLANK.finditer(text)]
    starts = [0, *(end.end() for end in ends)]
    stops = [*(end.start() for end in ends), len(text)]
    return [span for span in (trimmed(text, *one) for one in zip(starts, stops, strict=True)) if span[0] < span[1]]


def trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """The span without the blanks at its ends."""
    inside = text[start:stop]
    start += len(inside) - len(inside.lstrip())
    return start, max(start, start + len(inside.strip()))


def token_offsets(tokenizer: Any) -> Callable[[str], list[tuple[int, int]]]:
    """Character spans of a fast tokenizer's tokens; tokens of one character (bytes of an emoji) stay together."""

    def offsets(text: str) -> list[tuple[int, int]]:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return [(start, stop) for start, stop in spans if stop > start]

    return offsets
