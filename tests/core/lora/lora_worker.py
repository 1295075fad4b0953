"""Run as a process per rank by test_lora_engine.py: a small BGE-M3 with adapters through the loop's own step.

Settings are ``stage-precision-budget-strategy`` as of engine_worker.py, where the precision ``half`` is bf16-weights,
with words in front: ``recompute-`` is gradient checkpointing, ``dropout-`` a model with dropout, ``dora-`` and
``saved-`` (``modules_to_save``) other adapters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from engine_worker import train

from embed_bge.config import BGEM3ModelConfig
from embed_bge.loss_config import BGEUnifiedConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import join, leave
from embed_core.models.lora.config import LoraModelConfig


def adapted(folder: Path, *flags: str) -> Any:
    """The model with adapters that already change something: with B at 0, A has no gradient."""
    context = BuildContext(registry=Registry(), announce=lambda line: None)
    inner = BGEM3ModelConfig(name_or_path=str(folder / ("model-dropout" if "dropout" in flags else "model")))
    config = LoraModelConfig(
        inner=inner,
        r=4,
        dropout=0.2 if "dropout" in flags else 0.0,
        use_dora="dora" in flags,
        modules_to_save=("LayerNorm",) if "saved" in flags else (),
    )
    model = config.build(context)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def main(out: Path, settings: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = join("cpu")
    context = BuildContext(registry=Registry(), announce=lambda line: None)
    for setting in settings:
        *flags, stage, precision, budget, strategy = setting.split("-")
        engine = EngineConfig.model_validate(
            {
                "zero_stage": int(stage),
                "precision": "bf16-weights" if precision == "half" else precision,
                "token_budget": int(budget),
                "strategy": strategy,
                "gradient_checkpointing": "recompute" in flags,
            }
        )
        loss = BGEUnifiedConfig(use_self_distill=False, temperature=0.2).build(context)
        answer = train(adapted(out, *flags), loss, engine, ranks)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
