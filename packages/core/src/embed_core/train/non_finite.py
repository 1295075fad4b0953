"""Losses and gradients that are NaN or infinite: stop the run, or skip the step and count it (`train.non_finite`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor

from embed_core.errors import EmbedError
from embed_core.protocols import Announce
from embed_core.train.checkpoint import TrainState
from embed_core.train.step import StepOutput

IN_A_ROW = 10
"""So many skipped steps one after another are no accident: the weights themselves give them."""
SHOWN_ROWS = 8


class NonFiniteGuard:
    """Told how every step went; the weights are untouched by a step that it hears of as failed."""

    def __init__(self, policy: Literal["stop", "skip"], state: TrainState, announce: Announce) -> None:
        self._policy, self._state, self._announce = policy, state, announce

    def passed(self) -> None:
        """The step was taken."""
        self._state.skipped_in_a_row = 0

    def failed(self, what: str, value: float, batches: Sequence[StepOutput]) -> None:
        """``what`` (the loss, the gradient norm) of ``batches`` is ``value``. Raises EmbedError unless it may be."""
        state = self._state
        rows = [row for batch in batches for row in batch.row_ids.tolist()]
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")
        fact = f"the {what} is {value} at step {state.step + 1} (rows {shown})"
        remedies = "lower train.optimizer.learning_rate, raise the temperature, or use engine.precision: fp32"
        if self._policy == "stop":
            raise EmbedError(f"{fact}: {remedies}")
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row >= IN_A_ROW:
            raise EmbedError(f"{fact}, and so were the {IN_A_ROW - 1} steps before it: {remedies}")
        self._announce(f"{fact}: step skipped, {state.skipped} so far")

    @property
    def metrics(self) -> dict[str, float]:
        """``skipped``, the number of skipped steps, once there is one."""
        return {"skipped": float(self._state.skipped)} if self._state.skipped else {}

    def summary(self) -> str | None:
        """One line for the end of the run, where something was skipped."""
        if not self._state.skipped:
            return None
        return f"{self._state.skipped} of {self._state.step} steps were skipped: their loss or gradient was not finite"


def first_non_finite(losses: Iterable[Tensor]) -> float | None:
    """The first that is not a finite number."""
    return next((value for value in map(float, losses) if not math.isfinite(value)), None)
