"""Gathers the indices and targets of a global batch from the ranks' shares, so that every rank has all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embed_core.batch.collate import HostBatch
from embed_core.distributed.collectives import gather_numbers, gather_rows
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import offsets_of
from embed_core.errors import DataError
from embed_core.types import Targets, TeacherVectors


class GlobalBatch:
    """Indices and targets of the global batch, gathered from the ranks' host batches.

    ``notes`` are further integers of this rank, as many on every rank, that travel with the counts.
    """

    def __init__(self, host: HostBatch, step: int, ranks: Ranks, notes: Sequence[int] = ()) -> None:
        columns = _gather_columns(host, ranks, notes)
        base = np.cumsum([0, *columns["texts"][:-1]])
        queries = [index + start for index, start in zip(columns["query_index"], base, strict=True)]
        passages = [index + start for index, start in zip(columns["passage_index"], base, strict=True)]
        tensor = {name: _tensor(parts, ranks) for name, parts in columns.items() if name not in _NOT_TENSORS}
        self.query_index_B = _tensor(queries, ranks)
        self.passage_index_P = _tensor(passages, ranks)
        scores_P = tensor["scores"].to(torch.int32).view(torch.float32)
        shares = [len(part) for part in columns["row_ids"]]
        passages_of = [len(part) for part in columns["passage_index"]]
        self.targets = Targets(
            groups_B1=offsets_of(tensor["group_sizes"]),
            row_ids_B=tensor["row_ids"],
            query_ids_B=tensor["query_ids"],
            passage_ids_P=tensor["passage_ids"],
            passage_keys_P=tensor["passage_keys"],
            positives_K=tensor["positives"],
            positive_offsets_B1=offsets_of(tensor["positive_counts"]),
            scores_P=None if bool(scores_P.isnan().all()) else scores_P,
            step=step,
            teacher=_teacher(host, columns["width"], shares, passages_of, ranks),
            in_batch_B=None if all(map(np.all, columns["in_batch"])) else tensor["in_batch"].bool(),
        )
        self.rows = sum(shares)
        self.own_rows = (sum(shares[: ranks.rank]), sum(shares[: ranks.rank + 1]))
        self.tokens = int(sum(columns["tokens"]))
        self.texts: list[int] = columns["texts"]
        """The number of distinct texts of each rank."""
        self.notes: list[list[int]] = columns["notes"]
        """The notes of each rank, in rank order."""


def _teacher(
    host: HostBatch, widths: Sequence[int], rows: Sequence[int], passages: Sequence[int], ranks: Ranks
) -> TeacherVectors | None:
    """The teacher's vectors of all ranks' texts. Raises DataError, on every rank, where they are not of one width."""
    if len(set(widths)) > 1:
        raise DataError(
            f"the ranks' rows have teacher vectors of widths {sorted(set(widths))} (0: none): every row of a batch "
            "needs those of the same teacher"
        )
    if host.teacher is None:
        return None
    own = torch.from_numpy(host.teacher).to(ranks.device)
    cut = host.rows
    return TeacherVectors(gather_rows(own[:cut], ranks, rows), gather_rows(own[cut:], ranks, passages))


_COLUMNS = (
    "query_index",
    "passage_index",
    "group_sizes",
    "row_ids",
    "query_ids",
    "passage_ids",
    "passage_keys",
    "positives",
    "positive_counts",
    "in_batch",
)


_NOT_TENSORS = ("query_index", "passage_index", "texts", "tokens", "width", "notes")


def _gather_columns(host: HostBatch, ranks: Ranks, notes: Sequence[int]) -> dict[str, list[Any]]:
    """Gather every rank's columns by name: one collective for the lengths, and one for all the numbers."""
    columns = [getattr(host, name) for name in _COLUMNS]
    columns.append(host.scores.view(np.int32).astype(np.int64))
    facts = [len(host.encoded), host.tokens, 0 if host.teacher is None else host.teacher.shape[1]]
    counts_all = gather_numbers([*facts, *notes, *(len(c) for c in columns)], ranks)
    lengths_all = [c[3 + len(notes) :] for c in counts_all]
    flat = torch.from_numpy(np.concatenate(columns)).to(ranks.device)
    flat_all = gather_rows(flat, ranks, [sum(lengths) for lengths in lengths_all]).cpu().numpy()
    parts = np.split(flat_all, np.cumsum([n for lengths in lengths_all for n in lengths])[:-1])
    names = (*_COLUMNS, "scores")
    gathered: dict[str, list[Any]] = {name: parts[i :: len(names)] for i, name in enumerate(names)}
    gathered["texts"] = [c[0] for c in counts_all]
    gathered["tokens"] = [c[1] for c in counts_all]
    gathered["width"] = [c[2] for c in counts_all]
    gathered["notes"] = [c[3 : 3 + len(notes)] for c in counts_all]
    return gathered


def _tensor(parts: Sequence[Any], ranks: Ranks) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(ranks.device)
