"""Query → passage rows of one or several sources as a training dataset."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embed_core.config.context import cache_root
from embed_core.datasets.index.corpus_sample import TrainingTexts
from embed_core.datasets.index.rows import Catalogue
from embed_core.datasets.index.subset import Selection
from embed_core.datasets.sampling import DrawOptions, draw_example
from embed_core.datasets.split import retrieval_set
from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embed_core.datasets.index.hashes import Blocks
    from embed_core.datasets.row import Row
    from embed_core.datasets.sources.base import RowSource
    from embed_core.protocols import Announce
    from embed_core.types import Example, RetrievalSet


class RetrievalDataset:
    """Rows of ``sources``, validated at construction, parsed on access; see :class:`embed_core.protocols.Dataset`.

    ``held_out_rows`` of them are set aside for evaluation with every row that shares a query or a positive with them;
    ``limit`` keeps at most so many training rows, evenly spread over the sources. ``held_out`` is an evaluation set
    made elsewhere. ``lenient``: where every family of rows is too large to be held out, none is, without an error. What
    has to be known of all rows lies on disk where they are many, kept in ``cache`` (None is the
    cache of the user) for the next run, so that memory does not grow with them. Raises DataError for any row that is
    wrong, ConfigError where no training row would be left.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[RowSource],
        options: DrawOptions,
        announce: Announce,
        held_out_rows: int | None = 0,
        limit: int | None = None,
        held_out: RetrievalSet | None = None,
        cache: Path | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        self.name = name
        self.sources = sources
        self._options = options
        self._split = (held_out_rows, limit)
        self._catalogue = Catalogue(sources, cache if cache is not None else cache_root(), announce)
        left_out = self._choose(held_out_rows, lenient)
        self.held_out_count = len(left_out)
        """Rows held out."""
        self._rows = Selection(len(self._catalogue), left_out, limit)
        self._held_out = held_out if held_out is not None else self._retrieval_set(left_out)
        self._announce(announce)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """Row ``row``, drawn; see :func:`embed_core.datasets.sampling.draw_example`."""
        number = self._rows[row]
        source = self._catalogue.source(number)
        drawn_from = self._catalogue.row(number)
        return draw_example(
            drawn_from, row, source.name, self._options, rng, in_batch_negatives=source.in_batch_negatives
        )

    def row(self, row: int) -> Row:
        """Training row ``row`` with all that is known of it."""
        return self._catalogue.row(self._rows[row])

    def identities(self, row: int) -> Iterable[bytes]:
        """8-byte ids of the query, the positives and the positives' external ids."""
        raw = self._catalogue.identities(self._rows[row]).tobytes()
        return dict.fromkeys(raw[at : at + 8] for at in range(0, len(raw), 8))

    def identity_blocks(self) -> Blocks:
        """The identities of all rows in blocks: how many each has, and they row after row. Faster than row by row."""
        return self._catalogue.identity_blocks(self._rows.blocks)

    def identity_blocks_of(self, rows: NDArray[np.integer]) -> Blocks:
        """The identities of ``rows``, which ascend; a row may occur several times."""
        return self._catalogue.identity_blocks(lambda: self._rows.blocks_of(rows))

    def source(self, row: int) -> str:
        """Name of the row's source: of a file without its suffixes, of a folder, or of a dataset."""
        return self._catalogue.source(self._rows[row]).name

    def texts(self) -> TrainingTexts:
        """Queries, positives and negatives of the training rows, each text once; it can give a sample of them too."""
        return TrainingTexts(self._catalogue, self._rows.blocks)

    def texts_of(self, rows: NDArray[np.integer]) -> TrainingTexts:
        """The training texts of ``rows``, which ascend and occur once each."""
        return TrainingTexts(self._catalogue, lambda: self._rows.blocks_of(rows))

    def without_in_batch_negatives(self) -> list[str]:
        """The sources whose rows do not compete with other rows' passages."""
        return [source.name for source in self.sources if not source.in_batch_negatives]

    def held_out(self) -> RetrievalSet | None:
        """The evaluation split, or None where ``held_out_rows`` is 0."""
        return self._held_out

    def fingerprint(self) -> str:
        """Hex digest of the sources' bytes and of what selects the training rows."""
        kinds = ("" if source.in_batch_negatives else ":without in-batch negatives" for source in self.sources)
        names = (f"{source.name}:{source.digest()}" for source in self.sources)
        parts = [*map("".join, zip(names, kinds, strict=True)), repr(self._split)]
        return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def _choose(self, held_out_rows: int | None, lenient: bool) -> np.ndarray:
        """The rows held out. By default enough to measure by, and never a large part of the data."""
        total = len(self._catalogue)
        wanted = min(200, max(1, total // 10), total - 1) if held_out_rows is None else held_out_rows
        if not wanted:
            return np.empty(0, dtype=np.int64)
        if wanted >= total:
            raise ConfigError(f"held_out_rows={wanted}: {self.name} has {total} rows: set at most {total - 1}")
        chosen = self._catalogue.held_out(wanted)
        if not len(chosen) and held_out_rows is not None and not lenient:
            raise ConfigError(
                f"held_out_rows={wanted}: every group of rows of {self.name} that share a query or a positive is "
                "larger than that: raise it, or evaluate on a BEIR folder"
            )
        return chosen

    def _retrieval_set(self, rows: np.ndarray) -> RetrievalSet | None:
        if not len(rows):
            return None
        return retrieval_set(f"{self.name}-held-out", (self._catalogue.row(int(number)) for number in rows))

    def _announce(self, announce: Announce) -> None:
        formats = "; ".join(dict.fromkeys(source.format for source in self.sources))
        sources = f" from {len(self.sources)} sources" if len(self.sources) > 1 else ""
        held = ""
        if self._held_out is not None:
            held = f"; held out {len(self._held_out.queries)} queries, {len(self._held_out.corpus)} documents"
        announce(f"data: {self.name}, {formats}: {len(self)} training rows{sources}{held}")
        for source in self.sources:
            for note in source.notes():
                announce(f"data: {source.name}: {note}")
        apart = self.without_in_batch_negatives()
        if apart:
            announce(f"data: trained without in-batch negatives: {', '.join(apart)}")
        promptless = self._promptless()
        if promptless is not None:
            announce(
                f"{promptless} puts the query's prompt on the passages, but neither the row nor `query_prompt` "
                "gives one: passages keep the model's own passage prompt"
            )

    def _promptless(self) -> str | None:
        """The first row that would have a prompt on its passages, if it had a prompt."""
        number = self._catalogue.promptless()
        if number is None or self._options.query_prompt is not None:
            return None
        row = self._catalogue.row(number)
        return f"{row.place}: type {row.type}"
