"""Registers the components of ``embed-distill``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer

    from embed_core.config.addons import AddOn
    from embed_core.config.component import CheckpointConfig, DatasetConfig, EvaluatorConfig, LossConfig, ModelConfig
    from embed_core.config.recipe import Recipe
    from embed_core.events import RunEvent

EMBED_REQUIRES = ("data",)
"""Plugins that are activated with this one: the recipe's dataset kinds are embed-data's."""
EMBED_USES = ("mrl",)
"""embed-mrl is activated too where it is installed: the recipe's MRL mode compiles to its components."""


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``projected`` wraps a model with a projection; ``from-teacher`` starts one from a teacher's layers."""
    from embed_distill.models.config import FromTeacherModelConfig, ProjectedModelConfig

    return [ProjectedModelConfig, FromTeacherModelConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """Losses against a teacher, ``spread-out``, ``weighted-sum``; ``distilled`` adds a teacher to any loss."""
    from embed_distill.losses.config import (
        DistilledConfig,
        MarginMSEConfig,
        SpreadOutConfig,
        TeacherCosineConfig,
        TeacherKLConfig,
        TeacherL2Config,
        TeacherMSEConfig,
        TeacherSimilarityConfig,
        WeightedSumConfig,
    )

    return [
        TeacherMSEConfig,
        TeacherCosineConfig,
        TeacherL2Config,
        TeacherSimilarityConfig,
        TeacherKLConfig,
        MarginMSEConfig,
        SpreadOutConfig,
        WeightedSumConfig,
        DistilledConfig,
    ]


@hookimpl
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """``plain-texts``; ``with-teacher`` and ``with-trained-teacher`` wrap a dataset with a teacher's vectors."""
    from embed_distill.datasets.config import PlainTextsConfig, WithTeacherConfig
    from embed_distill.teacher.train_config import WithTrainedTeacherConfig

    return [PlainTextsConfig, WithTeacherConfig, WithTrainedTeacherConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``distilled`` may add a router of student and teacher to a layout; ``artifacts`` copies its export."""
    from embed_distill.export.config import ArtifactsConfig, DistilledCheckpointConfig

    return [DistilledCheckpointConfig, ArtifactsConfig]


@hookimpl
def embed_register_evaluators() -> Sequence[type[EvaluatorConfig]]:
    """``two-by-two``, the asymmetric evaluation of student and teacher."""
    from embed_distill.evaluation.config import TwoByTwoConfig

    return [TwoByTwoConfig]


@hookimpl
def embed_register_addons() -> Sequence[type[AddOn]]:
    """``teacher``: the keys ``teacher_model_name`` and ``distillation_alpha``, in any recipe."""
    from embed_distill.addon import TeacherAddOn

    return [TeacherAddOn]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``distill``, the recipe that ``embed run --plugin distill`` runs."""
    from embed_distill.recipe.recipe import DistillRecipe

    return [DistillRecipe]


@hookimpl
def embed_register_commands(app: typer.Typer) -> None:
    """``embed teacher build | stats | verify | gc``."""
    from embed_distill.commands import app as teacher

    app.add_typer(teacher, name="teacher")


@hookimpl(trylast=True)
def embed_run_ended(event: RunEvent) -> None:
    """Print the 2×2 table after the display's own output, and make the copy of the model that the recipe asks for."""
    from embed_distill.export.run_end import ended

    if event.rank == 0 and event.error is None:
        ended(event)
