"""Qwen3-Embedding and its three-stage curriculum, via ms-swift, for embed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["QwenTrainer", "QwenTrainerConfig", "create_qwen_trainer"]

if TYPE_CHECKING:
    from embed_qwen.recipe import QwenRecipe as QwenTrainerConfig
    from embed_qwen.trainer import QwenTrainer, create_qwen_trainer


def __getattr__(name: str) -> Any:
    """Import on first use, because the plugin must load without torch."""
    if name == "QwenTrainerConfig":
        from embed_qwen.recipe import QwenRecipe

        return QwenRecipe
    if name == "QwenTrainer":
        from embed_qwen.trainer import QwenTrainer

        return QwenTrainer
    if name == "create_qwen_trainer":
        from embed_qwen.trainer import create_qwen_trainer

        return create_qwen_trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
