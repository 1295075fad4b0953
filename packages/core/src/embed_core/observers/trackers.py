"""TensorBoard, Weights & Biases, SwanLab and MLflow as observers, through the tracker classes of ``accelerate``.

Those classes are used without an ``Accelerator``, which would start process groups, set devices and change the number
of threads. Two things make that work: each tracker is told not to ask for its rank (only rank 0 has any), and the
module's logger, which raises without accelerate's state, is replaced by one that does not.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import ConfigError
from embed_core.observers.metrics_log import is_logged, step_record
from embed_core.plugin.hookspecs import hookimpl
from embed_core.utils.messages import one_line

if TYPE_CHECKING:
    from embed_core.config.run import TrackingConfig
    from embed_core.events import RunEvent, StepEvent
    from embed_core.protocols import Announce

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab", "mlflow": "mlflow"}
"""Tracker → the package it needs, by the same name on the index and for ``import``."""


def make_trackers(
    config: TrackingConfig,
    *,
    name: str,
    output_dir: Path,
    parameters: Mapping[str, Any],
    rank: int = 0,
    announce: Announce = print,
    resumed_step: int | None = None,
) -> list[Tracker]:
    """Start the trackers of ``config.report_to`` on rank 0 and store the nested ``parameters`` flat in each.

    Raises ConfigError, on every rank, for one that is not installed, and on rank 0 for one that cannot start.
    """
    for kind in config.report_to:
        if not _is_installed(PACKAGES[kind]):
            raise ConfigError(
                f"tracking.report_to: {kind!r} is not installed: `pip install {PACKAGES[kind]}`, "
                "or take it out of tracking.report_to"
            )
    if rank != 0 or not config.report_to:
        return []
    _silence_accelerate()
    makers = {"tensorboard": _tensorboard, "wandb": _wandb, "swanlab": _swanlab, "mlflow": _mlflow}
    trackers = []
    for kind in dict.fromkeys(config.report_to):
        backend = _start(kind, makers[kind], (config.project, name, output_dir, resumed_step), parameters)
        trackers.append(Tracker(kind, backend, config.log_every_steps, announce))
    return trackers


class Tracker:
    """Observer that passes steps and evaluations on to one tracker.

    A tracker that fails during the run (a server gone away) is dropped with one line: it must not end the run.
    """

    def __init__(self, kind: str, backend: Any, every_steps: int, announce: Announce) -> None:
        self.kind = kind
        self._backend = backend
        self._every_steps = every_steps
        self._announce = announce

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Log the step or evaluation."""
        if event.rank == 0 and is_logged(event, self._every_steps):
            self._call("log", tracked_values(event), step=event.step)

    @hookimpl
    def embed_run_ended(self, event: RunEvent) -> None:
        """Close the tracker."""
        self._call("finish")
        self._backend = None

    def _call(self, method: str, *arguments: Any, **options: Any) -> None:
        if self._backend is None:
            return
        try:
            getattr(self._backend, method)(*arguments, **options)
        except Exception as error:
            self._backend = None
            self._announce(f"tracker {self.kind!r} failed and is off from here: {_one_line(error)}")


def tracked_values(event: StepEvent) -> dict[str, float]:
    """Finite numbers of an event by tracker name: ``train/…``, ``speed/…``, ``eval/…``; others are left out."""
    record = step_record(event)
    if "evaluation" in record:
        values = {f"eval/{key}": value for key, value in record["evaluation"].items()}
    else:
        train = ("loss", "lr", "grad_norm", "epoch")
        speed = ("rows_per_s", "tokens_per_s", "padding_share", "mfu")
        values = {f"train/{key}": record[key] for key in train}
        values |= {f"train/terms/{term}": value for term, value in record["terms"].items()}
        values |= {f"speed/{key}": record[key] for key in speed}
    # MLflow refuses "@" and TensorBoard renames it with a warning: one name everywhere, nDCG_10.
    return {
        re.sub(r"[^\w./-]", "_", key): float(value)
        for key, value in values.items()
        if value is not None and math.isfinite(value)
    }


def flat_parameters(value: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested plain data as ``a.b.0.c`` → scalar. A list of scalars is one JSON string, None is ``"none"``."""
    if isinstance(value, Mapping):
        items: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        items = list(enumerate(value))
    elif isinstance(value, (list, tuple)):
        return {prefix: json.dumps(list(value), ensure_ascii=False, default=str)}
    elif isinstance(value, (bool, int, float, str)):
        return {prefix: value}
    else:
        return {prefix: "none" if value is None else str(value)}
    flat: dict[str, bool | int | float | str] = {}
    for key, item in items:
        flat |= flat_parameters(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _is_installed(package: str) -> bool:
    # A folder ``wandb/``, which offline runs leave behind, passes for a package without an origin.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


Place = tuple[str, str, Path, int | None]
"""Project, run name, output directory, step resumed from."""


def _start(kind: str, make: Callable[[Place], Any], place: Place, parameters: Mapping[str, Any]) -> Any:
    try:
        backend = make(place)
        backend.main_process_only = False
        backend.start()
        backend.store_init_configuration(flat_parameters(parameters))
    except Exception as error:
        raise ConfigError(
            f"tracking.report_to: {kind!r} could not start ({_one_line(error)}): mend that, or take it out of "
            "tracking.report_to"
        ) from error
    return backend


def _tensorboard(place: Place) -> Any:
    from accelerate.tracking import TensorBoardTracker

    _, _, output_dir, resumed_step = place
    # Points of steps that are run again would be drawn twice: TensorBoard hides those from purge_step on.
    purge = {} if resumed_step is None else {"purge_step": resumed_step + 1}
    return TensorBoardTracker("tensorboard", output_dir, **purge)


def _wandb(place: Place) -> Any:
    from accelerate.tracking import WandBTracker

    project, name, output_dir, _ = place
    return WandBTracker(project, name=name, dir=str(output_dir))


def _swanlab(place: Place) -> Any:
    from accelerate.tracking import SwanLabTracker

    project, name, output_dir, _ = place
    return SwanLabTracker(project, experiment_name=name, logdir=str(output_dir / "swanlab"))


def _mlflow(place: Place) -> Any:
    from accelerate.tracking import MLflowTracker

    project, name, _, _ = place
    return MLflowTracker(experiment_name=project, run_name=name)


class _StatelessLogger(logging.LoggerAdapter[logging.Logger]):
    """The methods that ``accelerate.tracking`` calls on its logger, without accelerate's process state."""

    def warning_once(self, message: str, *arguments: Any) -> None:
        self.warning(message, *arguments)


def _silence_accelerate() -> None:
    from accelerate import tracking

    tracking.logger = _StatelessLogger(logging.getLogger("accelerate.tracking"), {})


def _one_line(error: BaseException) -> str:
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
