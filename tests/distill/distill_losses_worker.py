"""Run as a process per rank by test_distill_losses_engine.py: a projected tiny model under all losses at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from engine_worker import train
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.losses.config import InfoNCEConfig
from embed_core.testing.tiny import TinyModel
from embed_core.types import Batch, LossOutput, Targets, TeacherVectors
from embed_core.zero.engine import Trainable, initialize
from embed_distill.losses import config as configs
from embed_distill.models.projected import ProjectedModel
from embed_distill.models.projection import Layer, projection_of

WIDTH = 24
TERMS: dict[str, Any] = {
    "nce": InfoNCEConfig(temperature=0.5),
    "mse": configs.TeacherMSEConfig(),
    "cosine": configs.TeacherCosineConfig(texts="queries"),
    "l2": configs.TeacherL2Config(texts="passages"),
    "similarity": configs.TeacherSimilarityConfig(),
    "kl": configs.TeacherKLConfig(temperature=0.3),
    "batch": configs.TeacherKLConfig(temperature=0.3, over="batch"),
    "margins": configs.MarginMSEConfig(),
    "spread": configs.SpreadOutConfig(mean_weight=1.0),
}


class Taught(nn.Module):
    """The sum of all terms; a teacher's vectors follow from the texts' hashes, so every rank has the same."""

    shares_rows = True

    def __init__(self) -> None:
        super().__init__()
        terms = {name: configs.TermConfig(loss=loss) for name, loss in TERMS.items()}
        config = configs.WeightedSumConfig(terms=terms, auto_scale=True)
        self.sum = config.build(BuildContext(registry=Registry(), announce=lambda line: None))

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        teacher = TeacherVectors(_vectors(targets.query_ids_B), _vectors(targets.passage_ids_P))
        found: LossOutput = self.sum(batch, targets._replace(teacher=teacher))
        return found


def _vectors(ids: Tensor) -> Tensor:
    drawn = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(abs(one))) for one in ids.tolist()]
    return torch.stack(drawn)


def student() -> ProjectedModel:
    layers = (Layer(16, 20, True, "gelu"), Layer(20, WIDTH, True, "identity"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ProjectedModel(TinyModel(), projection_of(layers))


def restored(engine_config: EngineConfig, ranks: Ranks, out: Path, setting: str) -> list[float]:
    """The scales of a new engine after loading the state of one in which they were measured."""
    found = []
    for mark in (5.0, None):
        loss = Taught()
        if mark is not None:
            loss.sum.scale_bits.copy_(torch.full((len(TERMS),), mark, dtype=torch.float64).view(torch.int64))
        module = Trainable(student(), loss)
        engine = initialize(module, engine_config, TrainConfig(), ranks, lambda line: None)
        if mark is not None:
            engine.save_checkpoint(str(out / f"state-{setting}"), tag="state", save_latest=False)
        else:
            engine.load_checkpoint(str(out / f"state-{setting}"), tag="state", load_lr_scheduler_states=False)
        ranks.barrier()
        found = loss.sum.scales.tolist()
    return found


def main(out: Path, settings: list[str]) -> None:
    """Train once per setting ``stage-strategy-budget`` and write ``out/{ranks}-{setting}.json`` each."""
    torch.set_num_threads(1)
    ranks = join("cpu")
    for setting in settings:
        stage, strategy, budget = setting.split("-")
        engine = EngineConfig.model_validate(
            {"zero_stage": int(stage), "precision": "fp32", "token_budget": int(budget), "strategy": strategy}
        )
        loss = Taught()
        answer = train(student(), loss, engine, ranks)
        answer["scales"] = loss.sum.scales.tolist()
        answer["restored"] = restored(engine, ranks, out, setting)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
