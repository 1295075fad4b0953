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
    """The teacher: a directory or a model of the hub, as sentence-transformers loads it. It is written out again."""
    teacher_dims: Literal["first"] | None = None
    """``first`` cuts the teacher's vectors to the student's width, for a student that was trained so."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the teacher may run."""


class DistilledCheckpointConfig(CheckpointConfig):
    """Another layout and, beside it, a model that encodes queries with the student and documents with the teacher."""

    kind: Literal["distilled"] = "distilled"
    inner: CheckpointConfig = TransformersCheckpointConfig()
    """The student's layout, of any kind."""
    router: RouterConfig | None = None
    """None = the student alone."""

    @field_validator("inner")
    @classmethod
    def _only_a_layout(cls, inner: CheckpointConfig) -> CheckpointConfig:
        if isinstance(inner, DistilledCheckpointConfig):
            raise ValueError("kind 'distilled' inside kind 'distilled': one of them is enough")
        for name, field in CheckpointConfig.model_fields.items():
            # A resolved config has every default written out: only another value was meant by somebody.
            if name != "kind" and getattr(inner, name) != field.default:
                raise ValueError(f"{name} has no effect here: say when to save beside `inner`, not inside")
        return inner

    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter around the inner one. Raises CheckpointError for a teacher that is not there: now, not when the
        training is done."""
        from embed_core.models.hub import model_directory
        from embed_distill.export.distilled import DistilledCheckpointer

        teacher = None if self.router is None else model_directory(self.router.teacher)
        return DistilledCheckpointer(self, self.inner.build(context), teacher)


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
