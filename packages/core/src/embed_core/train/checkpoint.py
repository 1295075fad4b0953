"""Checkpoints (training states) of a run: saved on schedule, pruned to the last K and the best, loaded by a resume.

A state is DeepSpeed's own (weights, optimizer, per rank) plus ``state.json``, which also lists DeepSpeed's files and
their sizes: with a file missing DeepSpeed would go on, without the optimizer's state. Nothing else has to be saved: the
batch, the learning rate and the random states of a step are pure functions of (seed, step).
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embed_core.config.component import CheckpointConfig
from embed_core.distributed.process_group import Ranks, is_lost_rank
from embed_core.errors import CheckpointError
from embed_core.train.output_dir import replace_directory, write_text
from embed_core.utils.messages import one_line

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class TrainState:
    """The part of a checkpoint that is not DeepSpeed's."""

    step: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    skipped: int = 0
    """The number of steps whose loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    phase: int = 0
    """The number of the phase, from 0."""
    phase_start: int = 0
    """Optimizer steps that were done when the phase began."""
    world_size: int = 1
    zero_stage: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    """Settings that must not change between start and resume: model, data, sampler, seed, precision."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run."""

    def __init__(self, folder: Path, keep_last: int, ranks: Ranks) -> None:
        self.folder, self.keep_last, self.ranks = folder, keep_last, ranks

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in names if match)

    def save(self, engine: Any, state: TrainState) -> None:
        """Save a checkpoint under a temporary name and rename it. A collective; it is complete when it returns."""
        target = self.path(state.step)
        temporary = target.with_name(f".{target.name}.tmp")
        if self.ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.ranks.barrier()
        engine.save_checkpoint(str(temporary), tag="deepspeed", save_latest=False)
        self.ranks.barrier()
        if self.ranks.rank == 0:
            _write_state(temporary, state)
            replace_directory(temporary, target)
            self._prune(state)
        self.ranks.barrier()

    def note(self, state: TrainState) -> None:
        """Add later evaluations to the checkpoint of ``state.step``, if there is one. Called on rank 0."""
        if state.step in self.steps():
            _write_state(self.path(state.step), state)

    def clear_leftovers(self) -> None:
        """Remove checkpoints that a kill left half written. Called on rank 0."""
        for pattern in (".step-*.tmp", ".step-*.old"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path)

    def read_state(self, step: int) -> TrainState:
        """``state.json`` of a step. Raises CheckpointError when it or DeepSpeed's part is damaged."""
        path = self.path(step) / "state.json"
        instead = f"delete {self.path(step)} to resume from an earlier state"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            files = dict(raw.pop("files"))
            raw["evaluations"] = {int(key): value for key, value in raw["evaluations"].items()}
            state = TrainState(**raw)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error}): {instead}") from None
        found = _sizes(self.path(step))
        for name, size in files.items():
            if found.get(name) != size:
                what = "is missing" if name not in found else f"has {found[name]} bytes instead of {size}"
                raise CheckpointError(f"{self.path(step) / name}: {what}: {instead}")
        return state

    def load(self, engine: Any, step: int) -> None:
        """Load DeepSpeed's part of a checkpoint into the engine, a collective. Raises CheckpointError if damaged."""
        try:
            path, _ = engine.load_checkpoint(str(self.path(step)), tag="deepspeed", load_lr_scheduler_states=False)
            cause = "DeepSpeed's part is missing" if path is None else ""
        except Exception as error:  # whatever torch, pickle and DeepSpeed raise for a file that is not what it was
            if is_lost_rank(error):
                raise
            cause = f"DeepSpeed's part cannot be loaded ({type(error).__name__}: {one_line(error, 160)})"
        if cause:
            raise CheckpointError(f"{self.path(step)}: {cause}: delete it to resume from an earlier state")

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def _prune(self, state: TrainState) -> None:
        keep = {*self.steps()[-self.keep_last :], state.best_step}
        for step in self.steps():
            if step not in keep:
                shutil.rmtree(self.path(step), ignore_errors=True)


class CheckpointSchedule:
    """Saves the training states of a phase when they are due: every so many steps, every so many minutes, and last."""

    def __init__(self, config: CheckpointConfig, store: CheckpointStore, engine: Any, state: TrainState) -> None:
        self._config, self._store, self._engine, self._state = config, store, engine, state
        self._saved_at, self._saved_step = time.monotonic(), state.step
        self.is_due = False
        """Whether rank 0 asked for a checkpoint before the step that was just taken."""

    def minutes_are_over(self) -> bool:
        """Whether this rank's clock asks for a checkpoint. Clocks differ and saving is a collective: rank 0's answer
        counts, and the step tells it to all ranks."""
        minutes = self._config.every_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes

    def save_if_due(self, *, force: bool) -> None:
        """Save the state of the current step where it is due, or where ``force`` asks for it."""
        every = self._config.every_steps
        if force or self.is_due or (every and self._state.step % every == 0):
            self._save()

    def save_last(self) -> None:
        """Save the last state where any is saved: the last evaluation may fail, and a run may be trained on."""
        if (self._config.every_steps or self._config.every_minutes) and self._saved_step != self._state.step:
            self._save()

    def _save(self) -> None:
        self._store.save(self._engine, self._state)
        self._saved_at, self._saved_step = time.monotonic(), self._state.step


def check_same_run(saved: TrainState, now: TrainState) -> None:
    """Raises CheckpointError naming what changed since the state was saved, where a resume would not be one."""
    changed = [key for key, value in now.identity.items() if saved.identity.get(key) != value]
    if changed:
        details = "; ".join(f"{k}: {_short(saved.identity.get(k))} → {_short(now.identity[k])}" for k in changed)
        raise CheckpointError(
            f"--resume: this is not the run that was saved ({details}): use its settings, or a new run"
        )
    if (saved.world_size, saved.zero_stage) != (now.world_size, now.zero_stage) and (
        max(saved.zero_stage, now.zero_stage) > 0
    ):
        raise CheckpointError(
            f"--resume: the state was saved by {saved.world_size} ranks at ZeRO stage {saved.zero_stage} and this run "
            f"has {now.world_size} at stage {now.zero_stage}: sharded optimizer states resume on the same number of "
            "ranks and the same stage"
        )


def _write_state(folder: Path, state: TrainState) -> None:
    content = {**asdict(state), "files": _sizes(folder)}
    write_text(folder / "state.json", json.dumps(content, indent=2))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of DeepSpeed's part, by its path in ``folder``."""
    files = (path for path in (folder / "deepspeed").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
