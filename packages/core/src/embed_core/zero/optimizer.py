"""The optimizer's parameter groups, its learning rate, and counting parameters under ZeRO."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from embed_core.config.run import OptimizerConfig
from embed_core.errors import ConfigError


def parameter_groups(module: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, biases and normalisation weights (one-dimensional) do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("the model has no trainable parameter: unfreeze some, or there is nothing to train")
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    groups = [(matrices, optimizer.weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """For the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Elements, sharded ones included."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in parameters)
