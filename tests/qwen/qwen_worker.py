"""Run as a process per rank by test_engine_qwen.py: the core's worker with the losses and the model of this package."""

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
from embed_core.losses import tiled_cross_entropy
from embed_core.losses.config import MaskConfig
from embed_core.testing.tiny import TinyModel
from embed_qwen.losses_config import Qwen3InfoNCEConfig, SwiftInfoNCEConfig, SwiftOnlineContrastiveConfig
from embed_qwen.model_config import Qwen3EmbeddingConfig

CONTEXT = BuildContext(registry=Registry(), announce=lambda line: None)
EVERYTHING: dict[str, Any] = {"include_qq": True, "include_dd": True, "mask_fake_negative": True}
LOSSES: dict[str, Any] = {
    # Computed whole on every rank, by code that would gather for itself if it saw the ranks.
    "swift": SwiftInfoNCEConfig(temperature=0.5, **EVERYTHING),
    "online": SwiftOnlineContrastiveConfig(),
    # Shares its rows among the ranks, which look at tiles of a few similarities.
    "paper": Qwen3InfoNCEConfig(temperature=0.5, positives="known", mask=MaskConfig(margin=0.1)),
}


def build(parts: str, out: Path) -> tuple[Any, Any]:
    """Model and loss: the tiny model under one of the losses, or a small Qwen3 of ``out/base`` under ms-swift's."""
    if parts != "qwen":
        return TinyModel(), LOSSES[parts].build(CONTEXT)
    lengths = {"query_max_length": 64, "passage_max_length": 64}
    config = Qwen3EmbeddingConfig(name_or_path=str(out / "base"), instruction="Find it", **lengths)
    return config.build(CONTEXT), LOSSES["swift"].build(CONTEXT)


def main(out: Path, settings: list[str]) -> None:
    """Train once per setting ``parts-stage-strategy-budget`` and write ``out/{ranks}-{setting}.json`` each."""
    torch.set_num_threads(1)
    ranks = join("cpu")
    tiled_cross_entropy.TILE_BYTES = 60 if ranks.world_size > 1 else 2**20
    for setting in settings:
        parts, stage, strategy, budget = setting.split("-")
        engine = EngineConfig.model_validate(
            {"zero_stage": int(stage), "precision": "fp32", "token_budget": int(budget), "strategy": strategy}
        )
        answer = train(*build(parts, out), engine, ranks)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
