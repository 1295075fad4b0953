"""Registers the components of ``embed-vision``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embed_core.config.component import CheckpointConfig, DatasetConfig, EvaluatorConfig, LossConfig, ModelConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from embed_core.events import RunEvent

EMBED_USES = ("mrl", "distill")
"""Plugins whose add-ons (Matryoshka, a teacher) this one's recipe takes where they are installed."""


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``vision`` chooses between ``clip``, ``composed`` and ``vlm``."""
    from embed_vision.models.config import ClipConfig, ComposedConfig, VisionConfig, VlmConfig

    return [VisionConfig, ClipConfig, ComposedConfig, VlmConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``vision`` writes model, processor and config."""
    from embed_vision.models.config import VisionCheckpointConfig

    return [VisionCheckpointConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """The losses ``clip``, ``siglip``, ``triplet`` and ``cosent``."""
    from embed_vision.losses.config import ClipLossConfig, CoSENTLossConfig, SiglipLossConfig, TripletLossConfig

    return [ClipLossConfig, SiglipLossConfig, TripletLossConfig, CoSENTLossConfig]


@hookimpl
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """``image-text`` reads rows with pictures from files; ``pictures`` has the embedded ones."""
    from embed_vision.datasets.config import ImageTextConfig, PicturesConfig

    return [ImageTextConfig, PicturesConfig]


@hookimpl
def embed_register_evaluators() -> Sequence[type[EvaluatorConfig]]:
    """``image-text-retrieval`` in either direction, with a gallery; ``validation-loss``."""
    from embed_vision.evaluation.config import ImageTextRetrievalConfig, ValidationLossConfig

    return [ImageTextRetrievalConfig, ValidationLossConfig]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``vision``, the recipe that ``embed run --plugin vision`` runs."""
    from embed_vision.recipe.recipe import VisionRecipe

    return [VisionRecipe]


@hookimpl(trylast=True)
def embed_run_ended(event: RunEvent) -> None:
    """Write the galleries of sample queries, before and after, into the run's directory, where an evaluation asks."""
    from embed_vision.evaluation.gallery import write_albums

    write_albums(event)
