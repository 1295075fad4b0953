"""The stopwatch every trainer runs with: marks at the end of each step, peak memory, and the loss curve."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Clock:
    """Wall-clock and CPU seconds at the end of every optimizer step, and the losses."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.flops: list[float] = []
        """Of each step, and :attr:`peak_flops` per second of the device: where the trainer knows them."""
        self.peak_flops = 0.0

    def mark(self) -> None:
        """A step has ended, on the device too."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def write(self, path: Path) -> None:
        """The measurement as JSON. ``peak_mib`` is the process's largest resident memory until now, or the
        largest that torch had on a GPU."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated() / 2**20
        found = {"marks": self.marks, "losses": self.losses, "peak_mib": peak}
        found |= {"flops": self.flops, "peak_flops": self.peak_flops}
        path.write_text(json.dumps(found), encoding="utf-8")


def trainer_callback(clock: Clock) -> Any:
    """The clock as a callback of transformers' Trainer, which both peers are built on."""
    from transformers import TrainerCallback

    class ClockCallback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            clock.mark()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(float(logs["loss"]))

    return ClockCallback()


def read_order() -> dict[str, Any]:
    """What the driver asked for: the JSON file named on the command line."""
    order: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return order
