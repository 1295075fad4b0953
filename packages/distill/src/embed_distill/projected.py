"""A student and the projection into its teacher's space. Suffixes of :mod:`embed_core.types`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from embed_core.pooling import at_least_float32
from embed_core.protocols import ExportsOtherwise
from embed_core.scoring.need import missing
from embed_distill import projection as files
from embed_distill.card import append_alignment, innermost

if TYPE_CHECKING:
    from embed_core.card import RunCard
    from embed_core.protocols import Checkpointer
    from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights
    from embed_distill.projected_config import Alignment

INNER, PROJECTION = "inner.", "projection."
_HIDDEN = frozenset({"pooling", "normalize", "merged", "export_with"})
"""Attributes of the inner model that would say something wrong of this one. Without ``pooling``, a checkpoint layout
that knows nothing of projections refuses the model instead of leaving its projection out."""


class ProjectedModel(nn.Module):
    """``normalize(projection(dense))`` in place of the inner model's dense vectors; its other kinds pass through.

    What else the inner model has in public is read from it and written to it. A ``student-native`` one gives, in
    evaluation mode, the inner model's own vectors: what it is exported with.
    """

    inner: Any

    def __init__(self, inner: nn.Module, projection: nn.Sequential, alignment: Alignment = "teacher-aligned") -> None:
        super().__init__()
        self.inner, self.projection, self.alignment = inner, projection, alignment
        # Fixed here: what DeepSpeed notes on the inner module later must not look like a note on this one.
        self._shared = frozenset(n for n in _public(inner) if n not in _HIDDEN and not hasattr(self, n))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_shared", ()):
            return getattr(self.inner, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_shared", ()):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def scores(self) -> Mapping[str, ScoreWeights]:
        """The inner model's ways to rank."""
        scores: Mapping[str, ScoreWeights] = self.inner.scores
        return scores

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """As the inner model does."""
        encoded: list[Encoded] = self.inner.tokenize(items, role, prompts)
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """As the inner model does."""
        inputs: dict[str, Tensor] = self.inner.collate(encoded)
        return inputs

    def forward(self, **inputs: Tensor) -> Embeddings:
        """The inner model's embeddings, the dense ones [N,D] → [N,W], fp32 or wider, of unit length.

        Raises ConfigError where the inner model gives no dense vectors.
        """
        embeddings: Embeddings = self.inner(**inputs)
        if self.alignment == "student-native" and not self.training:
            return embeddings
        if embeddings.dense_ND is None:
            raise missing(embeddings, "dense")
        dense_NW = at_least_float32(self.projection(embeddings.dense_ND))
        return embeddings._replace(dense_ND=functional.normalize(dense_NW, dim=-1))

    def export_with(
        self, checkpointer: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard
    ) -> None:
        """See :class:`embed_core.protocols.ExportsOtherwise`: the inner model by ``checkpointer`` and, where the
        student is teacher-aligned, the projection as modules after its pooling. Raises CheckpointError."""
        if _knows_projections(checkpointer):  # it comes back to here, and has more to write after it
            checkpointer.export(self, state, directory, card)
            return
        self.write(checkpointer, state, directory, card)

    def write(self, layout: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """The inner model in ``layout``, the projection beside it, and what the student is, in the card."""
        card = replace(card, base_model=innermost(card))
        inner_state = _part(state, INNER)
        if isinstance(self.inner, ExportsOtherwise):
            self.inner.export_with(layout, inner_state, directory, card)
        else:
            layout.export(self.inner, inner_state, directory, card)
        if self.alignment == "teacher-aligned":
            files.write(self.projection, _part(state, PROJECTION), directory, normalize=True)
        append_alignment(directory, self.alignment, [dense.layer for dense in self.projection])


def _knows_projections(checkpointer: Any) -> bool:
    """Whether it, or one inside it, is the kind ``distilled``."""
    from embed_distill.checkpoint import DistilledCheckpointer

    while checkpointer is not None and not isinstance(checkpointer, DistilledCheckpointer):
        checkpointer = getattr(checkpointer, "inner", None)
    return checkpointer is not None


def _public(model: Any) -> set[str]:
    """Public names of a model and of those inside it, which wrappers pass on without listing them."""
    names: set[str] = set()
    while model is not None:
        names |= {name for name in dir(model) if not name.startswith("_")}
        model = getattr(model, "inner", None)
    return names


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
