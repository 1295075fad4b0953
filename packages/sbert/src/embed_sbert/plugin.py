"""Registers the components of ``embed-sbert``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embed_core.config.component import CheckpointConfig, LossConfig, ModelConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from embed_core.events import RunEvent

EMBED_REQUIRES = ("data",)
"""Plugins that are activated with this one: the recipe's dataset kinds are embed-data's."""
EMBED_USES = ("distill", "mrl")
"""Plugins whose add-ons this recipe takes if they are installed: a teacher, and Matryoshka."""


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``sentence-transformers``: whatever ``SentenceTransformer`` loads."""
    from embed_sbert.config import SentenceTransformersModelConfig

    return [SentenceTransformersModelConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``multiple-negatives-ranking``, and ``sentence-transformers-loss``: any of theirs."""
    from embed_sbert.loss_config import MultipleNegativesRankingConfig, SentenceTransformersLossConfig

    return [MultipleNegativesRankingConfig, SentenceTransformersLossConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``sentence-transformers``: a plain sentence-transformers directory."""
    from embed_sbert.config import SentenceTransformersCheckpointConfig

    return [SentenceTransformersCheckpointConfig]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``sbert``, the recipe of ``embed run --plugin sbert``."""
    from embed_sbert.recipe import SbertRecipe

    return [SbertRecipe]


@hookimpl
def embed_run_ended(event: RunEvent) -> None:
    """Puts the finished model where the recipe's ``output`` says."""
    from embed_sbert.publish import is_asked_for, publish

    if event.rank == 0 and event.error is None and event.export_dir is not None and is_asked_for(event.output_dir):
        publish(event.output_dir, event.export_dir)
