"""Run as a process per rank by test_engine.py: trains the tiny model and writes what each step said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from embed_core.batch.collate import draw_examples, make_host_batch, share_of_rank
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig, OptimizerConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.embeddings import slice_rows
from embed_core.losses import tiled_cross_entropy
from embed_core.losses.config import InfoNCEConfig, MaskConfig
from embed_core.scoring import combined_scores
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.train.step import Step
from embed_core.types import Batch, LossOutput, Targets
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.optimizer import gradient_norm
from embed_core.zero.state import full_gradient, full_state


class AllTermsLoss(torch.nn.Module):
    """A contrastive loss over all three kinds, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.log_scale.weight, 1.0)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        one = torch.ones(1, 1, dtype=self.log_scale.weight.dtype)
        scores = combined_scores(batch.query, batch.passage, {"dense": 1.0, "sparse": 0.3, "multi": 1.0})
        logits = scores * self.log_scale(one).float().exp()
        loss = torch.nn.functional.cross_entropy(logits, targets.positive_columns_B)
        return LossOutput(loss, {"all": loss.detach()})


class SharedRowsLoss(AllTermsLoss):
    """The same and InfoNCE in both directions, each rank computing its own rows only."""

    shares_rows = True

    def __init__(self) -> None:
        super().__init__()
        config = InfoNCEConfig(temperature=0.5, symmetric=True, mask=MaskConfig(margin=0.1))
        self.infonce = config.build(BuildContext(registry=Registry(), announce=lambda line: None))

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        B = batch.query.count
        start, stop = targets.own_rows or (0, B)
        own = Batch(slice_rows(batch.query, start, stop), batch.passage)
        share = super().forward(own, targets._replace(groups_B1=targets.groups_B1[start : stop + 1])).loss
        dense = self.infonce(batch, targets)
        return LossOutput(share * (stop - start) / B + dense.loss, dense.metrics)


def main(parts: str, out: Path, settings: list[str]) -> None:
    """Train once per setting ``stage-precision-budget-strategy`` and write ``out/{ranks}-{setting}.json`` each."""
    torch.set_num_threads(1)
    ranks = join("cpu")
    for setting in settings:
        stage, precision, budget, strategy = setting.split("-")
        engine = EngineConfig.model_validate(
            {"zero_stage": int(stage), "precision": precision, "token_budget": int(budget), "strategy": strategy}
        )
        answer = train(*PARTS[parts](out), engine, ranks)
        if ranks.rank == 0:
            (out / f"{ranks.world_size}-{setting}.json").write_text(json.dumps(answer))
    leave()


def tiny(out: Path) -> tuple[Any, Any]:
    """The tiny model, and a loss that has a parameter of its own."""
    return TinyModel(), AllTermsLoss()


def bge(out: Path) -> tuple[Any, Any]:
    """A small BGE-M3 and its unified loss with self-distillation, from a directory that ``out`` holds."""
    from embed_bge.config import BGEM3ModelConfig
    from embed_bge.loss_config import BGEUnifiedConfig

    context = BuildContext(registry=Registry(), announce=lambda line: None)
    model = BGEM3ModelConfig(name_or_path=str(out / "model")).build(context)
    # From the second step on the ensemble teaches, so both kinds of steps are compared.
    return model, BGEUnifiedConfig(use_self_distill=True, self_distill_start_step=0, temperature=0.2).build(context)


def shared(out: Path) -> tuple[Any, Any]:
    """The tiny model, and a loss that shares the rows; on several ranks also in tiles of a few similarities."""
    tiled_cross_entropy.TILE_BYTES = 60 if torch.distributed.get_world_size() > 1 else 2**20
    return TinyModel(), SharedRowsLoss()


PARTS = {"tiny": tiny, "bge": bge, "shared": shared}


def train(model: Any, loss: Any, engine_config: EngineConfig, ranks: Ranks) -> dict[str, object]:
    """Two optimizer steps: loss, gradients and norm of each, and the weights after the last."""
    # A large epsilon keeps Adam from hiding a wrong factor of the gradient.
    optimizer = OptimizerConfig(learning_rate=0.01, epsilon=1e-3)
    settings = TrainConfig(gradient_clipping=0.5, optimizer=optimizer)
    module = Trainable(model, loss)
    engine = initialize(module, engine_config, settings, ranks, lambda line: None)
    step = Step(engine, model, loss, engine_config, ranks)
    dataset = tiny_dataset()
    log: list[dict[str, object]] = []
    for number in range(3):
        # 7 rows: the ranks' shares differ, and so do their numbers of chunks.
        rows = [row % len(dataset) for row in range(7 * number, 7 * number + 7)]
        examples = draw_examples(dataset, share_of_rank(rows, ranks.rank, ranks.world_size), 0, number)
        output = step.forward_backward(make_host_batch(model, examples), number)
        # Copies: at stage 0 these are the gradients themselves, and clipping works in place.
        full = {name: full_gradient(engine, parameter) for name, parameter in module.named_parameters()}
        gradients = {name: value.flatten().tolist() for name, value in full.items() if value is not None}
        replicated = engine.zero_optimization_stage() == 0
        norm = gradient_norm(engine) if replicated else None
        engine.step()
        norm = norm if replicated else gradient_norm(engine)
        metrics = {name: float(value) for name, value in output.metrics.items()}
        loss_now = float(output.loss)
        log.append({"loss": loss_now, "metrics": metrics, "gradients": gradients, "norm": norm, "rows": output.rows})
    weights = {name: value.flatten().tolist() for name, value in full_state(engine, module, ranks).items()}
    return {"steps": log, "weights": weights}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
