"""A teacher for any run: what a recipe's ``teacher_model_name`` makes of it. The kinds are embed-distill's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed_core.config.registry import Registry
from embed_core.errors import ConfigError

DATA, LOSS = "with-teacher", "distilled"


def taught(run: Mapping[str, Any], teacher: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """A plain run whose rows have the teacher's vectors, and whose loss is (1 - alpha) of its own and alpha of the
    teacher's; every phase likewise. What has a teacher already keeps it."""
    phases = [_taught(phase, teacher, alpha) for phase in run.get("phases") or ()]
    return {**_taught(run, teacher, alpha), "phases": phases}


def check_kinds(registry: Registry, place: str, name: object) -> None:
    """Raises ConfigError where embed-distill is not active; ``place`` is where the teacher was named."""
    for slot, kind in (("dataset", DATA), ("loss", LOSS)):
        if kind not in registry.kinds(slot):
            raise ConfigError(
                f"{place + ': ' if place else ''}teacher_model_name {name!r} needs embed-distill for the {slot} kind "
                f"{kind!r}, and it is not active: pip install embed-distill, or add --plugin distill"
            )


def _taught(part: Mapping[str, Any], teacher: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    found = dict(part)
    data, loss = part.get("data"), part.get("loss")
    if data is not None and data.get("kind") != DATA:
        found["data"] = {"kind": DATA, "inner": data, "teachers": [dict(teacher)]}
    if loss is not None and loss.get("kind") != LOSS:
        found["loss"] = {"kind": LOSS, "inner": loss, "alpha": alpha}
    return found
