"""Resets DeepSpeed after a step that failed, for instance for memory, so that it can be retried."""

from __future__ import annotations

from typing import Any

import torch

from embed_core.zero.optimizer import count_parameters


def drop_gradients(engine: Any) -> None:
    """Drop the gradients accumulated since the last optimizer step, also those of an interrupted backward.

    Local to this rank. Weights and optimizer states stay what they are. After it the engine accumulates as if the step
    had just begun, at every ZeRO stage.
    """
    on_cuda = next(engine.module.parameters()).is_cuda
    if on_cuda:  # gradients may be on their way on a stream of DeepSpeed's own
        torch.cuda.synchronize()
    engine.zero_grad()
    tables = getattr(engine.module, "tables", None)
    if tables is not None:  # held between the backwards of a step
        tables.forget()
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage > 0:
        optimizer.zero_grad(set_to_none=True)
        _forget_backward(optimizer)
        (_forget_sharded_weights if stage == 3 else _forget_buckets)(engine)
    if on_cuda:
        torch.cuda.empty_cache()


def _forget_backward(optimizer: Any) -> None:
    """Reset DeepSpeed's depth of nested backwards, which an interrupted one never leaves."""
    hooks = optimizer._backward_hook_state
    hooks.reset_for_new_step()
    hooks.backward_active_depth = 0
    hooks.remaining_grad_acc_hooks = 0


def _forget_buckets(engine: Any) -> None:
    """Stages 1 and 2: drop gradients on their way to the ranks that own them, and those that have arrived."""
    optimizer = engine.optimizer
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear()
    optimizer.extra_large_param_to_reduce.clear()
    optimizer.previous_reduced_grads.clear()
    optimizer._release_ipg_buffers()
    optimizer.params_already_reduced = [False] * len(optimizer.params_already_reduced)
    for gradients in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
        for group in gradients:
            gradients[group] = None
    optimizer.micro_step_id = -1


def _forget_sharded_weights(engine: Any) -> None:
    """Stage 3: drop the same, and release weights that the interrupted forward or backward had gathered."""
    optimizer = engine.optimizer
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear_params()
    for parameter in optimizer.params_already_reduced:
        optimizer.params_already_reduced[parameter] = False
    optimizer.averaged_gradients = {}
    coordinator = optimizer.parameter_offload.get_param_coordinator()
    coordinator.release_backward_leftovers()
    if not coordinator.is_invalid_trace():
        # DeepSpeed recorded the order of the forwards only up to the interruption, and has to record it again.
        coordinator._invalidate_trace()
    optimizer.parameter_offload.partition_all_parameters()
    for module in engine.module.modules():
        if hasattr(module._parameters, "_in_forward"):
            module._parameters._in_forward = False


def reserved_bytes(engine: Any, world_size: int) -> int:
    """Bytes that backward and optimizer will still take on this rank: gradients, states, buckets."""
    stage = engine.zero_optimization_stage()
    trained = count_parameters(p for p in engine.module.parameters() if p.requires_grad)
    gradients = 4 * trained // (world_size if stage >= 2 else 1)
    # AdamW makes its two moments at the first step; a resumed run has them already.
    states = 0 if engine.optimizer.state else 8 * trained // (world_size if stage >= 1 else 1)
    buckets = 0
    if stage in (1, 2) and next(engine.module.parameters()).is_cuda:
        buckets = 4 * int(engine.optimizer.reduce_bucket_size) * (2 if engine.optimizer.overlap_comm else 1)
    return gradients + states + buckets
