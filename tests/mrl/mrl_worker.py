"""Run as a process per rank by test_engine_mrl.py: the tiny model under Matryoshka losses, by the core's worker."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from engine_worker import train

from embed_bge.loss_config import BGEUnifiedConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import join, leave
from embed_core.losses.config import InfoNCEConfig, MaskConfig
from embed_core.testing.tiny import TinyModel
from embed_mrl import prefix
from embed_mrl.config import MatryoshkaConfig

LOSSES: dict[str, Any] = {
    # Shares its rows among the ranks; one product for all dimensions.
    "infonce": MatryoshkaConfig(
        inner=InfoNCEConfig(temperature=0.5, symmetric=True, mask=MaskConfig(margin=0.1)),
        dims=(8, 4),
        weights=(0.5, 2.0),
    ),
    # The same, other dimensions in each step.
    "drawn": MatryoshkaConfig(inner=InfoNCEConfig(temperature=0.5), dims=(8, 4, 2), n_dims_per_step=2),
    # Computed whole on every rank.
    "bge": MatryoshkaConfig(
        inner=BGEUnifiedConfig(temperature=0.2, use_self_distill=True, self_distill_start_step=0), dims=(8, 4)
    ),
}


def main(out: Path, settings: list[str]) -> None:
    """Train once per setting ``loss-stage-strategy-budget`` and write ``out/{ranks}-{setting}.json`` each."""
    torch.set_num_threads(1)
    prefix.LEAST_SAVED = 0
    ranks = join("cpu")
    for setting in settings:
        name, stage, strategy, budget = setting.split("-")
        engine = EngineConfig.model_validate(
            {"zero_stage": int(stage), "precision": "fp32", "token_budget": int(budget), "strategy": strategy}
        )
        loss = LOSSES[name].build(BuildContext(registry=Registry(), announce=lambda line: None))
        answer = train(TinyModel(), loss, engine, ranks)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
