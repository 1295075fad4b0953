"""Activation checkpointing: keeps only the layers' inputs for the backward, which computes the rest again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from __future__ import annotations

import logging

from torch import nn

from embed_core.errors import ConfigError


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Switch on activation checkpointing in the outermost parts of ``model`` that have a method
    ``gradient_checkpointing_enable(options)``, as transformers' models do, with options of ``torch.utils.checkpoint``.

    Dropout repeats itself in the second computation, since torch restores the random state. With the non-reentrant
    variant the inputs need no gradient, so layers above a frozen embedding (LoRA) still get gradients.

    Raises ConfigError for a model without such a part.
    """
    logging.getLogger("transformers.utils.generic").addFilter(_is_relevant)
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
    # All children are asked, also after the first that can.
    return sum(_enable(child) for child in module.children()) > 0


def _is_relevant(record: logging.LogRecord) -> bool:
    """Suppress transformers' notice that checkpointing turns off the key-value cache, which training does not use."""
    return "`use_cache=True` is incompatible with gradient checkpointing" not in str(record.msg)
