"""The add-on ``teacher``: a teacher beside the loss of any run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from embed_core.config.addons import AddOn, replaced


class TeacherAddOn(AddOn):
    """Adds a teacher's vectors to the rows (dataset kind ``with-teacher``) and its term to the loss (``distilled``)."""

    name: ClassVar[str] = "teacher"
    order: ClassVar[int] = 30

    teacher_model_name: str | None = None
    """A teacher to learn from as well: a model directory or a model of the hub; None = none."""
    distillation_alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's term in the loss; the recipe's own loss has the rest."""
    teacher_kind: str | None = None
    """Kind of the teacher's model (``vision``); None = a text model of transformers or sentence-transformers."""

    def is_on(self) -> bool:
        """See :meth:`embed_core.config.addons.AddOn.is_on`."""
        return self.teacher_model_name is not None

    def wrap(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """The loss becomes (1 - alpha) of itself and alpha of the teacher's."""
        teacher: dict[str, Any] = {"name_or_path": self.teacher_model_name}
        if self.teacher_kind is not None:
            teacher = {"model": {"kind": self.teacher_kind, **teacher}}
        taught = replaced(part, "data", "with-teacher", lambda data: {"inner": data, "teachers": [teacher]})
        return replaced(taught, "loss", "distilled", lambda loss: {"inner": loss, "alpha": self.distillation_alpha})
