"""``metrics.jsonl``: everything a run measured, one JSON object per logged step or evaluation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embed_core.errors import CheckpointError
from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from embed_core.events import RunEvent, StepEvent

FILE_NAME = "metrics.jsonl"


def is_logged(event: StepEvent, every_steps: int) -> bool:
    """Whether to log the event: all evaluations, the first and last step and every ``every_steps``-th are logged."""
    return event.evaluation is not None or event.step in (1, event.total_steps) or event.step % every_steps == 0


def step_record(event: StepEvent) -> dict[str, Any]:
    """A step as plain data. The keys are a public format: ``lr``, ``rows_per_s`` and ``tokens_per_s`` per second of
    this step, ``padding_share`` of all tokens the hardware saw, ``mfu`` the utilisation of the devices' peak by the
    model's own arithmetic, both between 0 and 1.

    ``phase`` is there in a run with phases. An evaluation has it, ``step``, ``epoch`` and ``evaluation`` only: what
    belongs to a step is written with the step.
    """
    phase = {"phase": event.phase} if event.phase else {}
    if event.evaluation is not None:
        return {"step": event.step, "epoch": event.epoch, **phase, "evaluation": dict(event.evaluation)}
    return {
        "step": event.step,
        "epoch": event.epoch,
        **phase,
        "loss": event.loss,
        "terms": dict(event.metrics),
        "lr": event.learning_rate,
        "grad_norm": event.gradient_norm,
        "seconds": event.seconds,
        "rows": event.rows,
        "tokens": event.tokens,
        "rows_per_s": rate(event.rows, event.seconds),
        "tokens_per_s": rate(event.tokens, event.seconds),
        "padding_share": padding_share(event.tokens, event.padded_tokens),
        "mfu": event.mfu,
    }


def rate(count: float, seconds: float) -> float:
    """``count`` per second; 0 where no time has passed."""
    return count / seconds if seconds > 0 else 0.0


def padding_share(tokens: float, padded_tokens: float) -> float:
    """The share of padding among the tokens that the hardware saw; 0 where it saw none."""
    return 1.0 - tokens / padded_tokens if padded_tokens > 0 else 0.0


class MetricsLog:
    """Observer that writes ``path``, on rank 0 only, flushed line by line; NaN and infinities become ``null``.

    ``resumed_step`` is the number of optimizer steps in the state the run continues from: the lines up to it stay,
    those after it (and a line torn by a kill) are dropped, so that no step is there twice. ``None`` starts a new file.
    Raises CheckpointError where ``path`` cannot be written.
    """

    def __init__(self, path: Path, every_steps: int = 1, resumed_step: int | None = None, rank: int = 0) -> None:
        self._every_steps = every_steps
        self._file = None
        if rank != 0:
            return
        try:
            kept = [] if resumed_step is None else _lines_until(path, resumed_step)
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, kept)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"{path}: the metrics cannot be written ({error.strerror}): choose another output_dir"
            ) from error

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Append the step or evaluation."""
        if self._file is None or event.rank != 0 or not is_logged(event, self._every_steps):
            return
        self._file.write(json.dumps(_finite(step_record(event)), allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    @hookimpl
    def embed_run_ended(self, event: RunEvent) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; later events are ignored."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: Any) -> Any:
    """Replace every NaN or infinity in ``value`` by ``None``: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _lines_until(path: Path, step: int) -> list[str]:
    """The whole lines of ``path`` about steps up to ``step``; none where there is no file."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= step:
            kept.append(line)
    return kept


def _replace(path: Path, lines: list[str]) -> None:
    """Write the file under another name first: a kill in between leaves the old one whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
