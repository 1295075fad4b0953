"""Two-phase distillation: the keys that its users know, compiled into a run of two phases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from embed_core.config.recipe import Recipe
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_distill.recipe.sections import ModelSection, PathsSection, Phase1Section, Phase2Section, TrainingSection

CONFIGS = Path(__file__).parents[1] / "configs"


class DistillRecipe(Recipe):
    """A teacher's vectors into a smaller student: first on plain texts, then on retrieval rows.

    The configs ``default``, ``mrl``, ``quick_test`` and others come with it: ``--config NAME`` finds them.
    """

    name: ClassVar[str] = "distill"
    addons: ClassVar[Mapping[str, Mapping[str, Any] | str]] = {
        "teacher": "recipe distill has a teacher anyway: set model.teacher instead",
        "matryoshka": "recipe distill has dimensions of its own: set model.use_projection: false and model.mrl_dims",
    }

    model: ModelSection = Field(default_factory=ModelSection)
    """The teacher and the student."""
    phase1: Phase1Section = Phase1Section()
    """General distillation, on plain texts."""
    phase2: Phase2Section = Phase2Section()
    """Retrieval, on rows with negatives."""
    paths: PathsSection = PathsSection()
    """Where things are written."""
    training: TrainingSection = TrainingSection()
    """Which phases run, and what becomes of the model."""

    _config_name: str = PrivateAttr("default")

    @classmethod
    def shipped(cls) -> Path:
        """See :meth:`embed_core.config.recipe.Recipe.shipped`."""
        return CONFIGS

    @field_validator("model")
    @classmethod
    def _mrl_is_there(cls, model: ModelSection, info: ValidationInfo) -> ModelSection:
        registry = (info.context or {}).get("registry")
        wanted = not model.use_projection and model.mrl_dims != ()
        if wanted and registry is not None and "matryoshka" not in registry.kinds("loss"):
            raise ValueError(
                "use_projection: false trains at several dimensions by embed-mrl, which is not installed or fails "
                "(`embed plugins` says which): `pip install embed-mrl`, or set model.mrl_dims to [] for the full one"
            )
        return model

    @field_validator("phase2")
    @classmethod
    def _one_length_from_scratch(cls, phase2: Phase2Section, info: ValidationInfo) -> Phase2Section:
        model, phase1 = info.data.get("model"), info.data.get("phase1")
        if model is None or phase1 is None or model.student != FROM_SCRATCH:
            return phase2
        first, second = phase1.max_length, phase2.max_length
        if first and second and first != second:
            raise ValueError(
                f"phase1.max_length {first} and phase2.max_length {second}: a student from scratch has one length, "
                "which its tokenizer is trained for: give both phases the same"
            )
        return phase2

    @field_validator("training")
    @classmethod
    def _places_are_as_they_must_be(cls, training: TrainingSection, info: ValidationInfo) -> TrainingSection:
        """Phase 1's model is there and the place for artifacts is not: at once, not after the data have been read."""
        if {"model", "paths"} <= info.data.keys():
            from embed_distill.recipe.phase1 import placed

            placed(info.data["model"], info.data["paths"], training, config_name(info.context))
        return training

    def model_post_init(self, context: Any) -> None:
        """Keeps the name of the config file: the experiment is called by it."""
        self._config_name = config_name(context)

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        from embed_distill.recipe.compile import Compiler

        return Compiler(self, self._config_name, world_size).run()

    def sanity(self) -> dict[str, Any]:
        """Models of some thousand weights, two hundred rows and texts; what the user set stays."""
        from embed_distill.recipe.sanity import sanity

        return sanity(self, self._config_name)


def config_name(context: Any) -> str:
    """That of the file, ``default`` without one."""
    return str((context or {}).get("config_name") or "default")
