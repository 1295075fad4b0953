"""BGE-M3's unified loss: dense, lexical, multi-vector and ensemble terms, self-distillation, a teacher's scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from embed_core.losses import contrastive
from embed_core.losses.score_distillation import (
    GroupTable,
    TeacherTargets,
    group_cross_entropy,
    group_table,
    sequential_cross_entropy,
    teacher_targets,
)
from embed_core.scoring import combine, kind_scores
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_bge.loss_config import BGEUnifiedConfig
    from embed_core.types import Batch, ScoreWeights, Targets

KINDS = ("dense", "sparse", "multi")


class _View(NamedTuple):
    """What every term needs from the batch besides its scores."""

    own_B: Tensor
    """Column of each row's positive."""
    mask_BP: Tensor
    """Columns that are left out of a row's softmax."""
    own_BP: Tensor
    """Columns of the row's own group."""
    table: GroupTable
    judged: TeacherTargets | None


class BGEUnifiedLoss(nn.Module):
    """``L = (w_d·L_d + w_e·L_e + w_s·L_s + w_c·L_c) / 4`` (Chen et al. 2024), the weights by default 1, 1, 0.1, 1.

    Each term is the cross-entropy of the positive among the P passages, by scores / τ; the ensemble's scores are
    ``S_d + 0.3·S_s + S_c``. With self-distillation, ``[L + (KD_d + 0.1·KD_s + KD_c) / 3] / 2``, KD the cross-entropy
    against ``softmax(stop_grad S_e)``. With a teacher, ``t`` its softmax over the own group:

    * ``kl_div``: each term plus the cross-entropy against t over the own group, averaged over the rows t covers;
    * ``m3_kd_loss``: in rows t covers, ``Σ_i t[i] · CE(S without the group's columns < i; i)`` replaces the term.

    A row is covered if all its passages have a score. False negatives (``mask``) leave the softmax of every term, but
    in the teacher's parts of covered rows only those of other rows do: in the own group the teacher judges.
    Rows without in-batch negatives (``Targets.in_batch_B``) have their own group alone in every softmax, and their
    passages are in no other row's.
    Metrics: each term before its weight; ``self_distill`` before its half (0 before its start); ``teacher``, the share
    of rows covered; ``accuracy`` of the ensemble, else of the first kind trained; ``masked``, the share of candidate
    negatives left out as false.
    """

    in_batch_by_row = True

    def __init__(self, config: BGEUnifiedConfig) -> None:
        super().__init__()
        self.config = config
        self.weights: dict[str, float] = config.weights.model_dump()
        parts = config.ensemble
        self.ensemble: ScoreWeights = {"dense": parts.dense, "sparse": parts.sparse, "multi": parts.multi}
        self.distill_weights: dict[str, float] = config.self_distill_weights.model_dump()

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows. Raises ConfigError where the model lacks a kind of embedding that is trained."""
        return self.with_other_dense(batch, targets, ())[0]

    def with_other_dense(
        self, batch: Batch, targets: Targets, others: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[LossOutput, list[Tensor]]:
        """See :class:`embed_core.protocols.TakesOtherDense`: ``others`` get the dense, the ensemble and the dense
        self-distillation term. The batch's own scores teach them and decide what is masked."""
        logits = self._logits(batch)
        view, masked = self._view(logits, targets)
        terms = {kind: self._term(logits[kind], view) for kind in self._trained()}
        metrics = {kind: term.detach() for kind, term in terms.items()}
        if self.config.unified_finetuning:
            loss = torch.stack([self.weights[kind] * term for kind, term in terms.items()]).sum() / 4
        else:
            loss = terms["dense"]
        if self.config.use_self_distill:
            metrics["self_distill"] = torch.zeros_like(loss, requires_grad=False)
            if targets.step > self.config.self_distill_start_step:
                distilled = self._self_distill(logits, view.mask_BP)
                metrics["self_distill"] = distilled.detach()
                loss = (loss + distilled) / 2
        if self.config.knowledge_distillation:
            covered_B = torch.zeros_like(view.own_B) if view.judged is None else view.judged.covered
            metrics["teacher"] = covered_B.to(loss.dtype).mean()
        ranking = logits["ensemble"] if "ensemble" in logits else next(iter(logits.values()))
        metrics["accuracy"] = contrastive.accuracy(ranking, view.mask_BP, view.own_B)
        metrics["masked"] = masked
        return LossOutput(loss, metrics), [self._dense_terms(*pair, logits, view, targets.step) for pair in others]

    def _dense_terms(
        self, query_BD: Tensor, passage_PD: Tensor, logits: dict[str, Tensor], view: _View, step: int
    ) -> Tensor:
        """The terms that use dense vectors, with these in place of the batch's and the other scores as given."""
        changed = {"dense": query_BD @ passage_PD.T / self.config.temperature}
        if "ensemble" in logits and self.ensemble["dense"]:
            changed["ensemble"] = combine(logits | changed, self.ensemble)
        if not self.config.unified_finetuning:
            return self._term(changed["dense"], view)
        terms = [self.weights[kind] * self._term(changed[kind], view) for kind in self._trained() if kind in changed]
        loss = torch.stack(terms).sum() / 4 if terms else view.own_B.new_zeros((), dtype=query_BD.dtype)
        if self.config.use_self_distill and step > self.config.self_distill_start_step:
            loss = (loss + self._self_distill(logits | {"dense": changed["dense"]}, view.mask_BP, ("dense",))) / 2
        return loss

    def _trained(self) -> list[str]:
        """The terms that the loss adds up."""
        if not self.config.unified_finetuning:
            return ["dense"]
        return [kind for kind, weight in self.weights.items() if weight]

    def _logits(self, batch: Batch) -> dict[str, Tensor]:
        """Scores / τ, [B, P], of every kind that some part of the loss uses, and of the ensemble if it is used."""
        config = self.config
        used = set(self._trained())
        if config.use_self_distill:
            used |= {"ensemble"} | {kind for kind, weight in self.distill_weights.items() if weight}
        if "ensemble" in used:
            used |= {kind for kind, weight in self.ensemble.items() if weight}
        if config.mask.margin is not None:
            used.add("dense")
        scores = kind_scores(batch.query, batch.passage, [kind for kind in KINDS if kind in used])
        logits = {kind: scores_BP / config.temperature for kind, scores_BP in scores.items()}
        if "ensemble" in used:
            logits["ensemble"] = combine(logits, self.ensemble)
        return logits

    def _view(self, logits: dict[str, Tensor], targets: Targets) -> tuple[_View, Tensor]:
        """The masks and the teacher, and the share of candidate negatives that are masked as false ones."""
        config, own_B = self.config, targets.positive_columns_B
        false_BP = contrastive.known_positives(targets, config.mask)
        if config.mask.margin is not None:
            margin = config.mask.margin / config.temperature
            false_BP = false_BP | contrastive.above_positive(logits["dense"], own_B, margin)
        own_BP = contrastive.own_group(targets)
        table = group_table(targets)
        judged = teacher_targets(targets, table, config.teacher_temperature) if config.knowledge_distillation else None
        mask_BP = false_BP if config.in_batch else false_BP | ~own_BP
        apart_BP = contrastive.not_competing(targets, own_BP)
        if apart_BP is not None:
            mask_BP = mask_BP | apart_BP
        masked = contrastive.masked_share(false_BP, None if config.in_batch else own_BP)
        return _View(own_B, mask_BP, own_BP, table, judged), masked

    def _term(self, logits_BP: Tensor, view: _View) -> Tensor:
        """One term: the cross-entropy of the positives, with the teacher's part if there is one."""
        loss_B = contrastive.cross_entropy(logits_BP, view.mask_BP, view.own_B)
        judged = view.judged
        if judged is None:
            return loss_B.mean()
        if self.config.kd_loss_type == "kl_div":
            taught_B = group_cross_entropy(logits_BP, view.table, judged)
            return loss_B.mean() + taught_B.sum() / judged.covered.sum()
        taught_B = sequential_cross_entropy(logits_BP, view.mask_BP, view.own_BP, view.table, judged)
        return torch.where(judged.covered, taught_B, loss_B).mean()

    def _self_distill(self, logits: dict[str, Tensor], mask_BP: Tensor, kinds: Sequence[str] = KINDS) -> Tensor:
        """``Σ_kind w · KD_kind / 3`` against the ensemble, which gets no gradient."""
        target_BP = contrastive.masked_logits(logits["ensemble"].detach(), mask_BP).softmax(-1)
        terms = [
            weight * contrastive.soft_cross_entropy(logits[kind], mask_BP, target_BP).mean()
            for kind, weight in self.distill_weights.items()
            if weight and kind in kinds
        ]
        return torch.stack(terms).sum() / 3 if terms else target_BP.new_zeros(())
