"""A student with a projection into its teacher's space. Suffixes of :mod:`embed_core.types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from embed_core.embeddings import missing_kind
from embed_core.models.wrapper import WrappedModel, part_of
from embed_core.protocols import ExportsOtherwise, provides
from embed_core.text.pooling import at_least_float32
from embed_distill.card import append_alignment
from embed_distill.models import projection as files

if TYPE_CHECKING:
    from embed_core.export.model_card import RunCard
    from embed_core.protocols import Checkpointer
    from embed_core.types import Embeddings
    from embed_distill.models.config import Alignment

PROJECTION = "projection."


class ProjectedModel(WrappedModel):
    """Replaces the inner model's dense vectors by ``normalize(projection(dense))``; other kinds pass through.

    A ``student-native`` model returns, in evaluation mode, the inner model's own vectors, as its export does.
    """

    hidden: ClassVar[frozenset[str]] = frozenset({"pooling", "normalize", "merged", "export_with"})
    """Inner attributes that are not passed on. Without ``pooling``, a checkpoint layout that does not support
    projections refuses the model instead of dropping its projection."""

    def __init__(self, inner: nn.Module, projection: nn.Sequential, alignment: Alignment = "teacher-aligned") -> None:
        super().__init__(inner)
        self.projection, self.alignment = projection, alignment
        self._share()

    def forward(self, **inputs: Tensor) -> Embeddings:
        """The inner model's embeddings, the dense ones [N,D] → [N,W], fp32 or wider, of unit length.

        Raises ConfigError where the inner model gives no dense vectors.
        """
        embeddings: Embeddings = self.inner(**inputs)
        if self.alignment == "student-native" and not self.training:
            return embeddings
        if embeddings.dense_ND is None:
            raise missing_kind(embeddings, "dense")
        dense_NW = at_least_float32(self.projection(embeddings.dense_ND))
        return embeddings._replace(dense_ND=functional.normalize(dense_NW, dim=-1))

    def export_with(
        self, checkpointer: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard
    ) -> None:
        """Implements :class:`embed_core.protocols.ExportsOtherwise`: exports the inner model with ``checkpointer`` and,
        for a teacher-aligned student, the projection as modules after its pooling. Raises CheckpointError."""
        if _knows_projections(checkpointer):  # it calls `write` itself, and then adds the router
            checkpointer.export(self, state, directory, card)
            return
        self.write(checkpointer, state, directory, card)

    def write(self, layout: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """Write the inner model in ``layout``, the projection beside it, and the alignment into the card."""
        card = replace(card, base_model=card.innermost_model)
        inner_state = part_of(state)
        if provides(self.inner, ExportsOtherwise):
            self.inner.export_with(layout, inner_state, directory, card)
        else:
            layout.export(self.inner, inner_state, directory, card)
        if self.alignment == "teacher-aligned":
            files.write(self.projection, part_of(state, PROJECTION), directory, normalize=True)
        append_alignment(directory, self.alignment, [dense.layer for dense in self.projection])


def _knows_projections(checkpointer: Any) -> bool:
    """Whether the checkpointer, or one inside it, is of kind ``distilled``."""
    from embed_distill.export.distilled import DistilledCheckpointer

    while checkpointer is not None and not isinstance(checkpointer, DistilledCheckpointer):
        checkpointer = getattr(checkpointer, "inner", None)
    return checkpointer is not None
