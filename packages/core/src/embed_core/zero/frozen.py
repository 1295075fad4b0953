"""Keeps frozen weights exact in half precision: DeepSpeed has fp32 masters of trained weights only.

A frozen encoder under LoRA would leave its run with 8 bits of mantissa, and a merged export would not be the base plus
its adapter. So what rounding would lose is kept aside for the export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks

_ATTRIBUTE = "embed_exact"


def keep_exact(module: nn.Module, engine: EngineConfig, ranks: Ranks) -> None:
    """Copy, on rank 0's CPU, each frozen parameter that ``engine.precision`` cannot represent; called before the cast.

    A model that was published in bf16 loses nothing in bf16, and costs nothing here.
    """
    dtype = {"bf16-weights": torch.bfloat16, "fp16": torch.float16}.get(engine.precision)
    if dtype is None or ranks.rank != 0:
        return
    for parameter in module.parameters():
        value = parameter.detach()
        if not parameter.requires_grad and not torch.equal(value.to(dtype).to(value.dtype), value):
            setattr(parameter, _ATTRIBUTE, value.to("cpu", copy=True))


def exact_value(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """The exact value kept of ``parameter``, on rank 0; its own ``value`` where none had to be kept."""
    kept: Tensor = getattr(parameter, _ATTRIBUTE, value)
    return kept
