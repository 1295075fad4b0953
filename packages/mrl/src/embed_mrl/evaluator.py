"""Evaluates exact retrieval at every dimension and precision, from one encoding of queries and documents.

As in :class:`embed_core.evaluation.retrieval.RetrievalEvaluator`, whose data, tiles and measures these are, the
documents are dealt out to the ranks and every rank encodes all queries. Here a rank keeps its documents' vectors, since
int8 is calibrated on all of them before any is scored.

Shape suffixes: Q queries, N documents of this rank, K documents kept per query, D values of a vector, d of a cut one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from embed_core.embeddings import missing_kind
from embed_core.evaluation.retrieval import QUERY_BLOCK, RetrievalEvaluator
from embed_core.evaluation.topk import TopK, pack, unpack
from embed_mrl import quantise
from embed_mrl.dims import resolved
from embed_mrl.quantise import Ranges

if TYPE_CHECKING:
    from embed_core.protocols import Announce, Encoder
    from embed_core.types import Embeddings, RetrievalSet
    from embed_mrl.config import DimensionsEvaluatorConfig

DOCUMENT_BLOCK = 4096
"""Documents scored at a time: with :data:`~embed_core.evaluation.retrieval.QUERY_BLOCK` it bounds the score matrix."""
RESCORED_ELEMENTS = 1 << 22
"""Values of candidates that are rescored together."""


class Vectors(NamedTuple):
    """The vectors that are searched."""

    query_QD: Tensor
    document_ND: Tensor
    position_N: Tensor
    """int64 position of each document in the corpus."""

    def cut(self, dim: int) -> Vectors:
        """The first ``dim`` values, at unit length."""
        query_Qd, document_Nd = (functional.normalize(v[:, :dim], dim=-1) for v in self[:2])
        return Vectors(query_Qd, document_Nd, self.position_N)


class DimensionsEvaluator(RetrievalEvaluator):
    """``dense@{dimension}/{precision}/{measure}``: the quality that is left when vectors are cut and rounded."""

    def __init__(self, config: DimensionsEvaluatorConfig, data: RetrievalSet, announce: Announce) -> None:
        super().__init__(config, data, announce)
        self._dims, self._precisions = config.dims, config.precisions
        self._candidates = config.rescore_multiplier * self.depth

    def evaluate(self, encoder: Encoder) -> Mapping[str, float]:
        """The metrics, the same on every rank. Raises ConfigError for a model without, or with too few, dimensions."""
        vectors = self._encode(encoder)
        tops: dict[str, Tensor] = {}
        for dim in resolved(self._dims, vectors.query_QD.shape[1], f"evaluation {self.name!r}: dims"):
            cut = vectors.cut(dim)
            for precision in self._precisions:
                tops[f"dense@{dim}/{precision}"] = self._top(cut, precision, encoder).cpu()
        everyone = encoder.gather(tops)
        # One rank computes the metrics and all use them, as in the core's evaluator.
        metrics: Mapping[str, float] = encoder.gather(self._metrics(everyone) if encoder.rank == 0 else None)[0]
        return metrics

    def _encode(self, encoder: Encoder) -> Vectors:
        query_QD = _dense(encoder.encode(list(self.data.queries.values()), "query"))
        documents, positions = [query_QD[:0]], list[int]()
        for tile, real in self._tiles(encoder.rank, encoder.world_size):
            encoded = _dense(encoder.encode([self.data.corpus[self._ids[p]] for p in tile], "passage"))
            if real:
                documents.append(encoded)
                positions += tile
        position_N = torch.tensor(positions, dtype=torch.int64, device=query_QD.device)
        return Vectors(query_QD, torch.cat(documents), position_N)

    def _top(self, vectors: Vectors, precision: str, encoder: Encoder) -> Tensor:
        """Keys ``[Q, K]`` of the best among this rank's documents."""
        if precision == "binary":
            return self._top_binary(vectors, encoder)
        document_Nd = vectors.document_ND
        if precision == "int8":
            document_Nd = quantise.int8_values(document_Nd, _ranges(vectors, encoder))
        top = TopK(vectors.query_QD.shape[0], self.depth, document_Nd.device)
        for start, query_qd, rows in _blocks(vectors):
            top.add(start, query_qd @ document_Nd[rows].T, vectors.position_N[rows])
        return top.keys_QK

    def _top_binary(self, vectors: Vectors, encoder: Encoder) -> Tensor:
        """The nearest by Hamming distance among the documents of all ranks, ordered by the fp32 query."""
        query_Qd, document_Nd = quantise.bits(vectors.query_QD), quantise.bits(vectors.document_ND)
        near = TopK(query_Qd.shape[0], self._candidates, query_Qd.device)
        for start, query_qd, rows in _blocks(vectors._replace(query_QD=query_Qd)):
            near.add(start, -quantise.hamming(query_qd, document_Nd[rows]), vectors.position_N[rows])
        everyone = encoder.gather(near.keys_QK.cpu())
        merged = TopK(query_Qd.shape[0], self._candidates)
        merged.merge(everyone)
        row_QC = self._own_rows(merged.keys_QK, vectors.position_N)
        return self._rescored(vectors, document_Nd, row_QC)

    def _own_rows(self, keys_QC: Tensor, position_N: Tensor) -> Tensor:
        """``[Q, C]`` rows of the candidates among this rank's documents, −1 for those of other ranks."""
        row_of = torch.full((len(self._ids) + 1,), -1, dtype=torch.int64)
        row_of[position_N.cpu()] = torch.arange(position_N.shape[0])
        # Queries with fewer candidates are filled up with a position that no document has.
        width = keys_QC.shape[1]
        places = [(unpack(keys_C) + [len(self._ids)] * width)[:width] for keys_C in keys_QC]
        return row_of[torch.tensor(places, dtype=torch.int64)].to(position_N.device)

    def _rescored(self, vectors: Vectors, document_Nd: Tensor, row_QC: Tensor) -> Tensor:
        """Keys ``[Q, K]`` of the candidates by the product of the fp32 query with the document's bits."""
        top = TopK(row_QC.shape[0], self.depth, row_QC.device)
        if not document_Nd.shape[0]:
            return top.keys_QK
        keys = []
        size = max(1, RESCORED_ELEMENTS // (row_QC.shape[1] * document_Nd.shape[1]))
        for row_qC, query_qd in zip(row_QC.split(size), vectors.query_QD.split(size), strict=True):
            found_qC = row_qC.clamp(min=0)
            score_qC = (document_Nd[found_qC] @ query_qd.unsqueeze(-1)).squeeze(-1)
            keys.append(pack(score_qC.masked_fill(row_qC < 0, -torch.inf), vectors.position_N[found_qC]))
        top.merge([torch.cat(keys)])
        return top.keys_QK


def _blocks(vectors: Vectors) -> Iterator[tuple[int, Tensor, slice]]:
    """(first query, queries, rows of documents), so that a score matrix is of bounded size."""
    for start in range(0, vectors.query_QD.shape[0], QUERY_BLOCK):
        for first in range(0, vectors.document_ND.shape[0], DOCUMENT_BLOCK):
            yield start, vectors.query_QD[start : start + QUERY_BLOCK], slice(first, first + DOCUMENT_BLOCK)


def _ranges(vectors: Vectors, encoder: Encoder) -> Ranges:
    """The ranges of values over the documents of all ranks, at least one of which has some."""
    document_Nd = vectors.document_ND
    own = (document_Nd.amin(0).cpu(), document_Nd.amax(0).cpu()) if document_Nd.shape[0] else None
    found: Sequence[tuple[Tensor, Tensor]] = [pair for pair in encoder.gather(own) if pair is not None]
    low_d, high_d = torch.stack([low for low, _ in found]), torch.stack([high for _, high in found])
    return Ranges(low_d.amin(0).to(document_Nd.device), high_d.amax(0).to(document_Nd.device))


def _dense(embeddings: Embeddings) -> Tensor:
    if embeddings.dense_ND is None:
        raise missing_kind(embeddings, "dense")
    return embeddings.dense_ND
