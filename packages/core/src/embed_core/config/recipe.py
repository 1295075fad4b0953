"""Recipes: a plugin's own short config, compiled into a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ModelWrapValidatorHandler, PrivateAttr, ValidationInfo, model_validator

from embed_core.config.addons import offered_keys
from embed_core.config.component import Section


class Recipe(Section):
    """A plugin's own short config: the keys its users know, compiled into a run.

    A config file or ``--set`` may mix the recipe's keys with those of ``RunConfig`` (``engine.zero_stage``): a key
    that is a field of the recipe goes to the recipe, a key of an add-on (``teacher_model_name``) to the add-on, and
    every other one is laid over the compiled run. Keys that recipes share are in
    :mod:`embed_core.config.training_keys` and :mod:`embed_core.config.retrieval_keys`; a recipe inherits them.
    """

    name: ClassVar[str]
    """Equals the plugin's entry-point name for its default recipe."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Inherited key → the default that it has in this recipe."""
    by_model: ClassVar[Mapping[str, tuple[Any, Any]]] = {}
    """Key whose None stands for a value that suits the model → that value for a ``from-scratch`` model, and for one
    that is loaded. See :meth:`embed_core.config.retrieval_keys.ModelKeys.chosen`."""
    addons: ClassVar[Mapping[str, Mapping[str, Any] | str]] = {}
    """Name of an add-on → the defaults that its keys have in this recipe, or why this recipe does not take it."""

    _addon_keys: dict[str, Any] = PrivateAttr(default_factory=dict)

    @abstractmethod
    def compile(self, world_size: int) -> dict[str, Any]:
        """The run as a plain nested mapping, validated as ``RunConfig`` afterwards.

        ``world_size`` is the number of ranks: per-device batch sizes are multiplied by it.
        """

    def sanity(self) -> dict[str, Any]:
        """What ``--sanity`` lays over the compiled run, besides the core's own small steps: smaller data, model."""
        return {}

    @property
    def addon_keys(self) -> Mapping[str, Any]:
        """Keys of add-ons that were given beside the recipe's own, as they were written."""
        return self._addon_keys

    @classmethod
    def shipped(cls) -> Path | None:
        """The folder of the config files that come with the recipe, found by name (``--config NAME``); None = none."""
        return None

    @model_validator(mode="wrap")
    @classmethod
    def _keep_addon_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Keys that are not the recipe's, but those of an add-on, are kept aside. Any other unknown key is an error."""
        if not isinstance(value, Mapping):
            return handler(value)
        others = [key for key in value if key not in cls.model_fields]
        known = offered_keys((info.context or {}).get("registry")) if others else {}
        kept = {key: value[key] for key in others if key in known}
        recipe = handler({key: one for key, one in value.items() if key not in kept})
        recipe._addon_keys = kept
        return recipe

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Gives inherited keys the defaults of ``defaults``, and the help text what ``by_model`` says."""
        super().__pydantic_init_subclass__(**options)
        defaults, by_model = cls.__dict__.get("defaults", {}), cls.__dict__.get("by_model", {})
        for key in {**defaults, **by_model}:
            field = cls.model_fields[key] = copy(cls.model_fields[key])
            if key in defaults:
                field.default = defaults[key]
            if key in by_model:
                scratch, loaded = by_model[key]
                field.description = f"{field.description or ''} None = {loaded}, from scratch {scratch}.".strip()
        if defaults or by_model:
            cls.model_rebuild(force=True)
