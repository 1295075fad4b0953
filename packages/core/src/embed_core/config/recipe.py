"""Recipes: a plugin's own short config, compiled into a run."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from embed_core.config.component import Section


class Recipe(Section):
    """A plugin's own short config: the keys its users know, compiled into a run.

    A config file or ``--set`` may mix the recipe's keys with those of ``RunConfig`` (``engine.zero_stage``): a key
    that is a field of the recipe goes to the recipe, every other one is laid over the compiled run.
    """

    name: ClassVar[str]
    """Equals the plugin's entry-point name for its default recipe."""

    teacher_model_name: str | None = None
    """A teacher to learn from besides, for any recipe: a model directory or a model of the hub (needs embed-distill);
    None = none."""
    distillation_alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher in the loss, where there is one; the recipe's own loss has the rest."""

    @abstractmethod
    def compile(self, world_size: int) -> dict[str, Any]:
        """The run as a plain nested mapping, validated as ``RunConfig`` afterwards.

        ``world_size`` is the number of ranks: per-device batch sizes are multiplied by it.
        """

    def sanity(self) -> dict[str, Any]:
        """What ``--sanity`` lays over the compiled run, besides the core's own small steps: smaller data, model."""
        return {}

    def teacher(self) -> dict[str, Any] | None:
        """The teacher as a mapping of embed-distill's, ``None`` without one. A recipe whose items are no texts, or that
        compiles its teacher itself, has its own."""
        return None if self.teacher_model_name is None else {"name_or_path": self.teacher_model_name}

    @classmethod
    def shipped(cls) -> Path | None:
        """The folder of the config files that come with the recipe, found by name (``--config NAME``); None = none."""
        return None
