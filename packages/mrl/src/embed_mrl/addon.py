"""The add-on ``matryoshka``: trains vectors that may be cut, in any run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embed_core.config.addons import AddOn, replaced
from embed_core.config.component import Section
from embed_mrl.dims import checked, checked_choice, checked_count, checked_weights

MATRYOSHKA = "matryoshka"
BY_SOURCE = "by-source"
SAVED_WHEN = ("every_steps", "every_minutes", "keep_last")
"""Keys of a checkpoint that stay on the outer one when a layout is wrapped."""


class MatryoshkaKeys(Section):
    """The keys of recipe ``mrl``, and of the add-on in any other recipe."""

    use_mrl: bool = False
    """Train vectors that may be cut (Matryoshka), to their halves unless ``mrl_dims`` names dimensions. Always on in
    recipe ``mrl``, and where ``mrl_dims`` is set."""
    mrl_dims: tuple[int, ...] | None = None
    """Dimensions that are trained, the full one besides; a ``from-scratch`` model is as wide as the largest. None =
    where ``use_mrl`` is on, the full one and its halves, at most four, from 16."""
    mrl_weights: tuple[float, ...] | None = None
    """Weight of the loss at each of ``mrl_dims``; None = 1 each."""
    n_dims_per_step: int = Field(default=-1, ge=-1)
    """Dimensions trained in one step: the full one, and others drawn in each step; -1 = all."""
    truncate_dim: int | None = Field(default=None, gt=0)
    """Dimensions that the exported model gives in sentence-transformers unless told otherwise; None = all."""

    @field_validator("mrl_dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        return None if dims == () and not info.data.get("use_mrl") else checked(dims, "mrl_dims")

    @field_validator("mrl_weights")
    @classmethod
    def _weights(cls, weights: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        return checked_weights(weights or None, info.data.get("mrl_dims"), "mrl_")

    @field_validator("n_dims_per_step")
    @classmethod
    def _count(cls, count: int) -> int:
        return checked_count(count)

    @field_validator("truncate_dim")
    @classmethod
    def _truncate_dim(cls, dim: int | None, info: ValidationInfo) -> int | None:
        return checked_choice(dim, info.data.get("mrl_dims"), "mrl_")

    @model_validator(mode="after")
    def _is_of_use(self) -> Self:
        unused = sorted(self.model_fields_set & {"n_dims_per_step", "truncate_dim"})
        if unused and not self.is_on():
            raise ValueError(f"{unused[0]} is of no use without mrl_dims: set mrl_dims or use_mrl, or leave it out")
        return self

    def is_on(self) -> bool:
        """Whether vectors are trained to be cut."""
        return self.use_mrl or bool(self.mrl_dims)

    def wrap(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """The loss, the losses that evaluators report, the layout, and the dimensions that evaluators rank by."""
        found = dict(part)
        if part.get("loss") is not None:
            found["loss"] = self._loss(part["loss"])
        if part.get("evaluation"):
            found["evaluation"] = [self._evaluator(one) for one in part["evaluation"]]
        return replaced(found, "checkpoint", MATRYOSHKA, self._layout)

    def _loss(self, loss: Mapping[str, Any]) -> dict[str, Any]:
        if loss["kind"] == MATRYOSHKA:
            return dict(loss)
        if loss["kind"] == BY_SOURCE:  # inside: the losses that it chooses from read several dimensions at once
            inside = {key: self._loss(loss[key]) for key in ("inner", "own_only") if loss.get(key) is not None}
            return {**loss, **inside}
        return {
            "kind": MATRYOSHKA,
            "inner": loss,
            "dims": self.mrl_dims,
            "weights": self.mrl_weights,
            "n_dims_per_step": self.n_dims_per_step,
        }

    def _evaluator(self, one: Mapping[str, Any]) -> dict[str, Any]:
        if one["kind"] == "dimensions" and one.get("dims") is None:
            return {**one, "dims": self.mrl_dims}
        return {**one, "loss": self._loss(one["loss"])} if isinstance(one.get("loss"), Mapping) else dict(one)

    def _layout(self, layout: Mapping[str, Any]) -> dict[str, Any]:
        when = {key: value for key, value in layout.items() if key in SAVED_WHEN}
        inner = {key: value for key, value in layout.items() if key not in SAVED_WHEN}
        return {**when, "inner": inner, "dims": self.mrl_dims, "truncate_dim": self.truncate_dim}


class MatryoshkaAddOn(MatryoshkaKeys, AddOn):
    """The loss at several dimensions (loss kind ``matryoshka``), and a layout that names them."""

    name: ClassVar[str] = MATRYOSHKA
    order: ClassVar[int] = 20
