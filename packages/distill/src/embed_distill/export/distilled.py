"""Exports a distilled model: the student in another layout and, where configured, the router of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from embed_core.protocols import ExportsOtherwise, provides
from embed_distill.card import append_router
from embed_distill.export.router import FOLDER, write_router
from embed_distill.models.projected import ProjectedModel

if TYPE_CHECKING:
    from embed_core.export.model_card import RunCard
    from embed_core.protocols import Checkpointer
    from embed_distill.export.config import DistilledCheckpointConfig


class DistilledCheckpointer:
    """Writes the inner layout, the projection of a ``projected`` model, and ``router/`` where the config has one."""

    def __init__(self, config: DistilledCheckpointConfig, inner: Checkpointer, teacher: Path | None) -> None:
        """``teacher`` is the directory of ``config.router``'s teacher."""
        self.config, self.inner, self.teacher = config, inner, teacher

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """Implements :meth:`embed_core.protocols.Checkpointer.export`. Raises CheckpointError where student and teacher
        cannot be one model, and what the inner layout raises."""
        if isinstance(model, ProjectedModel):
            model.write(self.inner, state, directory, card)
        elif provides(model, ExportsOtherwise):
            model.export_with(self.inner, state, directory, card)
        else:
            self.inner.export(model, state, directory, card)
        if self.config.router is not None:
            assert self.teacher is not None
            write_router(directory, self.teacher, self.config.router)
            append_router(directory, FOLDER)
