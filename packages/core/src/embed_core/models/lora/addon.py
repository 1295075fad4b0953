"""The add-on ``lora``: adapters around the model of any run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from embed_core.config.addons import AddOn, given_by_user, replaced
from embed_core.models.lora.config import ALL_LINEAR

OPTIONS = ("lora_rank", "lora_r", "lora_alpha", "lora_dropout", "target_modules", "lora_target_modules", "lora_export")


class LoraAddOn(AddOn):
    """Trains low-rank adapters instead of all weights: model kind ``lora`` around the run's model."""

    name: ClassVar[str] = "lora"
    order: ClassVar[int] = 10

    tuner_type: Literal["full", "lora"] | None = None
    """Train all weights (``full``), or low-rank adapters (``lora``); None = all weights."""
    use_lora: bool | None = None
    """true is the same as ``tuner_type: lora``, false as ``full``."""
    lora_rank: int = Field(default=16, gt=0)
    """Rank of the adapters."""
    lora_r: int | None = Field(default=None, gt=0)
    """The same as ``lora_rank``."""
    lora_alpha: int = Field(default=32, gt=0)
    """The adapters' update is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of a layer's inputs that its adapter does not see in training."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Layers with adapters: ``all-linear``, names, or a regular expression."""
    lora_target_modules: str | tuple[str, ...] | None = None
    """The same as ``target_modules``."""
    lora_export: Literal["merged", "adapter"] = "merged"
    """Write the model with the adapters added to its weights, or the adapters alone."""

    @model_validator(mode="after")
    def _makes_sense(self, info: ValidationInfo) -> Self:
        given = given_by_user(self, info.context)
        for first, second in (("lora_rank", "lora_r"), ("target_modules", "lora_target_modules")):
            if {first, second} <= given and (values := (getattr(self, first), getattr(self, second)))[0] != values[1]:
                raise ValueError(f"{first} is {values[0]!r} and {second} is {values[1]!r}: they mean the same; set one")
        if self.tuner_type is not None and self.use_lora is not None and self.use_lora != (self.tuner_type == "lora"):
            raise ValueError(
                f"tuner_type is {self.tuner_type!r} and use_lora is {str(self.use_lora).lower()}: set one of them"
            )
        unused = sorted(given & set(OPTIONS))
        if unused and self.tuner_type is None and self.use_lora is None:
            raise ValueError(f"{unused[0]} is of no use with tuner_type full: set tuner_type: lora, or leave it out")
        return self

    def is_on(self) -> bool:
        """See :meth:`embed_core.config.addons.AddOn.is_on`."""
        return self.tuner_type == "lora" or bool(self.use_lora)

    def wrap(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Kind ``lora`` around ``model``."""
        options = {
            "r": self.lora_r or self.lora_rank,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "target_modules": self.lora_target_modules or self.target_modules,
            "export": self.lora_export,
        }
        return replaced(part, "model", "lora", lambda model: {"inner": model, **options})
