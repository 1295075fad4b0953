"""Plain progress lines for runs that a Python program starts; the ``embed`` command has its own display."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from embed_core.events import StepEvent
from embed_core.observers.metrics_log import rate
from embed_core.plugin.hookspecs import hookimpl
from embed_core.protocols import Announce


class ProgressLines:
    """Announces the first step, the last, one every ``every_seconds`` between them, and every evaluation."""

    def __init__(
        self, announce: Announce, every_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._announce, self._every, self._clock = announce, every_seconds, clock
        self._shown: float | None = None

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Announce the event where it is due; rank 0 only."""
        if event.rank != 0:
            return
        phase = f"  {event.phase}" if event.phase else ""
        if event.evaluation is not None:
            self._announce(f"step {event.step}{phase}  {_values(event.evaluation)}")
            return
        now = self._clock()
        if self._shown is None or event.step == event.total_steps or now - self._shown >= self._every:
            self._shown = now
            speed = f"{rate(event.rows, event.seconds):,.0f} rows/s"
            step = f"step {event.step}/{event.total_steps}{phase}"
            self._announce(f"{step}  loss {event.loss:.4f}  {_values(event.terms)}  {speed}")


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
