"""The optimizer: its parameter groups and learning rate, the norm of its gradient, and whether it took a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from embed_core.config.run import OptimizerConfig
from embed_core.errors import ConfigError


def parameter_groups(module: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices have weight decay, biases and normalisation weights have none."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("the model has no trainable parameter: unfreeze some, or there is nothing to train")
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    groups = [(matrices, optimizer.weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the learning rate of the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def gradient_norm(engine: Any) -> float | None:
    """The global norm before clipping. At stage 0 ask between backward and step, else after the step."""
    if engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def gradients_were_refused(engine: Any) -> bool:
    """Whether DeepSpeed refused the last step, and changed nothing, because a gradient was NaN or infinite.

    Not in fp16, whose loss scale overflows from time to time as a matter of course, and not at stage 0, where nobody
    looks: there :func:`gradient_norm` is asked before the step.
    """
    if engine.zero_optimization_stage() == 0 or engine.fp16_enabled():
        return False
    return bool(engine.optimizer.overflow)


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """The number of elements, those of other ranks' shards included."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in parameters)
