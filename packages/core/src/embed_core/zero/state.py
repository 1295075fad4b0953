"""Reads full gradients and weights from an engine at every ZeRO stage, for exports and for `embed prove`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embed_core.distributed.process_group import Ranks
from embed_core.zero import frozen


def full_gradient(engine: Any, parameter: nn.Parameter) -> Tensor | None:
    """The full averaged fp32 gradient of ``parameter``, on every rank; a collective, between backward and step."""
    if engine.zero_optimization_stage() == 0:
        return parameter.grad
    from deepspeed.utils import safe_get_full_grad

    full: Tensor | None = safe_get_full_grad(parameter)
    return full


def full_state(engine: Any, module: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """fp32 CPU weights and buffers of ``module`` (a part of the engine's) on rank 0; empty elsewhere. A collective."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        value = _full_value(engine, parameter)
        if ranks.rank == 0:
            # Copy after the gather, in which all ranks take part.
            state[name] = frozen.exact_value(parameter, value).detach().to("cpu", torch.float32, copy=True)
    if ranks.rank == 0:
        persistent = module.state_dict(keep_vars=True).keys()
        for name, buffer in module.named_buffers():
            if name in persistent:
                state[name] = buffer.detach().to("cpu", copy=True)
    return state


def _full_value(engine: Any, parameter: nn.Parameter) -> Tensor:
    """Master weights where the engine keeps some; a frozen parameter has none and is read (gathered) as it is."""
    if engine.zero_optimization_stage() > 0 and parameter.requires_grad:
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor | None = safe_get_full_fp32_param(parameter)
        if value is not None:
            return value.view(getattr(parameter, "ds_shape", parameter.shape))
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter
