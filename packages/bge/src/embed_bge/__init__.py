"""BGE-M3 unified fine-tuning (Chen et al. 2024, arXiv 2402.03216)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["BGEM3Model", "BGETrainer", "BGETrainerConfig"]

if TYPE_CHECKING:
    from embed_bge.model import BGEM3Model
    from embed_bge.recipe import BGERecipe as BGETrainerConfig
    from embed_bge.trainer import BGETrainer


def __getattr__(name: str) -> Any:
    """Import on first use, because the plugin must load without torch."""
    if name == "BGETrainerConfig":
        from embed_bge.recipe import BGERecipe

        return BGERecipe
    if name == "BGEM3Model":
        from embed_bge.model import BGEM3Model

        return BGEM3Model
    if name == "BGETrainer":
        from embed_bge.trainer import BGETrainer

        return BGETrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
