"""Scores of a query's own passages by student and teacher. Suffixes of :mod:`embed_core.types`; R counts the rows this
rank computes, G the passages of the largest group."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from embed_core.errors import DataError
from embed_core.losses.score_distillation import group_table
from embed_core.types import TeacherVectors
from embed_distill.losses.teacher import dense_of, own_passages, own_rows, teacher_of

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import RankingConfig


class Groups(NamedTuple):
    """Scores of this rank's rows, and counts of the whole batch's rows that have a teacher and something to compare."""

    student_RG: Tensor
    teacher_RG: Tensor
    """The teacher's scores, not scaled, in the student's precision; 0 where ``real_RG`` is False."""
    real_RG: Tensor
    """bool, False for the padding of smaller groups and in rows that do not count."""
    scored_R: Tensor
    """bool, True where ``teacher_RG`` comes from the dataset's scores."""
    rows: int
    """Rows of the whole batch that count."""
    passages: int
    """Passages of those rows."""


def groups(batch: Batch, targets: Targets, config: RankingConfig) -> Groups:
    """Score the rows' own passages. Raises DataError where the dataset lacks the scores or vectors that
    ``config.source`` names, or the run's first batch has nothing to compare; ConfigError without dense vectors."""
    query_BD, passage_PD = dense_of(batch)
    table, sizes_B, rows = group_table(targets), targets.groups_B1.diff(), own_rows(targets)
    scored_B = _scored(targets, table.columns, table.real, config)
    counts_B = sizes_B > 1
    if config.source == "scores" or targets.teacher is None:
        counts_B = counts_B & scored_B
    total, passages = torch.stack([counts_B.sum(), (sizes_B * counts_B).sum()]).tolist()
    if total == 0 and targets.step == 0:
        raise _nothing(targets, sizes_B, scored_B, config)
    real_RG = table.real[rows] & counts_B[rows].unsqueeze(1)
    first = own_passages(targets, rows).start
    places_RG = (table.columns[rows] - first) * real_RG
    student_RG = _products(query_BD, passage_PD, targets, rows, places_RG)
    teacher_RG = torch.zeros_like(student_RG.detach())
    if targets.teacher is not None and config.source != "scores":
        query_BW, passage_PW = teacher_vectors(targets, config, query_BD)
        teacher_RG = _products(query_BW, passage_PW, targets, rows, places_RG)
    if targets.scores_P is not None and config.source != "vectors":
        given_RG = targets.scores_P[table.columns[rows]].to(student_RG)
        teacher_RG = torch.where(scored_B[rows].unsqueeze(1), given_RG, teacher_RG)
    return Groups(student_RG, teacher_RG.masked_fill(~real_RG, 0), real_RG, scored_B[rows], int(total), int(passages))


def teacher_vectors(targets: Targets, config: RankingConfig, like: Tensor) -> TeacherVectors:
    """Vectors in the precision of ``like``, normalised if ``config`` says so. Raises DataError if there are none."""
    found = [vectors.to(like) for vectors in teacher_of(targets, config.kind)]
    return TeacherVectors(*(normalize(vectors, dim=-1) for vectors in found) if config.normalize else found)


def _scored(targets: Targets, columns_BG: Tensor, real_BG: Tensor, config: RankingConfig) -> Tensor:
    """``[B]``, True for rows in which every passage has a score that may be used."""
    if targets.scores_P is None or config.source == "vectors":
        return torch.zeros(columns_BG.shape[0], dtype=torch.bool, device=columns_BG.device)
    return (targets.scores_P[columns_BG].isfinite() | ~real_BG).all(-1)


def _products(query_BX: Tensor, passage_PX: Tensor, targets: Targets, rows: slice, places_RG: Tensor) -> Tensor:
    """Dot products of these rows' queries with their own passages; ``places_RG`` counts from the first passage."""
    own = own_passages(targets, rows)
    sizes_R = targets.groups_B1.diff()[rows]
    queries_KX = query_BX[rows].repeat_interleave(sizes_R, dim=0, output_size=own.stop - own.start)
    products_K = (queries_KX * passage_PX[own]).sum(-1)
    return products_K[places_RG] if products_K.shape[0] else products_K.new_zeros(places_RG.shape)


def _nothing(targets: Targets, sizes_B: Tensor, scored_B: Tensor, config: RankingConfig) -> DataError:
    """The error for a first batch without anything to compare. A later batch may be so by chance, and adds 0."""
    if targets.teacher is None and config.source != "scores" and not bool(scored_B.any()):
        return DataError(
            f"loss {config.kind!r} learns how a teacher ranks passages, but the rows of the first batch have neither "
            "scores (`pos_scores`, `neg_scores`) nor a teacher's vectors: add one of them"
        )
    if config.source == "scores" and not bool(scored_B.any()):
        return DataError(
            f"loss {config.kind!r} with source: scores, but no row of the first batch has a score for each passage: "
            "add `pos_scores` and `neg_scores`, or set source: vectors"
        )
    return DataError(
        f"loss {config.kind!r} compares a query's own passages, but no row of the first batch with a teacher has more "
        f"than {int(sizes_B.max())}: give the rows negatives, or set over: batch"
    )
