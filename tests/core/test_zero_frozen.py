"""What half precision would round off frozen weights is kept for the export, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.testing.tiny import TinyModel
from embed_core.zero import frozen
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.state import full_state


def kept(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if frozen.exact_value(p, torch.empty(0)).numel()}


@pytest.mark.parametrize(
    ("precision", "rank", "names"), [("bf16-weights", 0, {"0.weight"}), ("fp32", 0, set()), ("bf16-weights", 1, set())]
)
def test_only_what_would_be_lost_is_kept(precision: str, rank: int, names: set[str]) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    module[:2].requires_grad_(False)
    for parameter in (module[0].bias, *module[1].parameters()):
        parameter.data.fill_(0.5)  # bf16 has it
    frozen.keep_exact(module, EngineConfig(precision=precision), Ranks(rank, 2, 0, "cpu"))
    assert kept(module) == names


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_in_half_precision_returns_frozen_weights_unrounded(stage: int) -> None:
    ranks = join("cpu")
    try:
        model = TinyModel()
        model.embedding.requires_grad_(False)
        before = model.embedding.weight.detach().clone()
        config = EngineConfig(precision="bf16-weights", zero_stage=stage)
        engine = initialize(Trainable(model, None), config, TrainConfig(), ranks, lambda line: None)
        state = full_state(engine, model, ranks)
        assert torch.equal(state["embedding.weight"], before)
        assert not torch.equal(before, before.bfloat16().float())
    finally:
        leave()
