"""Arranges a global batch as sentence-transformers' losses take it: columns of vectors, and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embed_core.embeddings import missing_kind
from embed_core.errors import ConfigError
from embed_core.losses.contrastive import rows_of
from embed_core.types import Batch, Targets
from embed_sbert.loss_names import Form


@dataclass(frozen=True, slots=True)
class Columns:
    """The input of a loss: R rows of the same number of texts each."""

    vectors: list[Tensor]
    """One tensor [R,D] per column."""
    labels: Tensor | None = None
    """[R], [R, columns − 1] or [R, columns, W], as the loss requires."""


def columns_of(batch: Batch, targets: Targets, form: Form, name: str) -> Columns:
    """The batch in the form that the loss ``name`` asks for.

    Raises ConfigError without dense vectors, or where the rows lack what the loss needs, saying how to add it.
    """
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    if query_BD is None or passage_PD is None:
        raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
    if form == "angle":
        form = "scored-pairs" if targets.scores_P is not None or _count(targets, name) == 0 else "tuples"
    if form == "scored-pairs":
        row_P = rows_of(targets.groups_B1, passage_PD.shape[0])
        return Columns([query_BD[row_P], passage_PD], _pair_scores(targets, name).to(query_BD.dtype))
    if form == "classes":
        class_B = torch.unique(targets.query_ids_B, return_inverse=True)[1]
        return Columns(*_classes(query_BD, passage_PD, targets, class_B))
    negatives = _count(targets, name)
    if form in ("pairs", "labelled") and negatives:
        raise ConfigError(f"loss {name} takes pairs, the rows have {negatives} hard negatives: set data.negatives: 0")
    if form == "triplets" and negatives != 1:
        more = "set data.negatives: 1" if negatives else "it needs rows with negatives (`neg`)"
        raise ConfigError(f"loss {name} takes triplets, the rows have {negatives} hard negatives: {more}")
    groups_BGD = passage_PD.view(query_BD.shape[0], negatives + 1, -1)
    return Columns([query_BD, *groups_BGD.unbind(1)], _labels(targets, form, name, negatives, query_BD))


def _labels(targets: Targets, form: Form, name: str, negatives: int, like: Tensor) -> Tensor | None:
    if form == "labelled":
        return _scores(targets, name)[targets.positive_columns_B].round().long()
    if form == "scored-tuples":
        if not negatives:
            raise ConfigError(f"loss {name} compares passages of a row, the rows have one: it needs negatives (`neg`)")
        return _scores(targets, name).view(-1, negatives + 1).to(like.dtype)
    if form == "teacher":
        if targets.teacher is None:
            raise ConfigError(
                f"loss {name} needs a teacher's vectors, the data has none: set `teacher_model_name`, or use a dataset "
                "that brings them"
            )
        query_BW, passage_PW = targets.teacher
        groups_BGW = passage_PW.view(query_BW.shape[0], negatives + 1, -1)
        return torch.cat([query_BW.unsqueeze(1), groups_BGW], dim=1).to(like.dtype)
    return None


def _count(targets: Targets, name: str) -> int:
    """The number of hard negatives, the same for every row. Raises ConfigError where rows differ."""
    sizes_B = targets.groups_B1.diff()
    least, most = int(sizes_B.min()) - 1, int(sizes_B.max()) - 1
    if least != most:
        raise ConfigError(
            f"loss {name} takes rows alike, these have {least} to {most} hard negatives: give all of them negatives, "
            "or set data.negatives: 0"
        )
    return least


def _scores(targets: Targets, name: str) -> Tensor:
    """Scores of all passages, [P]. Raises ConfigError where a row has none."""
    if targets.scores_P is None:
        raise ConfigError(
            f"loss {name} needs scores, the rows have none: give them a `score` (or `pos_scores` and `neg_scores`)"
        )
    without_P = targets.scores_P.isnan()
    if bool(without_P.any()):
        row_P = rows_of(targets.groups_B1, without_P.shape[0])
        rows = targets.row_ids_B[row_P[without_P]].unique().tolist()
        raise ConfigError(
            f"loss {name} needs a score of every passage, {len(rows)} rows of this batch lack some (row "
            f"{rows[0]} first): give them scores, or leave them out"
        )
    return targets.scores_P


def _pair_scores(targets: Targets, name: str) -> Tensor:
    """Scores of all passages, [P]; in rows without scores a positive has 1 and a hard negative 0."""
    if targets.scores_P is not None or bool((targets.groups_B1.diff() == 1).all()):
        return _scores(targets, name)
    scores_P = torch.zeros(int(targets.groups_B1[-1]), device=targets.groups_B1.device)
    scores_P[targets.positive_columns_B] = 1
    return scores_P


def _classes(query_BD: Tensor, passage_PD: Tensor, targets: Targets, class_B: Tensor) -> tuple[list[Tensor], Tensor]:
    """All texts in one column: a query and its positive are of one class, each hard negative is alone in its own."""
    own = targets.positive_columns_B
    class_P = torch.arange(passage_PD.shape[0], device=own.device) + query_BD.shape[0]
    class_P[own] = class_B
    return [torch.cat([query_BD, passage_PD])], torch.cat([class_B, class_P])
