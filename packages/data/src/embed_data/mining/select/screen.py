"""Screens out texts that may never be negatives: answers, positives, and texts that are nearly the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from embed_data.mining.rank.tokens import has_no_spaces, normalised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_data.mining.corpus.collection import Collection, Document
    from embed_data.mining.corpus.rows import MiningRow

WINDOW = 8
"""Characters of the windows by which the overlap of two texts is measured."""
EDGE = 24
"""Characters that the end of one chunk and the start of the next must share to be an overlap."""
LONG_ANSWER = 32
"""Answers at least this long are also recognised in part."""
CACHED = 2048
_ALIKE = str.maketrans("‐‑‒–—―−‘’‚“”„«»", '-------\'\'\'"""""')
"""Dashes and quotation marks that authors use interchangeably; NFKC keeps them apart."""


def plain(text: str) -> str:
    """``text`` normalised, with blanks collapsed, and dashes and quotation marks unified."""
    return " ".join(normalised(text).translate(_ALIKE).split())


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What the negatives of one row must not contain or repeat."""

    known: frozenset[int]
    """Numbers of the query's known positives."""
    query: str
    positives: tuple[str, ...]
    """Texts of the positives without titles, as :func:`plain` gives them."""
    answers: tuple[str, ...]
    """The answers as given."""


class Screen:
    """Says why a document cannot be a negative of a row.

    ``overlap`` is the share of the smaller text's windows from which on two texts count as the same.
    """

    def __init__(self, collection: Collection, overlap: float) -> None:
        self._collection, self._overlap = collection, overlap
        self._body = lru_cache(CACHED)(self._plain_body)

    def forbidden(self, number: int, mined: MiningRow) -> Forbidden:
        """What the negatives of row ``number`` must keep away from."""
        known = self._collection.known(number, mined.row.query)
        positives = tuple(self._body(n) for n in sorted(known))
        return Forbidden(known, plain(mined.row.query), positives, mined.answers)

    def reason(self, document: int, forbidden: Forbidden, chosen: Sequence[int]) -> str | None:
        """``positive``, ``query``, ``overlap``, ``answer`` or ``repeat``; None if ``document`` may be a negative."""
        if document in forbidden.known:
            return "positive"
        body = self._body(document)
        if body == forbidden.query:
            return "query"
        found = self._collection.document(document)
        if any(holds_answer(found, body, answer, self._overlap) for answer in forbidden.answers):
            return "answer"
        if any(overlaps(body, positive, self._overlap) for positive in forbidden.positives):
            return "overlap"
        return "repeat" if any(self._body(other) == body for other in chosen) else None

    def _plain_body(self, number: int) -> str:
        document = self._collection.document(number)
        return plain(document.text[document.start :]) or plain(document.text)


def holds_answer(document: Document, body: str, answer: str, share: float = 0.5) -> bool:
    """Whether ``document`` (its title included; ``body`` is its :func:`plain` text) holds the answer or most of it.

    Compared to the letter or :func:`plain`, in scripts without spaces ignoring blanks. A chunk cut inside the answer
    holds at least half of it at its start or end; of a long answer ``share`` of the windows is enough.
    """
    wanted, whole = plain(answer), plain(document.text)
    if answer in document.text or (wanted and wanted in whole):
        return True
    if has_no_spaces(wanted) and wanted.replace(" ", "") in whole.replace(" ", ""):
        return True
    if _cut_off(body, wanted):
        return True
    return len(wanted) >= LONG_ANSWER and _share(_windows(wanted), _windows(body)) >= share


def overlaps(first: str, second: str, share: float) -> bool:
    """Whether two :func:`plain` texts are one: contained, overlapping chunks, or ``share`` of the windows in common."""
    small, large = sorted((first, second), key=len)
    if small in large or _edge(first, second) or _edge(second, first):
        return True
    return _share(_windows(small), _windows(large)) >= share


def _cut_off(body: str, answer: str) -> bool:
    least = max(2, (len(answer) + 1) // 2)
    sizes = range(least, min(len(answer), len(body) + 1))
    return any(body.endswith(answer[:size]) or body.startswith(answer[-size:]) for size in sizes)


def _edge(left: str, right: str) -> bool:
    """Whether ``left`` ends with at least EDGE characters that ``right`` starts with."""
    if len(right) < EDGE:
        return False
    start = left.find(right[:EDGE])
    while start >= 0:
        if right.startswith(left[start:]):
            return True
        start = left.find(right[:EDGE], start + 1)
    return False


@lru_cache(CACHED)
def _windows(text: str) -> frozenset[str]:
    return frozenset(text[n : n + WINDOW] for n in range(max(1, len(text) - WINDOW + 1)))


def _share(small: frozenset[str], large: frozenset[str]) -> float:
    small, large = sorted((small, large), key=len)
    return len(small & large) / len(small)
