"""Datasets that show whole rows, not only what was drawn of them; and one whose rows are another's, changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from embed_core.datasets.dedup import blocks_of
from embed_core.datasets.sampling import DrawOptions, draw_example
from embed_core.errors import ConfigError
from embed_core.protocols import CompletesExamples, Dataset, Loss, keeps_rows_apart, provides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from embed_core.datasets.dedup import Blocks
    from embed_core.datasets.row import Row
    from embed_core.types import Example, RetrievalSet


@runtime_checkable
class HasRows(Dataset, Protocol):
    """What a Dataset may have besides: its rows, with everything known of them."""

    def row(self, row: int) -> Row:
        """Training row ``row``: all its positives and negatives, in their stored order, with their scores."""
        ...


@runtime_checkable
class HasIdentityBlocks(Protocol):
    """A dataset that gives the identities of all rows faster than row by row; no part of the dataset's contract."""

    def identity_blocks(self) -> Blocks:
        """(how many each row has, the 64-bit identities row after row), in blocks, the same at every call."""
        ...


class HasRowsApart(Protocol):
    """A dataset some of whose sources may go without in-batch negatives."""

    def without_in_batch_negatives(self) -> list[str]:
        """The names of these sources."""
        ...


class PicksRows(Protocol):
    """A dataset that gives identities and texts of some of its rows faster than row by row."""

    def identity_blocks_of(self, rows: NDArray[np.integer]) -> Blocks:
        """Identities of ``rows`` (ascending, repetitions allowed), as :class:`HasIdentityBlocks` gives those of all."""
        ...

    def texts_of(self, rows: NDArray[np.integer]) -> Iterator[str]:
        """Texts of ``rows`` (ascending, each once), each text once."""
        ...


def identity_blocks(dataset: Dataset) -> Callable[[], Blocks]:
    """Identities of all rows, from the dataset's own blocks where it has them."""
    if provides(dataset, HasIdentityBlocks):
        return dataset.identity_blocks
    return blocks_of(dataset.identities(row) for row in range(len(dataset)))


def with_rows(dataset: Dataset, who: str) -> HasRows:
    """``dataset``, which has whole rows. Raises ConfigError, beginning with ``who``, where it has none."""
    shown: HasRows | None = _outermost(dataset, HasRows)
    if shown is None:
        raise ConfigError(
            f"{who}: dataset {dataset.name!r} draws examples but does not show its rows ({type(dataset).__name__} has "
            "no `row`): use rows of a file (kind file or retrieval)"
        )
    return shown


def without_in_batch_negatives(dataset: Dataset) -> list[str]:
    """The sources of ``dataset``, or of the one inside it, whose rows do not compete with other rows' passages."""
    shown: HasRowsApart | None = _outermost(dataset, HasRowsApart)
    return [] if shown is None else shown.without_in_batch_negatives()


def _outermost(dataset: Any, protocol: Any) -> Any:
    """``dataset``, or the first one inside it that provides ``protocol``: a dataset that only adds to examples (a
    teacher's vectors) has the rows of the one inside. ``None`` where there is none."""
    while dataset is not None and not provides(dataset, protocol):
        dataset = getattr(dataset, "inner", None)
    return dataset


def check_loss(loss: Loss, dataset: Dataset) -> None:
    """Raises ConfigError where the rows of some sources go without in-batch negatives and ``loss`` cannot do that."""
    apart = without_in_batch_negatives(dataset)
    if apart and not keeps_rows_apart(loss):
        raise ConfigError(
            f"data: {apart[0]!r} is to be trained without in-batch negatives, which {type(loss).__name__} cannot do "
            "for some rows of a batch: use the loss kind `bge-unified`, or set data.no_in_batch_negatives to []"
        )


class ChangedRows(ABC):
    """``inner`` with other negatives; see :class:`embed_core.protocols.Dataset`.

    Queries, positives, prompts, sources and the evaluation split stay ``inner``'s. ``negatives`` are drawn per row, as
    :func:`embed_core.datasets.sampling.draw_example` draws them.
    """

    def __init__(self, inner: HasRows, negatives: int) -> None:
        self.inner, self.negatives = inner, negatives
        self.name = inner.name

    @abstractmethod
    def row(self, row: int) -> Row:
        """Row ``row`` as it is here."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the content, ``inner``'s included."""

    def __len__(self) -> int:
        return len(self.inner)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """Row ``row``, drawn. What ``inner`` says of any row's prompts and source holds here too."""
        drawn = draw_example(self.row(row), row, "", DrawOptions(self.negatives), rng)
        told = self.inner.example(row, rng)
        return replace(
            drawn,
            query_prompt=told.query_prompt,
            passage_prompt=told.passage_prompt,
            source=told.source,
            in_batch_negatives=told.in_batch_negatives,
        )

    def complete(self, examples: Sequence[Example]) -> list[Example]:
        """As ``inner`` completes them (:class:`embed_core.protocols.CompletesExamples`)."""
        return self.inner.complete(examples) if provides(self.inner, CompletesExamples) else list(examples)

    def identities(self, row: int) -> Iterable[bytes]:
        """``inner``'s."""
        return self.inner.identities(row)

    def identity_blocks(self) -> Blocks:
        """The identities of all rows, in blocks, as fast as ``inner`` gives them."""
        return iter(identity_blocks(self.inner)())

    def source(self, row: int) -> str:
        """``inner``'s."""
        return self.inner.source(row)

    def texts(self) -> Iterator[str]:
        """Every text of the rows as they are here, each once."""
        rows = (self.row(number) for number in range(len(self)))
        yield from dict.fromkeys(text for row in rows for text in (row.query, *row.pos, *row.neg))

    def held_out(self) -> RetrievalSet | None:
        """``inner``'s."""
        return self.inner.held_out()
