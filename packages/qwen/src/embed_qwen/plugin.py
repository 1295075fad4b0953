"""Registers the components of ``embed-qwen``."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.config.component import CheckpointConfig, DatasetConfig, LossConfig, ModelConfig, SamplerConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

EMBED_REQUIRES = ("data",)
"""Plugins that are activated with this one: the recipe's dataset kinds are embed-data's."""
EMBED_USES = ("distill", "mrl")
"""Plugins whose add-ons this recipe takes if they are installed: a teacher, and Matryoshka."""


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``qwen3-embedding``."""
    from embed_qwen.model_config import Qwen3EmbeddingConfig

    return [Qwen3EmbeddingConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``qwen3-embedding``."""
    from embed_qwen.model_config import Qwen3CheckpointConfig

    return [Qwen3CheckpointConfig]


@hookimpl
def embed_register_samplers() -> Sequence[type[SamplerConfig]]:
    """``curriculum``."""
    from embed_qwen.curriculum_config import CurriculumConfig

    return [CurriculumConfig]


@hookimpl
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """``banded``."""
    from embed_qwen.curriculum_config import BandedConfig

    return [BandedConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``qwen3-infonce``, and ms-swift's four."""
    from embed_qwen.losses_config import (
        Qwen3InfoNCEConfig,
        SwiftContrastiveConfig,
        SwiftCosineSimilarityConfig,
        SwiftInfoNCEConfig,
        SwiftOnlineContrastiveConfig,
    )

    return [
        Qwen3InfoNCEConfig,
        SwiftInfoNCEConfig,
        SwiftCosineSimilarityConfig,
        SwiftContrastiveConfig,
        SwiftOnlineContrastiveConfig,
    ]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``qwen``, the recipe of ``embed run --plugin qwen``."""
    from embed_qwen.recipe import QwenRecipe

    return [QwenRecipe]
