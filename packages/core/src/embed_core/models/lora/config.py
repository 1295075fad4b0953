"""The model kind ``lora``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import ModelConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.models.lora.model import LoraModel

ALL_LINEAR = "all-linear"


class LoraModelConfig(ModelConfig):
    """Low-rank adapters on the linear layers of another model (Hu et al. 2021, arXiv 2106.09685), by peft."""

    kind: Literal["lora"] = "lora"
    inner: ModelConfig
    """The model that is adapted, of any kind. Its encoder is frozen."""
    r: int = Field(default=16, gt=0)
    """Rank of the adapters: a layer of m × n weights gets r · (m + n) trained ones."""
    alpha: int = Field(default=32, gt=0)
    """The update of a layer is scaled by alpha / r; with ``use_rslora`` by alpha / √r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that its adapter does not see in training."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """The layers that are adapted: ``all-linear``, a list of names (``[query, value]``: the last parts of the layers'
    dotted names), or a regular expression over whole names. Layers that the inner model freezes are left alone."""
    modules_to_save: tuple[str, ...] = ()
    """Modules of the encoder that are trained in full, by the last parts of their names."""
    train_heads: bool = True
    """Train what the inner model has outside its encoder (BGE-M3's lexical and multi-vector heads) in full."""
    use_rslora: bool = False
    """Scale by alpha / √r, which keeps large ranks stable (Kalajdzievski 2023, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the length of each row of a weight apart from its direction (DoRA; Liu et al. 2024, arXiv 2402.09353)."""
    adapter: Path | None = None
    """Go on from this adapter: a directory that ``export: adapter`` or peft wrote. None = a new one."""
    export: Literal["merged", "adapter"] = "merged"
    """``merged`` writes the inner model's own layout, the adapters added to its weights; ``adapter`` writes peft's
    directory, a few MB that need the base model beside them."""

    @field_validator("target_modules")
    @classmethod
    def _names_something(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or "" in tuple(value):
            raise ValueError(f"{value!r} names no layer: give {ALL_LINEAR!r}, names or a regular expression")
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"{value!r} is no regular expression ({error}): mend it, or give names as a list"
                ) from None
        return value

    @model_validator(mode="after")
    def _is_not_nested(self) -> Self:
        inner: object = self.inner
        while isinstance(inner, ModelConfig):
            if isinstance(inner, LoraModelConfig):
                raise ValueError(
                    "kind 'lora' inside kind 'lora': put the settings of both into one, "
                    "or train a saved adapter on with `adapter`"
                )
            inner = getattr(inner, "inner", None)
        return self

    def build(self, context: BuildContext) -> LoraModel:
        """The inner model with adapters that change nothing yet, on CPU in fp32. Raises ConfigError, CheckpointError
        and what the inner model raises."""
        from embed_core.models.lora.build import build_model

        return build_model(self, context)
