"""Gradient checkpointing: keep the inputs of the layers for the backward, and compute the rest again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

import logging

from torch import nn

from embed_core.errors import ConfigError


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Switch it on in the outermost parts of ``model`` that have a ``gradient_checkpointing_enable(options)``:
    transformers' models do, and a model may define its own, called with the arguments of ``torch.utils.checkpoint``.

    Dropout repeats itself in the second computation: torch puts the random state of the first one back. Without
    re-entrance the inputs need no gradient, so a frozen embedding below (LoRA) takes nothing from the layers above it.

    Raises ConfigError for a model without such a part.
    """
    logging.getLogger("transformers.utils.generic").addFilter(_says_something)
    if not _enable(model):
        raise ConfigError(
            f"engine.gradient_checkpointing: {type(model).__name__} has no part that can compute its layers again: "
            "set it to false, and engine.strategy to 'cached' to save memory"
        )


def _enable(module: nn.Module) -> bool:
    enable = getattr(module, "gradient_checkpointing_enable", None)
    # transformers' models say whether theirs works.
    if callable(enable) and getattr(module, "supports_gradient_checkpointing", True):
        enable({"use_reentrant": False})
        return True
    # All of them are asked, also after the first that can.
    return sum(_enable(child) for child in module.children()) > 0


def _says_something(record: logging.LogRecord) -> bool:
    """transformers notes of every model that it keeps no cache of keys and values now: training wants none anyway."""
    return "`use_cache=True` is incompatible with gradient checkpointing" not in str(record.msg)
