"""The interface of a row source: whatever the format, a dataset reads its rows by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embed_core.datasets.row import Row


class RowSource(ABC):
    """The rows of one file, folder or Python sequence, by number. Rows of one source share a name."""

    name: str
    format: str
    """How its format is called, for the user."""
    in_batch_negatives: bool = True
    """Whether its rows compete with the passages of other rows. False: only a row's own hard negatives are its
    negatives, and its passages are no other row's."""

    left_out: Mapping[str, int] = {}
    """Why rows of the file are not among these rows, and how many."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row:
        """Row ``index``, validated. Raises DataError."""

    @abstractmethod
    def digest(self) -> str:
        """Hex digest of the content."""

    def rows(self) -> Iterator[Row]:
        """All rows in order; sources that can read many rows at once override it. Raises DataError."""
        return (self.row(index) for index in range(len(self)))

    def table_key(self) -> str | None:
        """Differs wherever any row would: a digest of the content and of how rows are made of it. The table of hashes
        is kept under this key for the next run. None: it is not kept."""
        return None

    def notes(self) -> Sequence[str]:
        """What the user should know of the source besides its format, a line each: how many rows were left out."""
        return ()
