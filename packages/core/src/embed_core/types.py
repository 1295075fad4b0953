"""The values that pass between dataset, model, loss and evaluator.

Shape suffixes, used in every tensor name of this code base:
    B  queries (rows) of the global batch          P  passages of the global batch, all groups one after another
    N  texts of any one set                        D  width of the dense vector
    T  tokens of a set of texts, one after another C  width of a multi-vector (ColBERT) token vector
    K  flat length of some ragged list             N1, B1  N+1 or B+1 offsets into a flat list
    W  width of a teacher's vector
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "Batch",
    "Embeddings",
    "Encoded",
    "Example",
    "Item",
    "LossOutput",
    "MultiVectors",
    "RetrievalSet",
    "Role",
    "ScoreWeights",
    "SparseVectors",
    "Targets",
    "TeacherVectors",
    "Texts",
]

Role = Literal["query", "passage"]
Item = Any
"""One side of a pair as a dataset yields it: a text for text models; a plugin may define others (an image).

An item that is no text has ``identity`` bytes, equal where items are the same (batches encode it once, losses know it
again), and ``describe()``, one line for displays."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, drawn: a query and its group of passages, the positive first."""

    row: int
    """Row id in the dataset."""
    query: Item
    passages: tuple[Item, ...]
    """The positive, then the hard negatives (none is legal)."""
    scores: tuple[float, ...] | None = None
    """Teacher scores, one per passage, on the teacher's own scale."""
    passage_keys: tuple[str | None, ...] | None = None
    """External document ids, one per passage, for false-negative masking by id."""
    positives: tuple[Item, ...] = ()
    """Every known positive of the row, drawn or not: none of them may serve as its negative."""
    positive_keys: tuple[str, ...] = ()
    """External ids of every known positive of the row."""
    query_prompt: str | None = None
    passage_prompt: str | None = None
    """Prompts of this row; ``None`` means the model's own for that role, ``""`` none."""
    source: str = ""
    """Name of the dataset the row came from."""
    place: str = ""
    """``file:line``, for messages."""
    in_batch_negatives: bool = True
    """Whether the row competes with the passages of other rows. False: only its own hard negatives are its negatives,
    and its passages are no other row's."""
    query_vector: NDArray[np.float32] | None = None
    """The teacher's vector of the query, [W] (W is the teacher's width); rows of one batch have it all or none."""
    passage_vectors: NDArray[np.float32] | None = None
    """The teacher's vectors of the passages, [len(passages), W]; set where ``query_vector`` is."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text after tokenisation, unpadded."""

    key: bytes
    """Equal keys mean the model would give equal embeddings: the step encodes each key once."""
    length: int
    """Cost in tokens; chunks are cut by it."""
    data: Mapping[str, Any]
    """The input of ``Model.collate``, for text ``{"input_ids": [...]}``."""


class SparseVectors(NamedTuple):
    """Lexical weights of N texts: text n has ``ids_K[offsets_N1[n]:offsets_N1[n+1]]``, each id at most once."""

    weights_K: Tensor
    ids_K: Tensor
    offsets_N1: Tensor


class MultiVectors(NamedTuple):
    """Token vectors of N texts, unpadded: text n has rows ``offsets_N1[n]:offsets_N1[n+1]`` of ``vectors_TC``."""

    vectors_TC: Tensor
    offsets_N1: Tensor


class Embeddings(NamedTuple):
    """A model's embeddings of N texts: any of a dense vector, lexical weights and token vectors.

    A NamedTuple of tensors, so that DeepSpeed's ZeRO-3 hooks can see through it. Beware that ``len()`` of a
    NamedTuple counts its fields: use :attr:`count`.
    """

    dense_ND: Tensor | None = None
    sparse: SparseVectors | None = None
    multi: MultiVectors | None = None

    @property
    def count(self) -> int:  # type: ignore[override] # tuple.count is of no use here
        """N, the number of texts."""
        if self.dense_ND is not None:
            return int(self.dense_ND.shape[0])
        ragged = self.sparse or self.multi
        assert ragged is not None, "embeddings of nothing"
        return int(ragged.offsets_N1.shape[0]) - 1


class Batch(NamedTuple):
    """The embeddings of one global batch, by column: what a loss sees."""

    query: Embeddings
    """B texts."""
    passage: Embeddings
    """P texts, group after group, the positive first in each."""


class TeacherVectors(NamedTuple):
    """A teacher's vectors of a global batch: fp32 constants of the teacher's own width W."""

    query_BW: Tensor
    passage_PW: Tensor


class Targets(NamedTuple):
    """What a loss knows about a global batch besides its embeddings. All tensors are on the embeddings' device."""

    groups_B1: Tensor
    """int64 offsets: the passages of row b are ``groups_B1[b]:groups_B1[b+1]``, its positive is the first."""
    row_ids_B: Tensor
    """int64 row ids in the dataset."""
    query_ids_B: Tensor
    """int64 hash of each query's text: equal ids are equal texts."""
    passage_ids_P: Tensor
    """int64 hash of each passage's text."""
    passage_keys_P: Tensor
    """int64 hash of each passage's external id; 0 where it has none."""
    positives_K: Tensor
    """int64 hashes of the texts and of the external ids of all known positives, row after row."""
    positive_offsets_B1: Tensor
    """int64 offsets of the rows into ``positives_K``."""
    scores_P: Tensor | None
    """float32 teacher scores, NaN where a row has none; ``None`` where no row has any."""
    step: int
    """Optimizer steps done before this one; survives a resume."""
    teacher: TeacherVectors | None = None
    """The teacher's vectors of the batch's texts, where the dataset has them."""
    in_batch_B: Tensor | None = None
    """bool: which rows compete with the passages of other rows; ``None`` where all do. The passages of the others are
    no row's negatives but their own. Only losses that declare ``in_batch_by_row`` are given any of these."""
    own_rows: tuple[int, int] | None = None
    """(start, stop) of the rows this rank computes; set for a loss that declares ``shares_rows``, else ``None``."""

    @property
    def positive_columns_B(self) -> Tensor:
        """Index of each row's positive among the P passages."""
        return self.groups_B1[:-1]


class LossOutput(NamedTuple):
    """A loss and its terms."""

    loss: Tensor
    """Scalar: the mean over the B rows of the global batch, the same on every rank; where ``Targets.own_rows`` is set,
    these rows' part of it: their sum / B, and the metrics are parts of sums likewise."""
    metrics: Mapping[str, Tensor]
    """Detached scalars by term name (``dense``, ``sparse``, …), for the display and the trackers."""


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries, a corpus and judgements, all by id: what BEIR calls a dataset."""

    name: str
    queries: Mapping[str, Item]
    corpus: Mapping[str, Item]
    qrels: Mapping[str, Mapping[str, int]]
    """query id → document id → relevance (> 0 is relevant)."""


ScoreWeights = Mapping[Literal["dense", "sparse", "multi"], float]
"""Weights with which the kinds of score add up to one score: ``{"dense": 1.0, "sparse": 0.3, "multi": 1.0}``."""

Texts = Sequence[Item]
