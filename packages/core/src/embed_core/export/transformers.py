"""The ``transformers`` checkpoint layout: any encoder with one dense vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from embed_core.export.layout import check_exportable, write_directory
from embed_core.export.model_card import LOADERS, CardText, RunCard, write_card


class TransformersCheckpointer:
    """Exports models that have what :class:`~embed_core.export.layout.TransformersModel` lists."""

    def export(self, model: nn.Module, state: Mapping[str, Tensor], directory: Path, card: RunCard) -> None:
        """See :meth:`embed_core.protocols.Checkpointer.export`. Raises CheckpointError for a model of another kind."""
        check_exportable(model)
        write_directory(model, state, directory)
        write_card(directory, card, CardText(title=card.name, loaders=LOADERS))
