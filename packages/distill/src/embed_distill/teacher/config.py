"""The config of a teacher: its model, and how its vectors are computed. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import ModelConfig, Section
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.text.pooling import Pooling

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
    from embed_distill.teacher.fingerprint import Identity
    from embed_distill.teacher.protocol import Teacher

_OF_A_NAME = (
    "revision",
    "query_prompt",
    "passage_prompt",
    "max_length",
    "pooling",
    "trust_remote_code",
)


class TeacherConfig(Section):
    """A teacher, given by a model's name or as a model of any kind. Its vectors are scaled to unit length; it is never
    trained."""

    name_or_path: str | None = None
    """A model directory or a model of the hub: an encoder that transformers loads, with the pooling and the prompts
    that its sentence-transformers files state. Give either this or ``model``."""
    model: ModelConfig | None = None
    """A model of any kind, with all its own keys. Give either this or ``name_or_path``."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    query_prompt: str | None = None
    """The teacher's prompt for queries, independent of the student's; None = the saved one, "" = none."""
    passage_prompt: str | None = None
    """The teacher's prompt for passages; None = the saved one, "" = none."""
    max_length: int | None = Field(default=None, ge=3)
    """Number of tokens at which the teacher cuts texts; None = 512, or fewer if it has fewer positions."""
    pooling: Pooling | None = None
    """How token states become one vector; None = the saved pooling, else ``mean``."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the computation; `auto` is bf16 where the hardware multiplies it natively, else fp32. Vectors stored
    under another ``dtype`` are not reused; those of `auto` are, on any hardware."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the computation; `auto` is the run's device."""
    token_budget: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Tokens of one chunk of texts, padding included; `auto` chooses as the training engine does."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.name_or_path is None) == (self.model is None):
            raise ValueError("a teacher needs either `name_or_path` or `model`, one of the two")
        if self.model is not None:
            for key in _OF_A_NAME:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} is of a teacher by `name_or_path`: set it inside `model`, if it has it")
        if FROM_SCRATCH in (self.name_or_path, getattr(self.model, "name_or_path", None)):
            raise ValueError(f"name_or_path {FROM_SCRATCH!r}: random weights teach nothing; name a trained model")
        return self

    @property
    def label(self) -> str:
        """The teacher's name in messages and tables."""
        return str(self.name_or_path or getattr(self.model, "name_or_path", None) or (self.model and self.model.kind))

    def load(self, identity: Identity, context: BuildContext) -> Teacher:
        """The teacher, in memory. Raises CheckpointError and ConfigError where it cannot be used."""
        from embed_distill.teacher.local import LocalTeacher

        return LocalTeacher(self, identity, context)

    def transformers(self) -> TransformersEncoderConfig | None:
        """The model's config where it is of kind ``transformers-encoder``; its None values mean the saved settings."""
        from embed_core.models.transformers_encoder.config import TransformersEncoderConfig

        if self.model is not None:
            return self.model if isinstance(self.model, TransformersEncoderConfig) else None
        same = {key: getattr(self, key) for key in _OF_A_NAME if key != "max_length"}
        lengths = {} if self.max_length is None else dict.fromkeys(_LENGTHS, self.max_length)
        return TransformersEncoderConfig(name_or_path=str(self.name_or_path), **same, **lengths)


_LENGTHS = ("query_max_length", "passage_max_length")
