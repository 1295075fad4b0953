"""Asymmetric evaluation (kind ``two-by-two``): student and teacher each encode queries or documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embed_core.embeddings import missing_kind
from embed_core.evaluation.retrieval import QUERY_BLOCK, RetrievalEvaluator
from embed_core.evaluation.topk import TopK
from embed_distill.evaluation.table import KEPT, KEPT_ASYMMETRIC, WAYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_core.protocols import Announce, Encoder
    from embed_core.types import Item, RetrievalSet, Role
    from embed_distill.evaluation.config import TwoByTwoConfig
    from embed_distill.teacher.cached import Sources


class TwoByTwoEvaluator(RetrievalEvaluator):
    """Reports ``student-student/…``, ``student-teacher/…`` (query encoder first) and so on, and the share of
    ``teacher-teacher`` that ``student-student`` keeps as ``kept/…``."""

    def __init__(self, config: TwoByTwoConfig, data: RetrievalSet, announce: Announce, teachers: Sources) -> None:
        super().__init__(config, data, announce)
        self._teachers = teachers
        self._teacher_metrics: dict[str, float] | None = None

    def evaluate(self, encoder: Encoder) -> Mapping[str, float]:
        """The metrics, the same on every rank. Raises ConfigError for a model without dense vectors."""
        own = {way: top.keys_QK.cpu() for way, top in self._rank(encoder).items()}
        for source in self._teachers.each:
            source.unload()  # training goes on and needs the memory
        everyone = encoder.gather(own)
        # Rank 0 computes the metrics and all ranks use its figures, as in the core's evaluator.
        found: dict[str, float] = encoder.gather(self._metrics(everyone) if encoder.rank == 0 else None)[0]
        if self._teacher_metrics is None:
            self._teacher_metrics = {
                name: value for name, value in found.items() if name.startswith("teacher-teacher/")
            }
        return _with_shares({**found, **self._teacher_metrics})

    def _rank(self, encoder: Encoder) -> dict[str, TopK]:
        """Rank this rank's documents for every pair of encoders whose vectors have equal width."""
        queries = list(self.data.queries.values())
        student_QD, teacher_QW = self._student(encoder, queries, "query"), self._teacher(queries, "query")
        by = {"student": student_QD, "teacher": teacher_QW.to(student_QD.device)}
        ways = [way for way in WAYS if self._is_due(way, student_QD.shape[1] == teacher_QW.shape[1])]
        tops = {way: TopK(len(queries), self.depth, student_QD.device) for way in ways}
        for positions, real in self._tiles(encoder.rank, encoder.world_size):
            items = [self.data.corpus[self._ids[position]] for position in positions]
            student_ND = self._student(encoder, items, "passage")
            if not real:
                continue
            teacher_NW = self._teacher(items, "passage").to(student_ND.device)
            documents = {"student": student_ND, "teacher": teacher_NW}
            position_N = torch.tensor(positions, dtype=torch.int64, device=student_ND.device)
            for way, top in tops.items():
                who, whose = way.split("-")
                for start in range(0, len(queries), QUERY_BLOCK):
                    block = by[who][start : start + QUERY_BLOCK]
                    top.add(start, block @ documents[whose].T, position_N)
        return tops

    def _is_due(self, way: str, same_width: bool) -> bool:
        """Whether this pair can be ranked and has to be: teacher-teacher never changes, so it is ranked only once."""
        if way == "teacher-teacher":
            return self._teacher_metrics is None
        return same_width or way == "student-student"

    def _student(self, encoder: Encoder, items: Sequence[Item], role: Role) -> Tensor:
        found = encoder.encode(items, role)
        if found.dense_ND is None:
            raise missing_kind(found, "dense")
        return functional.normalize(found.dense_ND.float(), dim=-1)

    def _teacher(self, items: Sequence[Item], role: Role) -> Tensor:
        """fp32 ``[N, W]`` on the CPU."""
        return torch.from_numpy(self._teachers.vectors([(item, role) for item in items]))


def _with_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics in the order of :data:`WAYS`, so the best-model measure is first; then the shares of the teacher."""
    ordered = {name: metrics[name] for way in WAYS for name in metrics if name.startswith(f"{way}/")}
    for share, way in ((KEPT, "student-student"), (KEPT_ASYMMETRIC, "student-teacher")):
        for name in metrics:
            queries, _, measure = name.partition("/")
            whole = metrics[f"teacher-teacher/{measure}"]
            if queries == way and whole > 0:
                ordered[f"{share}/{measure}"] = metrics[name] / whole
    return ordered
