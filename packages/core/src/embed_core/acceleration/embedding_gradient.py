"""Sums the gradient of embedding tables on CPUs over the chunks of a step in one buffer.

Autograd makes a table of zeros for every use of an ``nn.Embedding``, 64 MB for 250,002 ids of width 64, and adds them
up: with a dozen chunks a step, more than the arithmetic of a small model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedTables:
    """The embedding tables of a model, looked up once per step and used by all chunks of it."""

    def __init__(self, model: nn.Module) -> None:
        self._used: dict[nn.Embedding, tuple[Tensor, _Sum]] = {}
        self._sums: dict[nn.Embedding, _Sum] = {}
        self._met: frozenset[nn.Embedding] = frozenset()
        """The tables that the last chunk used."""
        self._open = self._hold = False
        for module in model.modules():
            if type(module) is nn.Embedding and module.weight.requires_grad and module.max_norm is None:
                module.forward = partial(self._look_up, module)

    @contextmanager
    def shared(self, *, hold: bool = False) -> Iterator[None]:
        """Forwards inside, and their one backward afterwards, share a gradient buffer per table.

        With ``hold`` that backward keeps what is in the buffer for the next one, which hands all of it to the weight.
        """
        self._open = torch.is_grad_enabled()
        for total in self._sums.values():
            total.hold = hold
        self._hold = hold
        try:
            yield
        finally:
            self._open = False
            self._met = frozenset(self._used)
            self._used.clear()

    def unclaimed(self) -> list[Tensor]:
        """Zero-valued terms for the last backward: they hand over the gradients held for tables that its chunk did
        not use (a model may have a table per role, or per language)."""
        left = [(module, total) for module, total in self._sums.items() if module not in self._met and total.is_held]
        return [_Claim.apply(module.weight, total) for module, total in left]

    def forget(self) -> None:
        """Drop the gradients held for a backward that will not come."""
        self._sums.clear()

    def _look_up(self, module: nn.Embedding, input: Tensor) -> Tensor:
        if not self._open or module.scale_grad_by_freq:
            return functional.embedding(input, module.weight, module.padding_idx)
        if module not in self._used:
            total = self._sums.setdefault(module, _Sum(module.padding_idx))
            total.hold = self._hold
            self._used[module] = (_Table.apply(module.weight, total), total)
        found: Tensor = _Rows.apply(input, *self._used[module])
        return found


class _Sum:
    """The gradient of one table, allocated when its first part arrives."""

    def __init__(self, padding_index: int | None) -> None:
        self._value: Tensor | None = None
        self._padding_index = padding_index
        self.hold = False

    def add(self, ids: Tensor, rows_D: Tensor, table_VD: Tensor) -> None:
        if self._value is None:
            self._value = torch.zeros(table_VD.shape, dtype=table_VD.dtype)
        self._value.index_add_(0, ids.reshape(-1), rows_D.reshape(-1, rows_D.shape[-1]).to(table_VD.dtype))

    @property
    def is_held(self) -> bool:
        """Whether a gradient waits here."""
        return self._value is not None

    def take(self) -> Tensor | None:
        if self.hold:
            return None
        value, self._value = self._value, None
        if value is not None and self._padding_index is not None:
            value[self._padding_index] = 0
        return value


class _Table(torch.autograd.Function):
    """Returns the weight itself. Its backward runs after those of all its uses and returns their sum."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, total: _Sum) -> Tensor:
        ctx.total = total
        ctx.set_materialize_grads(False)
        return weight_VD.view_as(weight_VD)

    @staticmethod
    def backward(ctx: Any, *none: Tensor | None) -> tuple[Tensor | None, None]:
        return ctx.total.take(), None


class _Claim(torch.autograd.Function):
    """Returns 0. Its backward gives the held gradient to the weight."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, total: _Sum) -> Tensor:
        ctx.total = total
        return weight_VD.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return ctx.total.take(), None


class _Rows(torch.autograd.Function):
    """Looks up rows of the table. The backward adds to the sum and returns no gradient: :class:`_Table` does."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table_VD: Tensor, total: _Sum) -> Tensor:
        ctx.save_for_backward(ids, table_VD)
        ctx.total = total
        return functional.embedding(ids, table_VD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ids, table_VD = ctx.saved_tensors
        ctx.total.add(ids, gradients[0], table_VD)
        return None, None, None
