"""Components: frozen pydantic configs with a ``kind`` and a ``build(context)``. Heavy imports live inside ``build``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.config.run import RunConfig
    from embed_core.protocols import Checkpointer, Dataset, Evaluator, Loss, Model, Sampler


FROM_SCRATCH = "from-scratch"
"""The value of a model's ``name_or_path`` that asks for a small random model, its tokenizer from the run's texts."""


class Section(BaseModel):
    """A part of a config. Unknown keys are errors; instances never change; attribute docstrings are the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )


class Component(Section):
    """Base of the six slots. A field typed with a slot's base class accepts any registered kind of that slot."""

    slot: ClassVar[str] = ""
    kind: str

    @classmethod
    def kind_name(cls) -> str:
        """The word users write: the default of the class's ``kind: Literal["..."]`` field."""
        name = cls.model_fields["kind"].default
        if not isinstance(name, str):
            raise ConfigError(f'{cls.__name__} must define `kind: Literal["its-kind"] = "its-kind"`')
        return name

    @classmethod
    def is_slot_base(cls) -> bool:
        """Whether this is a slot's base class rather than a kind."""
        return not isinstance(cls.model_fields["kind"].default, str)

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Validate a mapping with the class its ``kind`` names, looked up in the registry of the load."""
        if not cls.is_slot_base() or not isinstance(value, Mapping):
            return handler(value)
        kind = value.get("kind")
        if not isinstance(kind, str):
            raise PydanticCustomError("kind_missing", "a {slot} needs a `kind`", {"slot": cls.slot})
        assert info.context is not None, "components are validated by config.resolve"
        concrete = info.context["registry"].get(cls.slot, kind)
        return concrete.model_validate(value, context=info.context)  # type: ignore[no-any-return]


class ModelConfig(Component):
    """Base of model configs."""

    slot: ClassVar[str] = "model"

    @abstractmethod
    def build(self, context: BuildContext) -> Model:
        """The model, on CPU in fp32, in training mode; the loop moves, casts and shards it."""


class LossConfig(Component):
    """Base of loss configs."""

    slot: ClassVar[str] = "loss"

    @abstractmethod
    def build(self, context: BuildContext) -> Loss:
        """The loss."""


class SamplerConfig(Component):
    """Base of sampler configs."""

    slot: ClassVar[str] = "sampler"
    batch_size: int = Field(default=64, gt=0)
    """Rows of one GLOBAL batch, over all ranks: the rows that are each other's in-batch negatives."""

    def phases(self, run: RunConfig) -> Sequence[Mapping[str, Any]]:
        """The phases this sampler brings to ``run``, which names none: mappings as in ``RunConfig.phases``. ``run`` is
        there to be built on: its loss with another option, for instance."""
        return ()

    @abstractmethod
    def build(self, context: BuildContext, dataset: Dataset) -> Sampler:
        """The sampler over ``dataset``; it draws from ``context.seed``."""


class DatasetConfig(Component):
    """Base of dataset configs."""

    slot: ClassVar[str] = "dataset"

    def waits(self) -> bool:
        """Whether the rows are made with the model as the phases before left it (``context.encoder``): the others of
        a run are built before it starts, so that a missing file shows at once."""
        return any(one.waits() for one in self._inner())

    def check(self, run: RunConfig) -> None:
        """Look at what the run, or the phase, does with the rows. Raises ConfigError where something that this config
        asks for would have no effect."""
        for one in self._inner():
            one.check(run)

    def around(self, dataset: Dataset, context: BuildContext) -> Dataset:
        """What takes the place of this config's dataset where the caller built ``dataset`` himself, as Python programs
        do: a kind that adds to another one's rows adds to these."""
        return dataset

    def _inner(self) -> list[DatasetConfig]:
        """The datasets that this one is made of."""
        parts = (getattr(self, name) for name in type(self).model_fields)
        flat = [one for part in parts for one in (part if isinstance(part, (list, tuple)) else (part,))]
        return [one for one in flat if isinstance(one, DatasetConfig)]

    @abstractmethod
    def build(self, context: BuildContext) -> Dataset:
        """The dataset, read on every rank; work that is cached is done by rank 0 first (``context.first``)."""


class EvaluatorConfig(Component):
    """Base of evaluator configs."""

    slot: ClassVar[str] = "evaluator"

    @abstractmethod
    def build(self, context: BuildContext, dataset: Dataset) -> Evaluator:
        """The evaluator; ``dataset.held_out()`` is the run's own evaluation split."""


class CheckpointConfig(Component):
    """Base of checkpoint configs: when to save, and (the kind) in what layout the finished model leaves.

    Where anything is saved, so is the state after the last step: ``--resume`` with more steps trains on.
    """

    slot: ClassVar[str] = "checkpoint"
    every_steps: int = Field(default=0, ge=0)
    """Save the training state every so many optimizer steps; 0 = not by steps."""
    every_minutes: float = Field(default=10.0, ge=0)
    """Save the training state every so many minutes; 0 = not by time."""
    keep_last: int = Field(default=2, ge=1)
    """Training states kept, besides the best one."""

    @abstractmethod
    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter."""


SLOT_BASES: Mapping[str, type[Component]] = {
    base.slot: base
    for base in (ModelConfig, LossConfig, SamplerConfig, DatasetConfig, EvaluatorConfig, CheckpointConfig)
}


def resolved_path(value: str, base: Path | None = None) -> Path:
    """``value`` with ``~`` expanded, relative to ``base`` (default: the working directory)."""
    path = Path(value).expanduser()
    return path if path.is_absolute() or base is None else base / path
