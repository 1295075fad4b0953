"""Handles losses and gradients that are NaN or infinite: stops the run, or skips the step (`train.non_finite`)."""

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
"""After so many skipped steps in a row the run stops: the weights themselves are broken."""
SHOWN_ROWS = 8


class NonFiniteGuard:
    """Stops the run at a non-finite step, or skips and counts it. A skipped step leaves the weights unchanged."""

    def __init__(self, policy: Literal["stop", "skip"], state: TrainState, announce: Announce) -> None:
        self._policy, self._state, self._announce = policy, state, announce

    def passed(self) -> None:
        """Note that the optimizer stepped."""
        self._state.skipped_in_a_row = 0

    def failed(self, what: str, value: float, batches: Sequence[StepOutput]) -> None:
        """Handle a loss or gradient norm (``what``) that is ``value``. Raises EmbedError where the run has to stop."""
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
        """One line for the end of the run; ``None`` where no step was skipped."""
        if not self._state.skipped:
            return None
        return f"{self._state.skipped} of {self._state.step} steps were skipped: their loss or gradient was not finite"


def first_non_finite(losses: Iterable[Tensor]) -> float | None:
    """The first loss that is not finite; ``None`` where all are."""
    return next((value for value in map(float, losses) if not math.isfinite(value)), None)
