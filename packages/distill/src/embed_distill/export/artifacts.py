"""The checkpoint kind ``artifacts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from embed_core.config.component import CheckpointConfig
from embed_core.errors import CheckpointError
from embed_core.export.config import TransformersCheckpointConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Checkpointer


class ArtifactsConfig(CheckpointConfig):
    """Another layout, whose finished model is also copied to a place of its own."""

    kind: Literal["artifacts"] = "artifacts"
    inner: CheckpointConfig = TransformersCheckpointConfig()
    """The layout, of any kind."""
    directory: Path
    """Where the finished model goes. It must not exist: nothing is ever written over."""

    @field_validator("inner")
    @classmethod
    def _only_a_layout(cls, inner: CheckpointConfig) -> CheckpointConfig:
        for name, field in CheckpointConfig.model_fields.items():
            # A resolved config has every default written out: only another value was meant by somebody.
            if name != "kind" and getattr(inner, name) != field.default:
                raise ValueError(f"{name} has no effect here: say when to save beside `inner`, not inside")
        return inner

    def build(self, context: BuildContext) -> Checkpointer:
        """The inner exporter; the copy is made when the run has ended. Raises CheckpointError where there is one."""
        if self.directory.expanduser().exists():
            raise CheckpointError(
                f"artifacts directory {str(self.directory)!r} exists: move it away, or choose another "
                "paths.artifacts_dir; nothing was overwritten"
            )
        return self.inner.build(context)
