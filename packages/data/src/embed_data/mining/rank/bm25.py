"""BM25 (Robertson & Zaragoza 2009) with bm25s (Lù 2024, arXiv 2407.03618), over terms of any script."""

from __future__ import annotations

import shutil
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.errors import ConfigError
from embed_data.mining.rank.judges import Ranked
from embed_data.mining.rank.tokens import terms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.corpus.rows import Rows
    from embed_data.mining.output.progress import Progress

FOLDER = "bm25"


def build_index(collection: Collection, folder: Path, progress: Progress) -> None:
    """Write the index of ``collection`` to ``folder/bm25`` atomically; an existing one is kept.

    Raises ConfigError without bm25s, and where no text has any term.
    """
    target = folder / FOLDER
    if target.exists():
        return
    model = library().BM25(k1=1.2, b=0.75)
    vocabulary: dict[str, int] = {}
    ids: list[array[int]] = []
    with progress.stage("indexing documents", len(collection)) as advance:
        for text in collection.texts():
            ids.append(array("i", (vocabulary.setdefault(term, len(vocabulary)) for term in terms(text))))
            advance(1)
    if not vocabulary:
        raise ConfigError("--by bm25: no document holds a letter or a number: there is nothing to search by")
    model.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    temporary = folder / f".{FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save(temporary, show_progress=False)
    temporary.rename(target)


class Bm25:
    """A :class:`~embed_data.mining.rank.judges.Retriever` over an index that :func:`build_index` wrote."""

    def __init__(self, rows: Rows, collection: Collection, folder: Path) -> None:
        self._rows, self._minable = rows, collection.minable
        self._model = library().BM25.load(folder / FOLDER, mmap=True, load_vocab=True)

    def search(self, rows: Sequence[int], depth: int) -> list[Ranked]:
        """The best documents, without those that share no term with the query: their order would be the corpus's."""
        return [_best(self._scores(row)[: self._minable], depth) for row in rows]

    def pairs(self, rows: Sequence[int], documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """BM25 scores."""
        return [self._scores(row)[list(wanted)].tolist() for row, wanted in zip(rows, documents, strict=True)]

    def _scores(self, row: int) -> Any:
        """Scores of all documents, float32 [documents]."""
        return self._model.get_scores_from_ids(self._model.get_tokens_ids(terms(self._rows[row].row.query)))


def _best(scores_N: Any, depth: int) -> Ranked:
    """The best by score, then by number: sorts what a partition leaves, ties at the border included."""
    if depth < len(scores_N):
        border = np.partition(scores_N, len(scores_N) - depth)[len(scores_N) - depth]
        kept = np.flatnonzero(scores_N >= border)
    else:
        kept = np.arange(len(scores_N))
    kept = kept[scores_N[kept] > 0]
    order = kept[np.lexsort((kept, -scores_N[kept]))][:depth]
    return Ranked(order.tolist(), scores_N[order].tolist())


def library() -> Any:
    """The module bm25s. Raises ConfigError where it is not installed."""
    try:
        import bm25s
    except ImportError:
        raise ConfigError("--by bm25 needs bm25s, which is not installed: pip install 'embed-data[mine]'") from None
    return bm25s
