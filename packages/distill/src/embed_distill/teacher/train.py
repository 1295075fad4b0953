"""Trains a small teacher in a run of its own, once, and keeps it in the cache."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from embed_core.config.run import EngineConfig, RunConfig, TrackingConfig
from embed_core.export.config import TransformersCheckpointConfig
from embed_core.plugin.hookspecs import hookimpl
from embed_core.utils.atomic import beside
from embed_distill.teacher.config import TeacherConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.events import StepEvent
    from embed_core.protocols import Announce, Dataset
    from embed_distill.teacher.train_config import TrainedTeacher

EVERY_SECONDS = 20.0
"""Seconds between two lines of progress."""


def trained_teacher(config: TrainedTeacher, context: BuildContext) -> TeacherConfig:
    """The teacher, from the cache or newly trained. Every rank has to call this. Raises what a run raises."""
    dataset = config.data.build(context)
    target = context.cache_dir / "trained" / _key(config, dataset)
    # All ranks look before any of them can have written it, so they agree.
    there = (target / "config.json").is_file()
    context.barrier()
    if not there:
        context.announce(f"training the embedded teacher first, once: it will be kept as {target}")
        _train(config, dataset, context, target)
    return TeacherConfig(name_or_path=str(target), max_length=config.max_length)


def _key(config: TrainedTeacher, dataset: Dataset) -> str:
    parts = (config.model_dump_json(serialize_as_any=True), dataset.fingerprint())
    return blake2b("|".join(parts).encode(), digest_size=10).hexdigest()


def _train(config: TrainedTeacher, dataset: Dataset, context: BuildContext, target: Path) -> None:
    from embed_core.plugin.manager import plugin_manager
    from embed_core.train.run import Options, run

    # Train in a folder of its own: another run may train the same model, and the first to finish is kept.
    place = beside(target)
    nested = RunConfig(
        name="teacher",
        seed=config.seed,
        output_dir=place,
        model=config.model,
        data=config.data,
        sampler=config.sampler,
        loss=config.loss,
        checkpoint=TransformersCheckpointConfig(every_minutes=0),
        train=config.train,
        engine=EngineConfig(device="cuda" if context.device.startswith("cuda") else "cpu"),
        tracking=TrackingConfig(report_to=()),
    )
    with _random_state():
        try:
            manager = plugin_manager()
            if context.rank == 0:
                manager.register(_Progress(context.announce))
            result = run(nested, manager, context.registry, Options(announce=context.announce, dataset=dataset))
            if context.rank == 0:
                _keep(result.export_dir, target)
        finally:
            if context.rank == 0:
                shutil.rmtree(place, ignore_errors=True)
    context.barrier()


class _Progress:
    """Announces the progress of the teacher's training, which has no display."""

    def __init__(self, announce: Announce) -> None:
        self._announce, self._last = announce, time.monotonic()

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Announce a line if enough time has passed since the last one, and at the last step."""
        now = time.monotonic()
        if event.evaluation is None and (now - self._last >= EVERY_SECONDS or event.step == event.total_steps):
            self._last = now
            self._announce(f"embedded teacher: step {event.step} of {event.total_steps}, loss {event.loss:.4f}")


def _keep(export: Path, target: Path) -> None:
    try:
        export.rename(target)
    except OSError:
        if not (target / "config.json").is_file():  # if the target exists, another process was first
            raise


@contextmanager
def _random_state() -> Iterator[None]:
    """Restore the random generators that the inner run draws from, or the outer run would depend on the cache."""
    python, numbers, tensors = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.random.set_rng_state(tensors)
