"""Displays a run while it trains: live on a terminal, in plain lines elsewhere. Both are observers.

Displays are no part of the loop: like a plugin's observers, they are registered and get the events of steps and end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from embed_cli.tables import compare, plain_lines, rich_table, split_key, way_label
from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from rich.console import RenderableType

    from embed_core.events import RunEvent, StepEvent

WINDOW_SECONDS = 30.0
"""Rates and the time left are averages over the last steps of this many seconds, but over at least two steps."""


def make_display(console: Console | None = None, rank: int = 0, every_seconds: float = 10.0) -> Display:
    """This process's display: live on a terminal, else plain lines; silent on other ranks than 0."""
    if rank != 0:
        return Display()
    console = console or Console()
    return RichDisplay(console) if console.is_terminal else PlainDisplay(console, every_seconds)


class Display:
    """A display that shows nothing, for the ranks other than 0."""

    def announce(self, line: str) -> None:
        """Show one line at once, above any live part."""

    def close(self) -> None:
        """Release the terminal. The end of a run does this; a second call is harmless."""

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Show a step or an evaluation."""

    @hookimpl
    def embed_run_ended(self, event: RunEvent) -> None:
        """Show how the run ended."""


class PlainDisplay(Display):
    """Prints whole lines, flushed, for logs and pipes: the first and last step, and one each ``every_seconds``."""

    def __init__(
        self, console: Console, every_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._every = every_seconds
        self._clock = clock
        self._shown: float | None = None
        self._recent = Recent()

    def announce(self, line: str) -> None:
        """Print the line."""
        _print(self._console, [line])

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Print a step when it is due, an evaluation always."""
        if event.rank != 0:
            return
        if event.evaluation is not None:
            _print(self._console, evaluation_lines(event))
            return
        self._recent.add(event)
        now = self._clock()
        if self._shown is None or event.step == event.total_steps or now - self._shown >= self._every:
            self._shown = now
            _print(self._console, [step_line(event, self._recent)])

    @hookimpl
    def embed_run_ended(self, event: RunEvent) -> None:
        """Print the before/after tables and the place of the model."""
        if event.rank != 0:
            return
        for comparison in compare(event.evaluations):
            _print(self._console, plain_lines(comparison))
        _print(self._console, ending_lines(event))


class RichDisplay(Display):
    """Shows a progress bar with losses and speed under it, redrawn in place from the first step on."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._live: Live | None = None
        self._event: StepEvent | None = None
        self._recent = Recent()

    def announce(self, line: str) -> None:
        """Print the line above the live part."""
        _print(self._console, [line])

    def close(self) -> None:
        """Stop redrawing: the last state stays on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @hookimpl
    def embed_step_ended(self, event: StepEvent) -> None:
        """Remember a step for the next redraw; print an evaluation above the live part.

        The last evaluation is not printed, because the table that follows shows it.
        """
        if event.rank != 0 or (event.evaluation is not None and event.step == event.total_steps):
            return
        if event.evaluation is not None:
            _print(self._console, evaluation_lines(event))
            return
        self._recent.add(event)
        self._event = event
        if self._live is None:
            self._started = self._clock() - event.seconds
            # Drawing costs a millisecond, which the model needs on two cores: so only four times a second.
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start(refresh=True)

    @hookimpl
    def embed_run_ended(self, event: RunEvent) -> None:
        """Stop the live part, print the before/after tables and the place of the model."""
        if event.rank != 0:
            return
        self.close()
        for comparison in compare(event.evaluations):
            self._console.print(rich_table(comparison, self._console.width))
        _print(self._console, ending_lines(event))

    def _render(self) -> RenderableType:
        event = self._event
        if event is None:
            return Text("")
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(total=event.total_steps, completed=event.step),
            f"{event.step:,}/{event.total_steps:,}",
            f"elapsed {clock_time(self._clock() - self._started)}",
            f"ETA {clock_time(self._recent.seconds_left(event))}",
        )
        width = self._console.width
        return Group(
            bar,
            _wrapped([*phase_fields(event), *loss_fields(event)], width),
            _wrapped(speed_fields(event, self._recent), width),
        )


class Recent:
    """The last steps, from which rates are averaged, because the time of single steps varies."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window = window_seconds
        self._steps: deque[StepEvent] = deque()
        self._seconds = 0.0

    def add(self, event: StepEvent) -> None:
        """Add a step and drop those outside the window."""
        self._steps.append(event)
        self._seconds += event.seconds
        while len(self._steps) > 2 and self._seconds - self._steps[0].seconds >= self._window:
            self._seconds -= self._steps.popleft().seconds

    def per_second(self, count: Callable[[StepEvent], float]) -> float:
        """Sum of ``count`` over the steps in the window, per second."""
        return sum(map(count, self._steps)) / self._seconds if self._seconds > 0 else 0.0

    @property
    def padding_share(self) -> float:
        """Share of padding among all tokens the hardware saw, 0 to 1."""
        padded = sum(event.padded_tokens for event in self._steps)
        return 1.0 - sum(event.tokens for event in self._steps) / padded if padded else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, 0 to 1: the share of the devices' peak; ``None`` where it is unknown."""
        done = [event.flops for event in self._steps if event.flops is not None]
        peak = self._steps[-1].peak_flops if self._steps else None
        if not peak or len(done) < len(self._steps) or self._seconds <= 0:
            return None
        return sum(done) / (self._seconds * peak)

    def seconds_left(self, event: StepEvent) -> float:
        """Time of the remaining steps at the recent speed; evaluations come on top."""
        return (event.total_steps - event.step) * self._seconds / max(1, len(self._steps))


def step_line(event: StepEvent, recent: Recent) -> str:
    """One line for a step: ``step 10/300  loss 2.3141  dense 2.1034  …  412 rows/s  …  ETA 1:34``."""
    fields = [f"step {event.step}/{event.total_steps}", *phase_fields(event), *loss_fields(event)]
    fields += speed_fields(event, recent)
    return "  ".join([*fields, f"ETA {clock_time(recent.seconds_left(event))}"])


def phase_fields(event: StepEvent) -> list[str]:
    """The phase's name, in a run that has several."""
    return [event.phase] if event.phase else []


def loss_fields(event: StepEvent) -> list[str]:
    """The loss and its terms."""
    return [f"loss {event.loss:.4f}", *(f"{term} {value:.4f}" for term, value in event.terms.items())]


def speed_fields(event: StepEvent, recent: Recent) -> list[str]:
    """Rates over the window, then this step's learning rate and gradient norm."""
    fields = [
        f"{_rate(recent.per_second(lambda e: e.rows))} rows/s",
        f"{_rate(recent.per_second(lambda e: e.tokens))} tokens/s",
        f"padding {recent.padding_share:.1%}",
        *([] if recent.mfu is None else [f"MFU {recent.mfu:.1%}"]),
        f"lr {event.learning_rate:.2e}",
    ]
    return fields if event.gradient_norm is None else [*fields, f"grad {event.gradient_norm:.2f}"]


def evaluation_lines(event: StepEvent) -> list[str]:
    """One line per evaluator and way: ``step 150  held-out  dense  nDCG@10 0.312  MRR@10 0.281  …``."""
    rows: dict[tuple[str, str], list[str]] = {}
    for key, value in (event.evaluation or {}).items():
        evaluator, way, measure = split_key(key)
        rows.setdefault((evaluator, way_label(way)), []).append(f"{measure} {value:.3f}")
    evaluator_width = max((len(evaluator) for evaluator, _ in rows), default=0)
    way_width = max((len(way) for _, way in rows), default=0)
    step = "  ".join([f"step {event.step}", *phase_fields(event)])
    return [
        "  ".join(part for part in (step, evaluator.ljust(evaluator_width), way.ljust(way_width), *cells) if part)
        for (evaluator, way), cells in rows.items()
    ]


def ending_lines(event: RunEvent) -> list[str]:
    """Where the model is, or after an error where the run stopped (the error is printed by whoever catches it)."""
    if event.error is not None:
        left = f"what there is lies in {event.output_dir}" if event.output_dir.exists() else "nothing was written"
        return [f"stopped after {event.steps:,} steps; {left}"]
    if event.export_dir is None:
        return [f"finished {event.steps:,} steps in {event.output_dir}"]
    return [f"finished {event.steps:,} steps; the model is in {event.export_dir}"]


def clock_time(seconds: float) -> str:
    """Format seconds as ``1:34`` or ``2:01:34``."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _wrapped(fields: Iterable[str], width: int) -> Text:
    """Join fields with three blanks, on as many lines as they need, without breaking a field."""
    lines = [""]
    for field in fields:
        longer = f"{lines[-1]}   {field}" if lines[-1] else field
        if lines[-1] and len(longer) > width:
            lines.append(field)
        else:
            lines[-1] = longer
    return Text("\n".join(lines))


def _print(console: Console, lines: Iterable[str]) -> None:
    """Lines as they are: no markup, no colours guessed, no wrapping; what the stream's encoding lacks becomes ASCII."""
    for line in lines:
        if "utf" not in console.encoding:
            line = (
                line.replace("→", "->").replace("–", "-").encode(console.encoding, "replace").decode(console.encoding)
            )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()
