"""Training states on disk: written under a temporary name, renamed when complete, the last K and the best kept.

A state is DeepSpeed's own (weights, optimizer, per rank) plus ``state.json``. Nothing else has to be saved: the batch,
the learning rate and the random states of a step are pure functions of (seed, step).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embed_core.engine.ranks import Ranks
from embed_core.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")


@dataclass
class TrainState:
    """What a resume needs besides DeepSpeed's files."""

    step: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    world_size: int = 1
    zero_stage: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    """What must not change between start and resume: model, data, sampler, seed, precision."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run."""

    def __init__(self, folder: Path, keep_last: int, ranks: Ranks) -> None:
        self.folder, self.keep_last, self.ranks = folder, keep_last, ranks

    def steps(self) -> list[int]:
        """Steps with a complete state, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in names if match)

    def save(self, engine: Any, state: TrainState) -> None:
        """Write a state. A collective; complete on disk for every rank when it returns."""
        target = self.path(state.step)
        temporary = target.with_name(f".{target.name}.tmp")
        if self.ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.ranks.barrier()
        engine.save_checkpoint(str(temporary), tag="deepspeed", save_latest=False)
        self.ranks.barrier()
        if self.ranks.rank == 0:
            (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            self._prune(state)
        self.ranks.barrier()

    def read_state(self, step: int) -> TrainState:
        """``state.json`` of a step. Raises CheckpointError when it is damaged."""
        path = self.path(step) / "state.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw["evaluations"] = {int(key): value for key, value in raw["evaluations"].items()}
            return TrainState(**raw)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: damaged ({type(error).__name__}: {error}): delete {self.path(step).name} to resume from an "
                "earlier state"
            ) from None

    def load(self, engine: Any, step: int) -> None:
        """Load DeepSpeed's part of a state into the engine. A collective."""
        path, _ = engine.load_checkpoint(str(self.path(step)), tag="deepspeed", load_lr_scheduler_states=False)
        if path is None:
            raise CheckpointError(
                f"{self.path(step)}: DeepSpeed's part is missing: delete it to resume from an earlier"
            )

    def path(self, step: int) -> Path:
        """The folder of a step's state."""
        return self.folder / f"step-{step:08d}"

    def _prune(self, state: TrainState) -> None:
        keep = {*self.steps()[-self.keep_last :], state.best_step}
        for step in self.steps():
            if step not in keep:
                shutil.rmtree(self.path(step), ignore_errors=True)


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


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
