"""The core's checkpoint kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from embed_core.config.component import CheckpointConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Checkpointer


class TransformersCheckpointConfig(CheckpointConfig):
    """A transformers directory that ``AutoModel`` and ``SentenceTransformer`` load."""

    kind: Literal["transformers"] = "transformers"

    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter."""
        from embed_core.export.transformers import TransformersCheckpointer

        return TransformersCheckpointer()
