"""A model with adapters: in training the inner model's own self, at the export merged or an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.card import RunCard
from embed_core.errors import CheckpointError
from embed_core.lora.config import LoraModelConfig
from embed_core.lora.structure import Structure, state_of
from embed_core.protocols import Checkpointer
from embed_core.types import Embeddings, Encoded, Item, Role, ScoreWeights

INNER = "inner."


class LoraModel(nn.Module):
    """``inner`` with peft's layers in it. What else the inner model has in public is read from it and written to it."""

    inner: Any

    def __init__(self, inner: nn.Module, adapters: Mapping[str, Any], config: LoraModelConfig) -> None:
        """``adapters`` are the ``PeftModel`` around each part of ``inner`` that has adapters, by the part's name."""
        super().__init__()
        self.inner = inner
        self.config_of_lora = config
        # Fixed here: what DeepSpeed notes on the inner module later must not look like a note on this one.
        self._shared = frozenset(name for name in dir(inner) if not name.startswith("_") and not hasattr(self, name))
        self._names = tuple(adapters)
        # The handles refer to what `inner` owns; as children of this module they would name each weight twice.
        self._structure = Structure(inner, tuple(adapters.values()))

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_shared", ()):
            return getattr(self.inner, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_shared", ()):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def scores(self) -> Mapping[str, ScoreWeights]:
        """The inner model's ways to rank."""
        scores: Mapping[str, ScoreWeights] = self.inner.scores
        return scores

    def tokenize(self, items: Sequence[Item], role: Role, prompts: Sequence[str | None]) -> list[Encoded]:
        """As the inner model does."""
        encoded: list[Encoded] = self.inner.tokenize(items, role, prompts)
        return encoded

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """As the inner model does."""
        inputs: dict[str, Tensor] = self.inner.collate(encoded)
        return inputs

    def forward(self, **inputs: Tensor) -> Embeddings:
        """The inner model's embeddings, its adapters in effect."""
        embeddings: Embeddings = self.inner(**inputs)
        return embeddings

    def merged(self, state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The inner model without adapters, their updates added to its weights in fp32, and its state.

        ``state`` is as in :meth:`embed_core.protocols.Checkpointer.export` and stays as it is; layers without an
        adapter share its memory. Raises CheckpointError where the sum is not finite.
        """
        inner, handles = self._structure.filled(inner_state(state))
        with torch.no_grad():
            for handle in handles:
                try:
                    # `safe_merge` adds into a copy, and looks at the result.
                    handle.merge_and_unload(safe_merge=True)
                except ValueError as error:
                    raise CheckpointError(f"the adapters cannot be merged: {' '.join(str(error).split())}") from error
        return inner, state_of(inner)

    def export_with(
        self, checkpointer: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard
    ) -> None:
        """See :class:`embed_core.protocols.ExportsOtherwise`."""
        card = replace(card, base_model=_base_model(card))
        if self.config_of_lora.export == "merged":
            checkpointer.export(*self.merged(state), directory, card)
            return
        from embed_core.lora.adapter import write

        inner, handles = self._structure.filled(inner_state(state))
        write(inner, dict(zip(self._names, handles, strict=True)), directory, card)


def inner_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of the inner model, by its own names."""
    return {name.removeprefix(INNER): value for name, value in state.items() if name.startswith(INNER)}


def _base_model(card: RunCard) -> str:
    model: Any = card.config.get("model", {})
    if "inner" not in model:  # a model that the caller built
        return card.base_model
    while "inner" in model:
        model = model["inner"]
    return str(model.get("name_or_path", model["kind"]))
