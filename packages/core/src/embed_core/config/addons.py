"""Add-ons: what wraps a run of any recipe, each with keys of its own (a teacher, Matryoshka, LoRA)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from embed_core.config.component import Section

if TYPE_CHECKING:
    from embed_core.config.registry import Registry


class AddOn(Section):
    """A wrapper of a compiled run. Its fields are keys that users write beside those of any recipe.

    It is applied last, to what the recipe, the config file and ``--set`` have made of the run: their keys mean what
    they mean without it. Several add-ons wrap in the order of ``order``, whatever plugins they are from.
    """

    name: ClassVar[str]
    """By this name a recipe gives its keys other defaults, or refuses it (``Recipe.addons``)."""
    order: ClassVar[int]
    """Add-ons with a smaller number wrap first, so they are further inside. The core's LoRA has 10, Matryoshka 20, a
    teacher 30."""

    @abstractmethod
    def is_on(self) -> bool:
        """Whether its keys ask for it. One that is off leaves the run as it is."""

    @abstractmethod
    def wrap(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """``part`` with wrapped components.

        ``part`` is the run as plain data (``model``, ``data``, ``loss``, ``checkpoint``, ``evaluation``, …), and then
        each of its phases, in which a component that is the run's own is None or missing. What is wrapped already, and
        so was written out by the user, stays as it is.
        """


def wrapped(run: Mapping[str, Any], addon: AddOn) -> dict[str, Any]:
    """A plain run in which ``addon`` has wrapped the run itself and every phase."""
    phases = [addon.wrap(phase) for phase in run.get("phases") or ()]
    return {**addon.wrap(run), "phases": phases}


def replaced(part: Mapping[str, Any], slot: str, kind: str, wrap: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """``part`` with ``wrap`` of its component in ``slot``, unless there is none, or it is of ``kind`` already."""
    component = part.get(slot)
    if component is None or component.get("kind") == kind:
        return dict(part)
    return {**part, slot: {"kind": kind, **wrap(component)}}


def given_by_user(addon: AddOn, context: Any) -> set[str]:
    """For validators of ``addon``: the keys that somebody wrote. Defaults that a recipe has for them are left out."""
    return set((context or {}).get("given_keys", addon.model_fields_set))


def offered_keys(registry: Registry | None) -> dict[str, str]:
    """Key of an add-on → the plugin that has it: of ``registry``, or without one of all that is installed."""
    if registry is None:
        from embed_core.plugin.manager import installed_registry

        registry = installed_registry()
    return {key: registry.owner("add-on key", key) for addon in registry.addons() for key in addon.model_fields}
