"""What ranks a collection, and what scores single pairs: the two things that mining asks of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Ranked(NamedTuple):
    """One query's documents, the best first; equal scores in the order of their numbers."""

    documents: list[int]
    scores: list[float]


class Judge(Protocol):
    """Scores pairs of a row's query and documents of the collection, on its own scale, higher is better."""

    def pairs(self, rows: Sequence[int], documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each of ``rows`` the scores of its ``documents``. The same numbers whatever other rows there are."""
        ...


class Retriever(Judge, Protocol):
    """Ranks the part of the collection that may become negatives."""

    def search(self, rows: Sequence[int], depth: int) -> list[Ranked]:
        """The ``depth`` best documents of each row's query, or as many as there are."""
        ...
