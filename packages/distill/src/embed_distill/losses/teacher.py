"""Pairs a batch's student vectors with the teacher's vectors of the same texts. Suffixes of :mod:`embed_core.types`; N
counts the texts this rank computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from embed_core.embeddings import missing_kind
from embed_core.errors import ConfigError, DataError
from embed_core.types import TeacherVectors

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import TextsOf


class Texts(NamedTuple):
    """Vectors of the same texts, by student and by teacher."""

    student_ND: Tensor
    teacher_NW: Tensor
    """The teacher's vectors in the student's precision, without gradient."""


def teacher_of(targets: Targets, kind: str) -> TeacherVectors:
    """The teacher's vectors. Raises DataError where the dataset gives none; ``kind`` names the loss in the message."""
    if targets.teacher is None:
        raise DataError(
            f"loss {kind!r} compares with a teacher's vectors, but the rows have none: "
            "put the dataset into one that adds them (`data: {kind: with-teacher, teachers: […], inner: …}`)"
        )
    return targets.teacher


def dense_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """The dense vectors ``(query_BD, passage_PD)``. Raises ConfigError where the model gives none."""
    for side in batch:
        if side.dense_ND is None:
            raise missing_kind(side, "dense")
    assert batch.query.dense_ND is not None
    assert batch.passage.dense_ND is not None
    return batch.query.dense_ND, batch.passage.dense_ND


def own_rows(targets: Targets) -> slice:
    """The slice of the rows that this rank computes."""
    return slice(*(targets.own_rows or (0, targets.row_ids_B.shape[0])))


def own_passages(targets: Targets, rows: slice) -> slice:
    """The slice of the passages that belong to ``rows``."""
    if targets.own_rows is None:
        return slice(0, targets.passage_ids_P.shape[0])
    return slice(int(targets.groups_B1[rows.start]), int(targets.groups_B1[rows.stop]))


def texts(batch: Batch, targets: Targets, which: TextsOf, kind: str) -> Texts:
    """Vectors of all texts of the batch, queries first. Raises DataError and ConfigError."""
    query_BD, passage_PD = dense_of(batch)
    query_BW, passage_PW = (vectors.to(query_BD) for vectors in teacher_of(targets, kind))
    return Texts(_chosen(query_BD, passage_PD, which), _chosen(query_BW, passage_PW, which))


def own_texts(batch: Batch, targets: Targets, which: TextsOf, kind: str) -> Texts:
    """Vectors of the texts of the rows that this rank computes, queries first. Raises DataError and ConfigError."""
    query_BD, passage_PD = dense_of(batch)
    query_BW, passage_PW = teacher_of(targets, kind)
    rows = own_rows(targets)
    columns = own_passages(targets, rows)
    student_ND = _chosen(query_BD[rows], passage_PD[columns], which)
    return Texts(student_ND, _chosen(query_BW[rows], passage_PW[columns], which).to(student_ND))


def count(targets: Targets, which: TextsOf) -> int:
    """Number of texts of the whole batch."""
    queries, passages = int(targets.row_ids_B.shape[0]), int(targets.passage_ids_P.shape[0])
    return {"both": queries + passages, "queries": queries, "passages": passages}[which]


def fitted(found: Texts, kind: str, *, cut: bool, unit: bool) -> Texts:
    """Give the teacher's vectors the student's width: cut to the first values (``cut``), scaled to unit length where
    they are cut or ``unit`` is set. Raises ConfigError, naming both widths, where they still differ."""
    D, W = found.student_ND.shape[1], found.teacher_NW.shape[1]
    if W != D and not (cut and W > D):
        raise _unequal(kind, D, W, cut=cut)
    teacher_ND = found.teacher_NW[:, :D]
    if unit or W != D:
        teacher_ND = normalize(teacher_ND, dim=-1)
    return Texts(found.student_ND, teacher_ND)


def _chosen(query_BX: Tensor, passage_PX: Tensor, which: TextsOf) -> Tensor:
    if which == "both":
        return torch.cat([query_BX, passage_PX])
    return query_BX if which == "queries" else passage_PX


def _unequal(kind: str, student: int, teacher: int, *, cut: bool) -> ConfigError:
    fixes = [f"bring the student's to {teacher} (`model: {{kind: projected, out_dim: {teacher}, inner: …}}`)"]
    if teacher > student and not cut:
        fixes.append(f"cut the teacher's to {student} (`teacher_dims: first`, for Matryoshka teachers)")
    fixes.append("use 'teacher-similarity' or 'teacher-kl', which need no equal widths")
    return ConfigError(
        f"loss {kind!r} needs vectors of equal width, but the student's have {student} values and the teacher's "
        f"{teacher}: {', or '.join(fixes)}"
    )
