"""The config of the loss kind ``distilled``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from embed_core.config.component import LossConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_distill.losses.kd import DistilledLoss

DEFAULT: dict[str, Any] = {"kind": "teacher-kl", "over": "batch"}
"""Scores of queries and passages: they have no width, so that any teacher suits any student."""


class DistilledConfig(LossConfig):
    """Another loss, and learning from a teacher besides: ``(1 - alpha) · inner + alpha · kd``.

    The dataset has to have a teacher's vectors (kind ``with-teacher``), or what ``kd`` needs instead.
    """

    kind: Literal["distilled"] = "distilled"
    inner: LossConfig
    """The loss, of any kind."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher: 0 = only ``inner``, 1 = only ``kd``."""
    kd: LossConfig = cast("LossConfig", DEFAULT)  # validated by its kind, as one in a file
    """How it learns from the teacher: any loss that does. The default has the student rank the batch's passages as the
    teacher does, whatever the widths of their vectors."""

    def build(self, context: BuildContext) -> DistilledLoss:
        """The loss around the two. Raises what they raise."""
        from embed_distill.losses.kd import DistilledLoss

        return DistilledLoss(self, self.inner.build(context), self.kd.build(context))
