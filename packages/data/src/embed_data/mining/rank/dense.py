"""Retrieval with a registered model: exact, tile by tile over the shards, or through a faiss index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from embed_core.embeddings import select, slice_rows
from embed_core.errors import ConfigError
from embed_core.evaluation.retrieval import score_tile
from embed_core.evaluation.topk import TopK, unpack
from embed_core.utils.messages import one_line
from embed_data.mining.corpus.shards import SHARD, Shards
from embed_data.mining.rank.judges import Ranked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from embed_core.distributed.process_group import Ranks
    from embed_core.types import Embeddings
    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.corpus.rows import Rows
    from embed_data.mining.output.progress import Progress
    from embed_data.mining.rank.model import TextEncoder

INDEX = "faiss.index"


class Dense:
    """A :class:`~embed_data.mining.rank.judges.Retriever` by a model's embeddings of all kinds that its score uses."""

    def __init__(self, rows: Rows, collection: Collection, encoder: TextEncoder, shards: Shards) -> None:
        self._rows, self._minable, self._encoder, self._shards = rows, collection.minable, encoder, shards
        self._last: tuple[tuple[int, ...], Embeddings] | None = None

    def search(self, rows: Sequence[int], depth: int) -> list[Ranked]:
        """Exact search: every document is scored against every query."""
        queries = self._queries(rows)
        top = TopK(len(rows), depth, _device(queries))
        for number in range(-(-self._minable // SHARD)):
            start = number * SHARD
            documents = slice_rows(self._shards.load(number), 0, self._minable - start)
            positions_N = torch.arange(start, start + documents.count, device=_device(documents))
            top.add(0, self._tile(queries, documents), positions_N)
        return [Ranked(unpack(keys_K), _scores(keys_K)) for keys_K in top.keys_QK.cpu()]

    def pairs(self, rows: Sequence[int], documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """The scores of :meth:`search`, up to rounding, since the matrix product has another shape."""
        queries = self._queries(rows)
        distinct = sorted({n for wanted in documents for n in wanted})
        if not distinct:
            return [[] for _ in rows]
        place, taken = {n: at for at, n in enumerate(distinct)}, self._shards.take(distinct)
        found: list[list[float]] = []
        for at, wanted in enumerate(documents):
            own = select(taken, torch.tensor([place[n] for n in wanted], dtype=torch.int64))
            found.append(self._tile(slice_rows(queries, at, at + 1), own)[0].tolist() if wanted else [])
        return found

    def _queries(self, rows: Sequence[int]) -> Embeddings:
        """Embeddings of the rows' queries. The last call's are kept, because search and pairs follow each other."""
        if self._last is None or self._last[0] != tuple(rows):
            read = [self._rows[row].row for row in rows]
            embeddings = self._encoder.encode([row.query for row in read], "query", [row.prompt for row in read])
            self._last = tuple(rows), embeddings
        return self._last[1]

    def _tile(self, queries: Embeddings, documents: Embeddings) -> Tensor:
        """Scores [Q, N] in fp32."""
        return score_tile(queries, documents, {"way": self._encoder.weights})["way"]


class Faiss(Dense):
    """Searches an index from :func:`build_faiss` instead of all documents; the scores are exact all the same."""

    def __init__(self, rows: Rows, collection: Collection, encoder: TextEncoder, shards: Shards, folder: Path) -> None:
        super().__init__(rows, collection, encoder, shards)
        self._index = _faiss().read_index(str(folder / INDEX))

    def search(self, rows: Sequence[int], depth: int) -> list[Ranked]:
        """The documents that the index finds, at most ``depth`` per row, ordered by the exact scores."""
        queries_QD = self._queries(rows).dense_ND
        assert queries_QD is not None
        _, found_QK = self._index.search(queries_QD.cpu().numpy(), min(depth, self._minable))
        documents = [sorted({n for n in row.tolist() if n >= 0}) for row in found_QK]
        ranked = []
        for found, scores in zip(documents, self.pairs(rows, documents), strict=True):
            order = sorted(range(len(found)), key=lambda n: (-scores[n], found[n]))
            ranked.append(Ranked([found[n] for n in order], [scores[n] for n in order]))
        return ranked


def build_faiss(
    factory: str, shards: Shards, encoder: TextEncoder, minable: int, folder: Path, ranks: Ranks, progress: Progress
) -> None:
    """Rank 0 writes the inner-product index that ``factory`` describes; an existing one is kept.

    Raises ConfigError without faiss, for a factory string it does not know, and for a model that is more than dense.
    """
    faiss = _faiss()
    if {kind for kind, weight in encoder.weights.items() if weight} != {"dense"}:
        raise ConfigError(f"--faiss searches dense vectors, and --way {encoder.way!r} scores by more: leave one out")
    if ranks.rank == 0 and not (folder / INDEX).exists():
        temporary = folder / f".{INDEX}.tmp"
        faiss.write_index(_filled(faiss, factory, shards, minable, progress), str(temporary))
        temporary.replace(folder / INDEX)
    ranks.barrier()


def _filled(faiss: Any, factory: str, shards: Shards, minable: int, progress: Progress) -> Any:
    count = -(-minable // SHARD)

    def vectors(number: int) -> Any:
        dense_ND = shards.load(number).dense_ND
        assert dense_ND is not None
        return dense_ND[: minable - number * SHARD].cpu().numpy()

    first = vectors(0)
    try:
        index = faiss.index_factory(first.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            import numpy as np

            # Trained on evenly spread shards, as many vectors as k-means looks at for most lists.
            step = max(1, count * SHARD // 262_144)
            index.train(np.concatenate([vectors(number) for number in range(0, count, step)]))
    except RuntimeError as error:
        reason = one_line(error)
        raise ConfigError(
            f"--faiss {factory!r}: faiss cannot build that over {minable} vectors of {first.shape[1]} "
            f"({reason[-120:]}): try Flat, or IVF with fewer lists"
        ) from None
    with progress.stage("indexing documents", minable) as advance:
        for number in range(count):
            part = vectors(number)
            index.add(part)
            advance(len(part))
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError("--faiss needs faiss, which is not installed: pip install 'embed-data[faiss]'") from None
    return faiss


def _device(e: Embeddings) -> torch.device:
    held = e.dense_ND if e.dense_ND is not None else (e.sparse or e.multi)[-1]  # type: ignore[index]
    return held.device


def _scores(keys_K: Tensor) -> list[float]:
    """The float32 scores in the keys of :func:`embed_core.evaluation.topk.pack`; empty places are left out."""
    ordered_K = (keys_K[keys_K != torch.iinfo(torch.int64).min] >> 32).to(torch.int32)
    found: list[float] = (ordered_K ^ ((ordered_K >> 31) & 0x7FFFFFFF)).view(torch.float32).tolist()
    return found
