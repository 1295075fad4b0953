"""A dataset wrapper that adds a teacher's vectors to each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from embed_core.protocols import CompletesExamples, provides
from embed_distill.teacher.precompute import fill, is_complete

if TYPE_CHECKING:
    import numpy as np

    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset
    from embed_core.types import Example, Item, RetrievalSet, Role
    from embed_distill.teacher.cached import Sources

ALSO = ("identity_blocks", "row")
"""Optional attributes taken from the inner dataset: all rows' identities at once; whole rows (for mining negatives)."""


class WithTeacher:
    """Implements :class:`embed_core.protocols.Dataset` and :class:`~embed_core.protocols.CompletesExamples`.

    Everything but the vectors comes from the inner dataset. ``sources.computed`` counts the vectors that a teacher
    computed, ``sources.found`` those that were read from the store.
    """

    def __init__(self, inner: Dataset, sources: Sources) -> None:
        self.inner, self.sources, self.name = inner, sources, inner.name
        for more in ALSO:
            if hasattr(inner, more):
                setattr(self, more, getattr(inner, more))

    def __len__(self) -> int:
        return len(self.inner)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """The inner dataset's row, without vectors: :meth:`complete` adds those more cheaply, for many rows."""
        return self.inner.example(row, rng)

    def complete(self, examples: Sequence[Example]) -> list[Example]:
        """Add the teacher's vectors of queries and passages to the rows; each distinct text is looked up once.

        The teacher uses its own prompts; the prompts of the rows are for the student.
        """
        if provides(self.inner, CompletesExamples):
            examples = self.inner.complete(examples)
        if not examples:
            return []
        asked: list[tuple[Item, Role]] = [(one.query, "query") for one in examples]
        asked += [(item, "passage") for one in examples for item in one.passages]
        vectors_NW = self.sources.vectors(asked)
        completed, at = [], len(examples)
        for row, one in enumerate(examples):
            until = at + len(one.passages)
            completed.append(replace(one, query_vector=vectors_NW[row], passage_vectors=vectors_NW[at:until]))
            at = until
        return completed

    def identities(self, row: int) -> Iterable[bytes]:
        """The inner dataset's."""
        return self.inner.identities(row)

    def source(self, row: int) -> str:
        """The inner dataset's."""
        return self.inner.source(row)

    def texts(self) -> Iterator[str]:
        """The inner dataset's."""
        return self.inner.texts()

    def held_out(self) -> RetrievalSet | None:
        """The inner dataset's."""
        return self.inner.held_out()

    def fingerprint(self) -> str:
        """Hex digest of the inner dataset, the teachers, and the storage format of their vectors."""
        return blake2b(f"{self.inner.fingerprint()}|{self.sources.fingerprint()}".encode(), digest_size=16).hexdigest()


def with_teacher(
    inner: Dataset, sources: Sources, compute: Literal["ahead", "lazy"], context: BuildContext
) -> WithTeacher:
    """Wrap ``inner``; with ``compute="ahead"`` the store is filled first. Every rank has to call this."""
    for source in sources.each:
        if compute == "ahead":
            fill(inner, source, context)
        elif is_complete(inner, source):
            context.announce(f"teacher: all vectors are in the store, 0 to compute: {source.config.label}")
        else:
            # Load now, in the main thread: loading draws from torch's generator; batches come from another thread.
            source.load(together=True)
            context.announce(f"teacher: vectors are computed as they are needed, and kept in {source.folder}")
    return WithTeacher(inner, sources)
