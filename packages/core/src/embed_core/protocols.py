"""The six component interfaces. Structural: a plugin's classes need not inherit from anything here.

A component is built from its config (see :mod:`embed_core.config.component`); ``Model`` and ``Loss`` are also
``torch.nn.Module``. Every stateful component has ``state_dict`` / ``load_state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar, runtime_checkable

from embed_core.types import (
    Batch,
    Embeddings,
    Encoded,
    Example,
    Item,
    LossOutput,
    RetrievalSet,
    Role,
    ScoreWeights,
    Targets,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from embed_core.export.model_card import RunCard

__all__ = [
    "Announce",
    "CachesTokens",
    "Checkpointer",
    "CompletesExamples",
    "Dataset",
    "Encoder",
    "Evaluator",
    "ExportsOtherwise",
    "KeepsRowsApart",
    "Loss",
    "Model",
    "PacksChunks",
    "PadsToMultiple",
    "Sampler",
    "SamplesTexts",
    "SharesRows",
    "TakesOtherDense",
    "keeps_rows_apart",
    "provides",
    "shares_rows",
]


@runtime_checkable
class Model(Protocol):
    """An encoder. Also an ``nn.Module`` whose ``forward(**collated)`` returns :class:`Embeddings`.

    ``forward`` must not depend on which texts share a chunk: padding has to be masked, so that chunked and
    unchunked runs agree. All parameters must sit in sub-modules that are *called* (ZeRO-3 fetches them then).
    """

    scores: Mapping[str, ScoreWeights]
    """The ways this model ranks, by name, the best first: what the evaluation reports."""

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """Unpadded token lists, truncated to the role's maximum length. Called from a background thread."""
        ...

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """One chunk as padded CPU tensors, the keyword arguments of ``forward``."""
        ...

    def __call__(self, **inputs: Tensor) -> Embeddings: ...


class PadsToMultiple(Protocol):
    """An option of a Model of texts: ``collate`` pads the length of a chunk to a multiple of this number."""

    pad_to_multiple_of: int
    """The engine sets what the hardware likes: 8 for tensor cores, 32 for bf16 on CPUs."""


class PacksChunks(Protocol):
    """An option of a Model of texts: chunks without padding, for variable-length (varlen) attention."""

    packed: bool
    """The engine sets it. ``collate`` then puts texts one after another, as :mod:`embed_core.text.varlen` says, and
    ``forward`` takes that."""


class CachesTokens(Protocol):
    """An option of a Model of texts: the engine may keep its token lists on disk."""

    def tokenizer_fingerprint(self) -> str:
        """Hex digest of all that ``tokenize`` depends on besides its arguments."""
        ...


@runtime_checkable
class Loss(Protocol):
    """Maps a global batch's embeddings to a scalar. Never sees the model, never gathers.

    Embeddings come in fp32 (or wider) whatever the training precision. A loss may hold parameters; they are trained.

    Every rank computes the whole loss, unless it :class:`SharesRows`.
    """

    def __call__(self, batch: Batch, targets: Targets) -> LossOutput: ...


class SharesRows(Protocol):
    """An option of a Loss: the ranks divide the rows of the global batch among themselves."""

    shares_rows: bool
    """Where it is true, ``Targets.own_rows`` says which rows are this rank's, and the loss returns their part of the
    mean and of each metric (their sum / B). The engine adds the parts up, gradients included. A loss around another one
    shares rows if the inner one does."""


class KeepsRowsApart(Protocol):
    """An option of a Loss: some rows of a batch have no in-batch negatives. A run whose data has such rows stops before
    it starts under any other loss."""

    in_batch_by_row: bool
    """Where it is true, the loss honours ``Targets.in_batch_B``."""


class TakesOtherDense(Protocol):
    """An option of a Loss that also reads lexical weights or token vectors. A loss around it that changes
    the dense vectors alone (their dimensions) then does not repeat the rest."""

    def with_other_dense(
        self, batch: Batch, targets: Targets, others: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[LossOutput, list[Tensor]]:
        """The loss, and for each ``(query_BD, passage_PD)`` of ``others``, in place of the batch's dense vectors, the
        sum of those of its terms that dense vectors take part in, weighted as in the loss."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Draws global batches: a pure function of (seed, draw), so that resume is O(1) and independent of the ranks."""

    def batch(self, draw: int) -> Sequence[int]:
        """Row ids of the ``draw``-th global batch, counted from 0 over all epochs."""
        ...

    @property
    def draws_per_epoch(self) -> int:
        """Batches in one pass over the data, at least 1."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """Rows of training data, random access, plus what the samplers and the evaluation ask of it."""

    name: str

    def __len__(self) -> int: ...

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """Row ``row`` with its positive and negatives drawn by ``rng`` alone: the same rng, the same example."""
        ...

    def identities(self, row: int) -> Iterable[bytes]:
        """Everything two rows of one batch must not share (query text, positive texts): the no-duplicates sampler."""
        ...

    def source(self, row: int) -> str:
        """Name of the source a row belongs to: the by-source sampler."""
        ...

    def texts(self) -> Iterator[str]:
        """Every training text once: what a from-scratch tokenizer is trained on."""
        ...

    def held_out(self) -> RetrievalSet | None:
        """The dataset's own evaluation split, disjoint from its training rows, or ``None``."""
        ...

    def fingerprint(self) -> str:
        """Hex digest of the content: the key of caches and part of the resume check."""
        ...


class SamplesTexts(Protocol):
    """An option of a collection of texts, such as those of a Dataset: it draws a sample without reading all of them."""

    def sample(self, max_characters: int) -> tuple[list[str], str]:
        """The texts with the smallest hashes, up to ``max_characters`` in all, and a digest of all the texts."""
        ...


class CompletesExamples(Protocol):
    """An option of a Dataset: it adds to drawn rows what is cheaper for many rows than for one."""

    def complete(self, examples: Sequence[Example]) -> list[Example]:
        """This rank's rows of one batch, in their order, completed (a teacher's vectors). Called from a background
        thread, once per batch; a function of the examples alone."""
        ...


class Encoder(Protocol):
    """Given to an evaluator in place of the model: encodes on all ranks without gradient, knows the ways to score."""

    scores: Mapping[str, ScoreWeights]
    rank: int
    world_size: int

    def encode(self, items: Sequence[Item], role: Role) -> Embeddings:
        """Embeddings of ``items`` in their order, on this rank only: fp32, on the training device."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order (any picklable object)."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Measures a model. Runs on all ranks; returns the same metrics on every rank."""

    name: str

    def evaluate(self, encoder: Encoder) -> Mapping[str, float]:
        """Metrics as ``"{way of scoring}/{measure}"``, for instance ``"dense/nDCG@10": 0.41``."""
        ...


@runtime_checkable
class Checkpointer(Protocol):
    """Writes the finished model in the family's own layout, so that its own client loads it without our code."""

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """Write into ``directory`` (exists, empty; renamed into place by the caller). Called on rank 0 only.

        ``state`` holds the full fp32 CPU weights by the names of ``model.named_parameters()`` and buffers: under
        ZeRO-3 the parameters inside ``model`` are empty and must not be read.
        """
        ...


class ExportsOtherwise(Protocol):
    """An option of a Model whose weights are not exported as they are trained (LoRA adapters)."""

    def export_with(
        self, checkpointer: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard
    ) -> None:
        """Called in place of ``checkpointer.export(self, ...)``, with the same promises: give the checkpointer another
        model and its state, or write ``directory`` without it."""
        ...


Announce = Callable[[str], None]
"""Prints one line for the user, on rank 0 only."""


Optional = TypeVar("Optional")


def provides(component: object, protocol: type[Optional]) -> TypeGuard[Optional]:
    """Whether ``component`` has every public member that an optional ``protocol`` declares.

    ``isinstance`` would not do from Python 3.12 on: it overlooks the attributes that a wrapper delegates.
    """
    bases = [base for base in protocol.__mro__ if base.__module__ not in ("typing", "builtins")]
    declared = (vars(base).keys() | vars(base).get("__annotations__", {}).keys() for base in bases)
    return all(hasattr(component, name) for names in declared for name in names if not name.startswith("_"))


def shares_rows(loss: object) -> bool:
    """Whether ``loss`` computes only the rows of its own rank (see :class:`SharesRows`)."""
    return provides(loss, SharesRows) and loss.shares_rows


def keeps_rows_apart(loss: object) -> bool:
    """Whether ``loss`` can leave some rows of a batch without in-batch negatives (see :class:`KeepsRowsApart`)."""
    return provides(loss, KeepsRowsApart) and loss.in_batch_by_row
