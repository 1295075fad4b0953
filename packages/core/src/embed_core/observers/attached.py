"""Observers that belong to one run: `metrics.jsonl` and the trackers, registered beside those of plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pluggy

from embed_core.config.resolve import plain
from embed_core.config.run import RunConfig
from embed_core.events import RunEvent, StepEvent
from embed_core.observers.metrics_log import FILE_NAME, MetricsLog
from embed_core.observers.trackers import make_trackers
from embed_core.protocols import Announce


class RunObservers:
    """Tells all observers of the plugin manager about a run, and takes the run's own ones away at its end."""

    def __init__(self, manager: pluggy.PluginManager, config: RunConfig, output_dir: Path) -> None:
        self._manager, self._config, self._output_dir = manager, config, output_dir
        self._own: list[Any] = []

    def check(self) -> None:
        """Raises ConfigError where a tracker is not installed. Nothing is written, and no tracker is started."""
        # A rank other than 0 has no trackers: asked as such a rank, the function checks and starts none.
        settings, name = self._config.tracking, self._config.name
        make_trackers(settings, name=name, output_dir=self._output_dir, parameters={}, rank=1)

    def start(self, resumed_step: int | None, announce: Announce) -> None:
        """Register `metrics.jsonl` and the trackers, on rank 0 only."""
        settings = self._config.tracking
        trackers = make_trackers(
            settings,
            name=self._config.name,
            output_dir=self._output_dir,
            parameters=plain(self._config),
            announce=announce,
            resumed_step=resumed_step,
        )
        for observer in (MetricsLog(self._output_dir / FILE_NAME, settings.log_every_steps, resumed_step), *trackers):
            self._manager.register(observer)
            self._own.append(observer)

    def step_ended(self, event: StepEvent) -> None:
        """Fire ``embed_step_ended``."""
        self._manager.hook.embed_step_ended(event=event)

    def run_ended(self, event: RunEvent) -> None:
        """Fire ``embed_run_ended``, then unregister the run's own observers: the manager may serve another run."""
        try:
            self._manager.hook.embed_run_ended(event=event)
        finally:
            for observer in self._own:
                self._manager.unregister(observer)
            self._own.clear()
