"""Copies a model without its weights; the copy is filled with those of a training state at the export."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError, ConfigError


class Structure:
    """Has to be made before DeepSpeed shards the model and hooks itself into it: after that it cannot be copied."""

    def __init__(self, model: nn.Module, handles: tuple[Any, ...]) -> None:
        """``handles`` are objects that refer into ``model`` and are copied with it, so that the copies belong together.

        The parameters take no memory, buffers are copied. Raises ConfigError for a model that cannot be copied.
        """
        hollow: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        try:
            self._parts: tuple[Any, tuple[Any, ...]] = copy.deepcopy((model, handles), hollow)
        except Exception as error:  # what pickling and __deepcopy__ raise
            raise ConfigError(
                f"model.inner: {type(model).__name__} cannot be adapted, because copy.deepcopy fails on it "
                f"({type(error).__name__}: {error}): keep locks, files and processes out of the model's attributes"
            ) from error

    def filled(self, state: Mapping[str, Tensor]) -> tuple[Any, tuple[Any, ...]]:
        """Build a new model and its handles with the tensors of ``state``, which are not copied.

        Raises CheckpointError where ``state`` lacks a parameter.
        """
        model, _ = self._parts
        tensors: dict[int, Any] = {}
        for name, parameter in model.named_parameters():
            if name not in state:
                raise CheckpointError(f"the weights to export lack {name!r}: the training state is incomplete")
            tensors[id(parameter)] = nn.Parameter(state[name], requires_grad=parameter.requires_grad)
        tensors |= {id(buffer): state[name] for name, buffer in model.named_buffers() if name in state}
        return copy.deepcopy(self._parts, tensors)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, as :meth:`embed_core.protocols.Checkpointer.export` takes them."""
    saved = model.state_dict(keep_vars=True).keys()
    buffers = {name: value for name, value in model.named_buffers() if name in saved}
    return {name: value.detach() for name, value in {**dict(model.named_parameters()), **buffers}.items()}
