"""Sentence-transformers models and losses for embed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SbertRecipe", "SbertTrainer"]

if TYPE_CHECKING:
    from embed_sbert.recipe import SbertRecipe
    from embed_sbert.trainer import SbertTrainer


def __getattr__(name: str) -> Any:
    """Import on first use, because the plugin must load without torch."""
    if name == "SbertRecipe":
        from embed_sbert.recipe import SbertRecipe

        return SbertRecipe
    if name == "SbertTrainer":
        from embed_sbert.trainer import SbertTrainer

        return SbertTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
