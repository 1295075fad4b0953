"""Whole runs in this process: the hello plugin, shrunk, over a few rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_core.config import document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import leave
from embed_core.events import RunEvent, StepEvent
from embed_core.plugin.hookspecs import hookimpl
from embed_core.plugin.manager import activate
from embed_core.testing.datasets import tiny_dataset
from embed_core.train.run import Options, RunResult, run

torch.set_num_threads(1)

SMALL = (
    "model={buckets: 64, width: 8, dimension: 8}",
    "sampler={kind: shuffled, batch_size: 6}",
    "train.max_steps=4",
    "tracking.report_to=[]",
    "checkpoint.every_minutes=0",
    "engine.precision=fp32",
)


@dataclass(eq=False)
class Recorder:
    """Observer that keeps what it is told."""

    steps: list[StepEvent] = field(default_factory=list)
    evaluations: list[StepEvent] = field(default_factory=list)
    ends: list[RunEvent] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    result: RunResult | None = None
    manager: Any = None

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        (self.steps if event.evaluation is None else self.evaluations).append(event)

    @hookimpl
    def embed_run_ended(self, event: RunEvent) -> None:
        self.ends.append(event)

    @property
    def losses(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.steps}


HelloRun = Callable[..., Recorder]


def hello_config(settings: Sequence[str], out: Path | None) -> tuple[RunConfig, Any, Any]:
    """The hello recipe, small, with ``key=value`` settings on top."""
    manager, registry = activate(["hello"])
    request = Request(
        registry.recipe("hello"),
        overrides=document.overrides([*SMALL, *settings]),
        flags={"output_dir": out and str(out), "plugins": ["hello"]},
    )
    return resolve_run(registry, request), manager, registry


@pytest.fixture
def hello_run(tmp_path: Path) -> Iterator[HelloRun]:
    """``hello_run("train.max_steps=2", resume=True, observers=[...])`` → what was observed; raises what the run raises.

    ``parts`` puts component configs in place of those of the recipe. The recorder is ``hello_run.last`` also where the
    run raised.
    """

    def start(
        *settings: str,
        out: str | None = "run",
        observers: Sequence[Any] = (),
        dataset: Any = None,
        parts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Recorder:
        recorder = Recorder()
        start.last = recorder  # type: ignore[attr-defined]
        config, manager, registry = hello_config(settings, None if out is None else tmp_path / out)
        config = config.model_copy(update=dict(parts or {}))
        recorder.manager = manager
        for observer in (recorder, *observers):
            manager.register(observer)
        data = dataset if dataset is not None else tiny_dataset(held_out_rows=6)
        recorder.result = run(
            config, manager, registry, Options(dataset=data, announce=recorder.lines.append, **options)
        )
        return recorder

    yield start
    leave()
