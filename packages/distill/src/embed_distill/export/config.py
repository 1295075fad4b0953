"""The checkpoint kinds ``distilled`` and ``artifacts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from embed_core.config.component import CheckpointConfig, Section
from embed_core.errors import CheckpointError
from embed_core.export.config import TransformersCheckpointConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Checkpointer


class RouterConfig(Section):
    """One sentence-transformers model of student and teacher, in the folder ``router`` of the export."""

    teacher: str
    """The teacher, a directory or a model of the hub that sentence-transformers loads; a copy is written."""
    teacher_dims: Literal["first"] | None = None
    """``first`` cuts the teacher's vectors to the student's width, if the student was trained that way."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the teacher may run."""


class DistilledCheckpointConfig(CheckpointConfig):
    """Another layout and, optionally, a router that encodes queries with student, documents with teacher."""

    kind: Literal["distilled"] = "distilled"
    inner: CheckpointConfig = TransformersCheckpointConfig()
    """The student's layout, of any kind."""
    router: RouterConfig | None = None
    """The router to write; None = the student alone."""

    @field_validator("inner")
    @classmethod
    def _only_a_layout(cls, inner: CheckpointConfig) -> CheckpointConfig:
        if isinstance(inner, DistilledCheckpointConfig):
            raise ValueError("kind 'distilled' inside kind 'distilled': one of them is enough")
        for name, field in CheckpointConfig.model_fields.items():
            # A resolved config has every default written out, so only a value that differs was set by the user.
            if name != "kind" and getattr(inner, name) != field.default:
                raise ValueError(f"{name} has no effect here: say when to save beside `inner`, not inside")
        return inner

    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter around the inner one. Raises CheckpointError for a teacher that is not there already now, not
        after training."""
        from embed_core.models.hub import model_directory
        from embed_distill.export.distilled import DistilledCheckpointer

        teacher = None if self.router is None else model_directory(self.router.teacher)
        return DistilledCheckpointer(self, self.inner.build(context), teacher)


class ArtifactsConfig(CheckpointConfig):
    """Another layout, whose finished model is also copied to another directory."""

    kind: Literal["artifacts"] = "artifacts"
    inner: CheckpointConfig = TransformersCheckpointConfig()
    """The layout, of any kind."""
    directory: Path
    """Directory to copy the finished model to. It must not exist: nothing is ever overwritten."""

    @field_validator("inner")
    @classmethod
    def _only_a_layout(cls, inner: CheckpointConfig) -> CheckpointConfig:
        for name, field in CheckpointConfig.model_fields.items():
            # A resolved config has every default written out, so only a value that differs was set by the user.
            if name != "kind" and getattr(inner, name) != field.default:
                raise ValueError(f"{name} has no effect here: say when to save beside `inner`, not inside")
        return inner

    def build(self, context: BuildContext) -> Checkpointer:
        """The inner exporter; the copy is made at the run's end. Raises CheckpointError if ``directory`` exists."""
        if self.directory.expanduser().exists():
            raise CheckpointError(
                f"artifacts directory {str(self.directory)!r} exists: move it away, or choose another "
                "paths.artifacts_dir; nothing was overwritten"
            )
        return self.inner.build(context)
