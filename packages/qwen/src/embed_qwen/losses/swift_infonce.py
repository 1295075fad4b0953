"""ms-swift's InfoNCE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from embed_core.errors import ConfigError
from embed_core.losses import contrastive
from embed_core.types import LossOutput
from embed_qwen import swift
from embed_qwen.losses import layout

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_qwen.losses_config import SwiftInfoNCEConfig


class SwiftInfoNCE(nn.Module):
    """``swift.loss.loss_map["infonce"]`` over the global batch: the value and gradient of a single process, on any
    number of ranks.

    ``hard_negatives`` draws again where a row has too few, seeded by the number of the step: the same on every rank.
    Metrics: ``loss``; ``accuracy``, the share of queries that rank their positive first among all passages.
    """

    def __init__(self, config: SwiftInfoNCEConfig) -> None:
        super().__init__()
        self.config = config
        self._loss = swift.loss("infonce")
        self._variables = _variables(config)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows. Raises ConfigError without dense vectors, and for rows without a negative where
        ``hard_negatives`` asks for some."""
        query_BD, passage_PD = layout.dense(batch)
        self._check_negatives(targets)
        sentences_MD, labels_P = layout.groups(query_BD, passage_PD, targets)
        with _drawing(targets.step):
            loss = self._loss(sentences_MD, labels_P, self._variables)
        similarity_BP = query_BD.detach() @ passage_PD.detach().T
        nothing_BP = torch.zeros_like(similarity_BP, dtype=torch.bool)
        hidden_BP = nothing_BP if self.config.use_batch else ~contrastive.own_group(targets)
        accuracy = contrastive.accuracy(similarity_BP, hidden_BP, targets.positive_columns_B)
        return LossOutput(loss, {"loss": loss.detach(), "accuracy": accuracy})

    def _check_negatives(self, targets: Targets) -> None:
        bare = int((targets.groups_B1.diff() == 1).sum()) if self.config.hard_negatives is not None else 0
        if bare:
            raise ConfigError(
                f"loss.hard_negatives {self.config.hard_negatives} needs a negative in every row, and {bare} of "
                f"{targets.row_ids_B.shape[0]} in the batch of step {targets.step + 1} have none: leave the key out, "
                "or mine negatives for all rows"
            )


def _variables(config: SwiftInfoNCEConfig) -> dict[str, str | None]:
    hard = config.hard_negatives
    return {
        "INFONCE_TEMPERATURE": repr(config.temperature),
        "INFONCE_USE_BATCH": str(config.use_batch),
        "INFONCE_HARD_NEGATIVES": None if hard is None else str(hard),
        "INFONCE_MASK_FAKE_NEGATIVE": str(config.mask_fake_negative),
        "INFONCE_FAKE_NEG_MARGIN": repr(config.fake_neg_margin),
        "INFONCE_INCLUDE_QQ": str(config.include_qq),
        "INFONCE_INCLUDE_DD": str(config.include_dd),
    }


@contextmanager
def _drawing(step: int) -> Iterator[None]:
    """Seeds numpy's global generator, which ms-swift draws from, by the step; its state is put back afterwards."""
    before = np.random.get_state()
    np.random.seed(step % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
