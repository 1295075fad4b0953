"""The model kinds ``projected`` and ``from-teacher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import ModelConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Model
    from embed_distill.models.projected import ProjectedModel

Activation = Literal["gelu", "relu", "silu", "tanh", "identity"]
Alignment = Literal["teacher-aligned", "student-native"]
Layers = Literal["even", "first"] | tuple[Annotated[int, Field(ge=0)], ...]


class ProjectedModelConfig(ModelConfig):
    """Another model whose dense vectors are projected to a teacher's width and scaled to unit length.

    Lexical weights and token vectors pass through unchanged. LoRA goes inside (``inner: {kind: lora, …}``), so that the
    projection is trained in full.
    """

    kind: Literal["projected"] = "projected"
    inner: ModelConfig
    """The student, of any kind with dense vectors."""
    out_dim: int | None = Field(default=None, gt=0)
    """Width of the projected vectors: the teacher's. None = that of the projection saved with ``inner``'s model."""
    hidden_dim: int | None = Field(default=None, gt=0)
    """Width of a hidden layer; None = a single linear layer. It needs ``out_dim``."""
    bias: bool = True
    """Whether the layers add a bias."""
    activation: Activation = "gelu"
    """Activation between the two layers; a single layer has none."""
    init: Literal["auto", "orthogonal", "torch"] = "auto"
    """Start of the projection: ``orthogonal`` keeps angles where it widens (a linear student starts with its own
    geometry), ``torch`` is PyTorch's own; ``auto`` loads what is saved with ``inner``'s model, else ``orthogonal``."""
    alignment: Alignment = "teacher-aligned"
    """``teacher-aligned`` exports the projection: the student's vectors search the teacher's index. ``student-native``
    drops it after training: evaluation and export use the student's own vectors."""
    init_from: str | None = None
    """Initialise the student from layers of this model, where shapes match: a directory or a model of the hub, usually
    the teacher."""
    layers: Layers = "even"
    """Which layers of ``init_from`` to copy: ``even``, the first, the last and evenly between; ``first``, the lowest;
    or a list of layer numbers from 0, one for each layer of the student."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.out_dim is None and self.hidden_dim is not None:
            raise ValueError(f"hidden_dim {self.hidden_dim} needs out_dim, the teacher's width: give both or neither")
        if self.out_dim is None and self.init != "auto":
            raise ValueError(f"init: {self.init} starts a new projection: give out_dim, the teacher's width")
        inner: object = self.inner
        while isinstance(inner, ModelConfig):
            if isinstance(inner, ProjectedModelConfig):
                raise ValueError("kind 'projected' inside kind 'projected': a hidden layer is `hidden_dim`")
            inner = getattr(inner, "inner", None)
        return self

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, layers: Any) -> Any:
        return checked_layers(layers)

    def build(self, context: BuildContext) -> ProjectedModel:
        """The student with its projection, on CPU in fp32. Raises ConfigError, CheckpointError and what the inner model
        raises."""
        from embed_distill.models.projected_build import build_model

        return build_model(self, context)


class FromTeacherModelConfig(ModelConfig):
    """Another model, initialised from a teacher's layers where shapes match, and otherwise unchanged.

    For students without a projection; ``projected`` has the same two keys.
    """

    kind: Literal["from-teacher"] = "from-teacher"
    inner: ModelConfig
    """The student, of any kind."""
    init_from: str
    """The model whose layers are copied: a directory or a model of the hub."""
    layers: Layers = "even"
    """Which layers to copy: ``even``, the first, the last and evenly between; ``first``, the lowest; or a list of layer
    numbers from 0, one for each layer of the student."""

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, layers: Any) -> Any:
        return checked_layers(layers)

    def build(self, context: BuildContext) -> Model:
        """The inner model itself. Raises CheckpointError where nothing matches, and what the inner model raises."""
        from embed_distill.models.layer_init import initialise

        model = self.inner.build(context)
        initialise(model, self.init_from, self.layers, context.announce)
        return model


def checked_layers(layers: Any) -> Any:
    """Return ``layers`` or raise one short ValueError; pydantic would report an error for each member of the union."""
    numbers = isinstance(layers, (list, tuple)) and all(type(one) is int and one >= 0 for one in layers)
    if not numbers and layers not in ("even", "first"):
        raise ValueError(f"layers {layers!r}: give even, first, or a list of layer numbers from 0")
    return layers
