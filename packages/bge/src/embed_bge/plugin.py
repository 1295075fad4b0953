"""Registers the components of ``embed-bge``."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.config.component import CheckpointConfig, LossConfig, ModelConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

EMBED_REQUIRES = ("data",)
"""Plugins that are activated with this one: the recipe's dataset kind is embed-data's."""
EMBED_USES = ("distill", "mrl")
"""Plugins whose add-ons this recipe takes if they are installed: a teacher, and Matryoshka."""


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``bge-m3``."""
    from embed_bge.config import BGEM3ModelConfig

    return [BGEM3ModelConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``bge-unified``."""
    from embed_bge.loss_config import BGEUnifiedConfig

    return [BGEUnifiedConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``bge-m3``."""
    from embed_bge.config import BGEM3CheckpointConfig

    return [BGEM3CheckpointConfig]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``bge``, the recipe of ``embed run --plugin bge``."""
    from embed_bge.recipe import BGERecipe

    return [BGERecipe]
