"""The training loss on rows that are not trained on (evaluator kind ``validation-loss``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from embed_core.embeddings import offsets_of
from embed_core.errors import DataError
from embed_core.types import Batch, Embeddings, Example, MultiVectors, RetrievalSet, SparseVectors, Targets
from embed_core.utils.hashing import identity, key_identity

if TYPE_CHECKING:
    from embed_core.protocols import Announce, Dataset, Encoder, Loss
    from embed_core.types import Item, Role


class ValidationLoss:
    """Averages ``loss/{term}`` over batches of rows in a fixed order, for every term that the loss reports.

    Each rank encodes its part of a batch's distinct items; then all compute the loss of the whole batch from the
    gathered vectors. Raises DataError where there are no rows.
    """

    def __init__(
        self, name: str, rows: Sequence[Example], loss: Loss, batch_size: int, announce: Announce = print
    ) -> None:
        if not rows:
            raise DataError(f"evaluation {name!r}: no rows to compute a loss on")
        self.name = name
        self._loss = loss
        whole = len(rows) // batch_size * batch_size or len(rows)
        if whole < len(rows):
            announce(f"evaluation {name!r}: {len(rows) - whole} of {len(rows)} rows fill no batch and are left out")
        bounds = [*range(0, whole, batch_size), whole]
        self._batches = [rows[start:stop] for start, stop in pairwise(bounds)]

    def evaluate(self, encoder: Encoder) -> Mapping[str, float]:
        """Means over the rows, the same on every rank."""
        loss = trained_loss(encoder, self._loss)
        sums: dict[str, float] = {}
        for rows in self._batches:
            output = self._of(rows, encoder, loss)
            for name, value in {**output.metrics, "loss": output.loss}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(rows)
        total = sum(map(len, self._batches))
        # All ranks take rank 0's figures, so they are equal to the bit.
        means: Mapping[str, float] = encoder.gather({f"loss/{name}": value / total for name, value in sums.items()})[0]
        return means

    def _of(self, rows: Sequence[Example], encoder: Encoder, loss: Any) -> Any:
        queries = [row.query for row in rows]
        passages = [passage for row in rows for passage in row.passages]
        batch = Batch(encoded(queries, "query", encoder), encoded(passages, "passage", encoder))
        device = _device(batch.query)
        if isinstance(loss, nn.Module):
            loss.to(device)
        with torch.no_grad():
            return loss(batch, targets_of(rows, device))


def trained_loss(encoder: Encoder, otherwise: Loss) -> Any:
    """The loss that is being trained, or the part of it of ``otherwise``'s type, with its current parameters.

    Returns ``otherwise`` itself where the encoder is not the engine's, or trains another loss.
    """
    module = getattr(getattr(encoder, "engine", None), "module", None)
    trained = getattr(module, "loss", None)
    parts = trained.modules() if isinstance(trained, nn.Module) else ()
    return next((part for part in parts if type(part) is type(otherwise)), otherwise)


def encoded(items: Sequence[Item], role: Role, encoder: Encoder) -> Embeddings:
    """Embeddings of all ``items``, on every rank. Each encodes at least one item: the forwards may be collective."""
    bounds = [round(part * len(items) / encoder.world_size) for part in range(encoder.world_size + 1)]
    start, stop = bounds[encoder.rank], bounds[encoder.rank + 1]
    own = encoder.encode(items[start:stop] or items[:1], role)
    parts = encoder.gather((stop - start, _moved(own, "cpu")))
    kept = [part for count, part in parts if count]
    return _moved(_joined(kept), _device(own))


def targets_of(rows: Sequence[Example], device: str | torch.device = "cpu") -> Targets:
    """Everything a loss needs to know about ``rows`` besides their embeddings, as the engine builds it in training."""
    known = [
        sorted({*map(identity, (row.passages[0], *row.positives)), *map(key_identity, row.positive_keys)})
        for row in rows
    ]
    scores = [s for row in rows for s in row.scores or (float("nan"),) * len(row.passages)]
    keys = [key for row in rows for key in row.passage_keys or (None,) * len(row.passages)]
    scores_P = torch.tensor(scores, dtype=torch.float32, device=device)

    def ints(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Targets(
        groups_B1=offsets_of(ints([len(row.passages) for row in rows])),
        row_ids_B=ints([row.row for row in rows]),
        query_ids_B=ints([identity(row.query) for row in rows]),
        passage_ids_P=ints([identity(passage) for row in rows for passage in row.passages]),
        passage_keys_P=ints([key_identity(key) for key in keys]),
        positives_K=ints([value for values in known for value in values]),
        positive_offsets_B1=offsets_of(ints([len(values) for values in known])),
        scores_P=None if bool(scores_P.isnan().all()) else scores_P,
        step=0,
    )


def rows_of_dataset(dataset: Dataset, seed: int, limit: int | None) -> list[Example]:
    """Rows of ``dataset``, drawn with a fixed generator, so positives and negatives are always the same."""
    total = len(dataset)
    wanted = [n * total // min(limit or total, total) for n in range(min(limit or total, total))]
    return [dataset.example(row, np.random.default_rng((seed, row))) for row in wanted]


def held_out_rows(data: RetrievalSet, limit: int | None) -> list[Example]:
    """The queries of ``data`` that have an answer, each with its first, in an order that depends only on their ids."""
    order = sorted(data.queries, key=lambda key: blake2b(key.encode(), digest_size=8).digest())
    rows: list[Example] = []
    for key in order:
        relevant = [data.corpus[d] for d, relevance in data.qrels.get(key, {}).items() if relevance > 0]
        if relevant:
            rows.append(Example(len(rows), data.queries[key], (relevant[0],), positives=tuple(relevant)))
    return rows[:limit]


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Concatenate the texts of all parts."""
    first = parts[0]
    dense = None if first.dense_ND is None else torch.cat([p.dense_ND for p in parts if p.dense_ND is not None])
    sparse, multi = None, None
    if first.sparse is not None:
        found = [p.sparse for p in parts if p.sparse is not None]
        offsets = offsets_of(torch.cat([p.offsets_N1.diff() for p in found]))
        sparse = SparseVectors(torch.cat([p.weights_K for p in found]), torch.cat([p.ids_K for p in found]), offsets)
    if first.multi is not None:
        several = [p.multi for p in parts if p.multi is not None]
        offsets = offsets_of(torch.cat([p.offsets_N1.diff() for p in several]))
        multi = MultiVectors(torch.cat([p.vectors_TC for p in several]), offsets)
    return Embeddings(dense, sparse, multi)


def _moved(e: Embeddings, device: str | torch.device) -> Embeddings:
    sparse = e.sparse and SparseVectors(*(value.to(device) for value in e.sparse))
    multi = e.multi and MultiVectors(*(value.to(device) for value in e.multi))
    return Embeddings(None if e.dense_ND is None else e.dense_ND.to(device), sparse, multi)


def _device(e: Embeddings) -> torch.device:
    ragged = e.sparse or e.multi
    held = e.dense_ND if e.dense_ND is not None else ragged[0] if ragged else None
    assert held is not None, "embeddings of nothing"
    return held.device
