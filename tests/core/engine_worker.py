"""Run as a process per rank by test_engine.py: trains the tiny model and writes what each step said."""

from __future__ import annotations

import json
import sys

import torch

from embed_core.config.run import EngineConfig, OptimizerConfig, TrainConfig
from embed_core.engine import sharding
from embed_core.engine.host_batch import draw, prepare, share
from embed_core.engine.ranks import join, leave
from embed_core.engine.step import Step
from embed_core.scoring import combined_scores
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.types import Batch, LossOutput, Targets


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


def main(out: str, stage: int, precision: str, budget: int, accumulation: int, clip: float) -> None:
    torch.set_num_threads(1)
    ranks = join("cpu")
    model, loss = TinyModel(), AllTermsLoss()
    engine_config = EngineConfig(zero_stage=stage, precision=precision, token_budget=budget)
    train = TrainConfig(
        gradient_accumulation_steps=accumulation,
        gradient_clipping=clip,
        optimizer=OptimizerConfig(learning_rate=0.01, epsilon=1e-3),
    )
    module = sharding.Trainable(model, loss)
    engine = sharding.initialize(module, engine_config, train, ranks, lambda line: None)
    step = Step(engine, model, loss, engine_config, ranks)
    dataset = tiny_dataset()
    log: list[dict[str, object]] = []
    for number in range(3):
        for micro in range(accumulation):
            # 7 rows: the ranks' shares differ, and so do their numbers of chunks.
            drawn = number * accumulation + micro
            rows = share(range(7 * drawn, 7 * drawn + 7), ranks.rank, ranks.world_size)
            host = prepare(model, draw(dataset, [r % len(dataset) for r in rows], 0, drawn))
            output = step.forward_backward(host, number)
            gradients = {}
            if micro == accumulation - 1:
                named = module.named_parameters()
                gradients = {n: sharding.gradient(engine, p) for n, p in named}
                # Copies: at stage 0 these are the gradients themselves, and clipping works in place.
                gradients = {n: g.clone() for n, g in gradients.items() if g is not None}
                norm = sharding.gradient_norm(engine) if stage == 0 and precision == "fp32" else None
            engine.step()
        norm = norm if norm is not None else sharding.gradient_norm(engine)
        flat = {n: g.flatten().tolist() for n, g in gradients.items()}
        log.append({"loss": float(output.loss), "gradients": flat, "norm": norm, "rows": output.rows})
    state = sharding.full_state(engine, module, ranks)
    if ranks.rank == 0:
        weights = {name: value.flatten().tolist() for name, value in state.items()}
        with open(out, "w", encoding="utf-8") as file:
            json.dump({"steps": log, "weights": weights}, file)
    leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))
