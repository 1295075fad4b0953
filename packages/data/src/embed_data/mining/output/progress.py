"""Shows the progress of a long stage on rank 0: a bar on a terminal, elsewhere a line every so many seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[[int], None]


class Progress:
    """Shows stages of known length on ``stream``; ``shown`` is False on all ranks but one."""

    def __init__(
        self,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown, self._every, self._clock = shown, every_seconds, clock
        self._stream = stream if stream is not None else sys.stderr

    @contextmanager
    def stage(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Shows ``title`` from ``done`` to ``total``; the body calls what is yielded with the number just done."""
        if not self._shown or done >= total:
            yield lambda count: None
        elif self._stream.isatty():
            with self._bar(title, total, done) as advance:
                yield advance
        else:
            yield self._lines(title, total, done)

    @contextmanager
    def _bar(self, title: str, total: int, done: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(file=self._stream)) as bars:
            task = bars.add_task(title, total=total, completed=done)
            yield lambda count: bars.advance(task, count)

    def _lines(self, title: str, total: int, done: int) -> Advance:
        state = {"done": done, "shown": self._clock()}

        def advance(count: int) -> None:
            state["done"] += count
            now = self._clock()
            if state["done"] == total or now - state["shown"] >= self._every:
                state["shown"] = now
                print(f"{title}: {int(state['done']):,} of {total:,}", file=self._stream, flush=True)

        return advance
