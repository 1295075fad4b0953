"""A model with adapters: it trains as the inner model does, and is exported merged or as an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.export.model_card import RunCard
from embed_core.models.lora.config import LoraModelConfig
from embed_core.models.lora.structure import Structure, state_of
from embed_core.models.wrapper import WrappedModel, part_of
from embed_core.protocols import Checkpointer
from embed_core.utils.messages import one_line


class LoraModel(WrappedModel):
    """A model whose ``inner`` model has peft's layers in it."""

    def __init__(self, inner: nn.Module, adapters: Mapping[str, Any], config: LoraModelConfig) -> None:
        """``adapters`` are the ``PeftModel`` around each part of ``inner`` that has adapters, by the part's name."""
        super().__init__(inner)
        self.config_of_lora = config
        self._share()
        self._names = tuple(adapters)
        # The handles refer to what `inner` owns; as children of this module they would name each weight twice.
        self._structure = Structure(inner, tuple(adapters.values()))

    def merged(self, state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The inner model without adapters, their updates added to its weights in fp32, and its state.

        ``state`` is as in :meth:`embed_core.protocols.Checkpointer.export` and stays as it is; layers without an
        adapter share its memory. Raises CheckpointError where the sum is not finite.
        """
        inner, handles = self._structure.filled(part_of(state))
        with torch.no_grad():
            for handle in handles:
                try:
                    # `safe_merge` adds into a copy, and checks the result for NaN.
                    handle.merge_and_unload(safe_merge=True)
                except ValueError as error:
                    raise CheckpointError(f"the adapters cannot be merged: {one_line(error)}") from error
        return inner, state_of(inner)

    def export_with(
        self, checkpointer: Checkpointer, state: Mapping[str, Tensor], directory: Path, card: RunCard
    ) -> None:
        """See :class:`embed_core.protocols.ExportsOtherwise`."""
        card = replace(card, base_model=card.innermost_model)
        if self.config_of_lora.export == "merged":
            checkpointer.export(*self.merged(state), directory, card)
            return
        from embed_core.models.lora.adapter import write

        inner, handles = self._structure.filled(part_of(state))
        write(inner, dict(zip(self._names, handles, strict=True)), directory, card)
