"""Run as a process per rank by test_engine_sbert.py: small sentence-transformers models through the loop's own step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from engine_worker import train

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import join, leave
from embed_core.embeddings import select
from embed_core.types import Batch, LossOutput, Targets
from embed_sbert.config import SentenceTransformersModelConfig
from embed_sbert.loss import build_loss
from embed_sbert.loss_config import MultipleNegativesRankingConfig, SentenceTransformersLossConfig


class OnPairs(torch.nn.Module):
    """The sum of losses of sentence-transformers on the queries and positives alone: the rows' groups are ragged."""

    def __init__(self, *losses: Any) -> None:
        super().__init__()
        self.losses = torch.nn.ModuleList(losses)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        rows = len(targets.row_ids_B)
        pairs = batch._replace(passage=select(batch.passage, targets.positive_columns_B))
        known = targets._replace(groups_B1=torch.arange(rows + 1), scores_P=targets.row_ids_B % 3 + 0.0)
        outputs = [loss(pairs, known) for loss in self.losses]
        return LossOutput(torch.stack([one.loss for one in outputs]).sum(), outputs[0].metrics)


def main(out: Path, settings: list[str]) -> None:
    """Train once per setting ``chain-stage-strategy-budget`` and write ``out/{ranks}-{setting}.json`` each."""
    torch.set_num_threads(1)
    ranks = join("cpu")
    for setting in settings:
        chain, stage, strategy, budget = setting.split("-")
        engine = EngineConfig.model_validate(
            {"zero_stage": int(stage), "precision": "fp32", "token_budget": int(budget), "strategy": strategy}
        )
        context = BuildContext(registry=Registry(), announce=lambda line: None)
        model = SentenceTransformersModelConfig(name_or_path=str(out / chain)).build(context)
        context.model = model
        loss: Any = MultipleNegativesRankingConfig(scale=2.0).build(context)
        if chain == "dense":
            given = SentenceTransformersLossConfig(name="SoftmaxLoss", arguments={"num_labels": 3})
            own = build_loss(
                SentenceTransformersLossConfig(name="MultipleNegativesRankingLoss", arguments={"scale": 2.0}), context
            )
            loss = OnPairs(own, build_loss(given, context))
        answer = train(model, loss, engine, ranks)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
