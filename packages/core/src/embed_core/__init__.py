"""embed-core: hook specs, registry, config and the one DeepSpeed loop that trains every embedding model.

What plugins use most can be imported from here; each name is loaded on first use: ``import embed_core`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "BuildContext",
    "CheckpointConfig",
    "DatasetConfig",
    "EvaluatorConfig",
    "LossConfig",
    "ModelConfig",
    "Recipe",
    "SamplerConfig",
    "Section",
    "hookimpl",
]

if TYPE_CHECKING:
    from embed_core.config.component import (
        CheckpointConfig,
        DatasetConfig,
        EvaluatorConfig,
        LossConfig,
        ModelConfig,
        SamplerConfig,
        Section,
    )
    from embed_core.config.context import BuildContext
    from embed_core.config.recipe import Recipe
    from embed_core.plugin.hookspecs import hookimpl

_ELSEWHERE = {"BuildContext": "config.context", "Recipe": "config.recipe", "hookimpl": "plugin.hookspecs"}


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'config.component')}"), name)
