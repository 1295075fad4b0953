"""The command ``embed plan``: estimates memory and time of a run before it starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from embed_cli.display import clock_time
from embed_cli.run_command import RunRequest, resolve
from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from embed_core.inspection.plan.report import Plan, StrategyView

Lines = list[tuple[str, str, str]]
"""Label, value and remark of each line."""


@dataclass(frozen=True)
class PlanCommand:
    """The options of ``embed plan``."""

    run: RunRequest
    """Identifies the run, by the same options as ``embed run``; ``nproc`` is the number of ranks."""
    device: str | None = None
    zero_stage: int | None = None
    batches: int = 4
    json_file: str | None = None
    """File for the JSON; ``-`` prints it to standard output, without the tables."""
    phase: str | None = None
    """Phase of a run with several; None = the first."""


def execute(request: PlanCommand) -> None:
    """Print the plan: tables on a terminal, aligned lines elsewhere; write JSON where requested."""
    _check_file(request.json_file)
    config, _, registry = resolve(request.run, request.run.nproc)
    config = config.only(request.phase) if config.phases or request.phase else config
    from embed_core.inspection.plan.plan import plan
    from embed_core.inspection.plan.target import PlanRequest

    wanted = PlanRequest(request.device, request.run.nproc, request.zero_stage, request.batches)
    made = plan(config, registry, wanted, announce=_to_stderr)
    text = json.dumps(asdict(made), ensure_ascii=False, indent=2)
    if request.json_file == "-":
        print(text)
        return
    if request.json_file is not None:
        Path(request.json_file).write_text(text + "\n", encoding="utf-8")
    console = Console()
    if console.is_terminal:
        for part in tables(made):
            console.print(part)
    else:
        for line in plain_lines(made):
            if "utf" not in console.encoding:
                line = line.encode(console.encoding, "replace").decode(console.encoding)
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_file(name: str | None) -> None:
    """Reject an unusable file before minutes of measuring."""
    if name is None or name == "-":
        return
    path = Path(name)
    if path.exists():
        raise ConfigError(f"--json {name!r} exists and is not overwritten: give another file, or - for the output")
    if not path.parent.is_dir():
        raise ConfigError(f"--json {name!r}: there is no folder {str(path.parent)!r}: make it, or give another file")


def _to_stderr(line: str) -> None:
    # Announcements of the dataset are not part of the output, which may be piped.
    print(line, file=sys.stderr)


def sections(plan: Plan) -> list[tuple[str, Lines]]:
    """The lines of the plan under their headings."""
    return [
        ("model", list(_model_lines(plan))),
        ("memory per rank", list(_memory_lines(plan))),
        ("data", list(_data_lines(plan))),
        ("speed", list(_speed_lines(plan))),
    ]


def plain_lines(plan: Plan) -> list[str]:
    """The plan as aligned text."""
    blocks = sections(plan)
    widths = [max(len(line[column]) for _, lines in blocks for line in lines) for column in (0, 1)]
    found = [title(plan)]
    for heading, lines in blocks:
        found.append(heading)
        for what, value, remark in lines:
            found.append(f"  {what.ljust(widths[0])}  {value.rjust(widths[1])}  {remark}".rstrip())
    return [*found, *verdicts(plan), *(f"note: {note}" for note in plan.notes)]


def tables(plan: Plan) -> list[Table | Text]:
    """The plan for a terminal: one table, and the verdicts under it."""
    table = Table(title=title(plan), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.show_header = False
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, lines in sections(plan):
        table.add_row(Text(heading, "bold"), "", "")
        for line in lines:
            table.add_row(*map(Text, line))
    styled = [Text(line, "green" if view.fits else "bold red") for line, view in _strategy_lines(plan)]
    return [table, *styled, Text(_chunk_line(plan)), *(Text(f"note: {note}", "dim") for note in plan.notes)]


def title(plan: Plan) -> str:
    """The line that names run, devices, precision and ZeRO stage."""
    ranks = "1 rank" if plan.ranks == 1 else f"{plan.ranks} ranks"
    device = f"{plan.device.name} (this machine)" if plan.device.here else plan.device.name
    recompute = ", gradient checkpointing" if plan.checkpointing else ""
    return (
        f"plan of {plan.name}: {ranks} of {device}, {plan.precision}, ZeRO stage {plan.zero_stage}, "
        f"chunks of {plan.token_budget:,} tokens{recompute}"
    )


def verdicts(plan: Plan) -> list[str]:
    """Lines that say whether each strategy fits, and how large the largest chunk is."""
    return [*(line for line, _ in _strategy_lines(plan)), _chunk_line(plan)]


def _strategy_lines(plan: Plan) -> Iterator[tuple[str, StrategyView]]:
    for view in plan.strategies:
        verb = "fits" if view.fits else "does not fit"
        taken = "; the run takes it" if view.name == plan.strategy else ""
        line = f"{view.name} {verb}: {_bytes(view.total)} of {_bytes(plan.device.memory)}"
        if not view.fits and view.total <= plan.device.memory:
            line += f", of which tensors can fill {_bytes(plan.device.usable)}"
        yield line + taken, view


def _chunk_line(plan: Plan) -> str:
    chunk = plan.largest_chunk
    if not chunk.tokens:
        return (
            f"no chunk fits, not even one text of {chunk.text_tokens:,} tokens: more ranks with --zero-stage 3, "
            "engine.gradient_checkpointing, or shorter texts"
        )
    how = "tried on this device" if chunk.tried else "by what smaller chunks held"
    whole = ", a rank's whole share of a batch" if chunk.whole_share else f" (engine.token_budget={chunk.tokens})"
    return f"largest chunk that fits: {chunk.tokens:,} tokens{whole}, {how}"


def _model_lines(plan: Plan) -> Iterator[tuple[str, str, str]]:
    count = plan.parameters
    tables = f"{count.embedding:,} in embedding tables, {count.non_embedding:,} elsewhere"
    yield "parameters", f"{count.total:,}", tables
    yield "trainable", f"{count.trainable:,}", f"{count.trainable / count.total:.1%}"


def _memory_lines(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for part in plan.memory:
        if part.bytes:
            yield part.name, _bytes(part.bytes), ""
    remarks = {"direct": "all chunks of a rank's share, with the loss", "cached": "one chunk, or the loss"}
    for view in plan.strategies:
        yield f"activations, {view.name}", _bytes(view.activations), remarks[view.name]


def _data_lines(plan: Plan) -> Iterator[tuple[str, str, str]]:
    data = plan.data
    batches = "the first batch" if data.batches == 1 else f"mean of the first {data.batches} batches"
    yield "rows per batch", f"{data.rows:,.0f}", batches
    yield "texts per batch", f"{data.texts:,.0f}", f"{data.repeated_share:.1%} repeat another and are encoded once"
    yield "tokens per batch", f"{data.tokens:,.0f}", f"padding adds {data.padding_share:.1%} of what the device sees"
    for column in data.columns:
        remark = f"tokens on average, {column.longest:,} at most"
        if column.truncated_share is not None and column.tokens_lost_share is not None:
            remark += f"; {column.truncated_share:.1%} cut, {column.tokens_lost_share:.1%} of the tokens lost"
        yield column.role, f"{column.mean_tokens:,.1f}", remark


def _speed_lines(plan: Plan) -> Iterator[tuple[str, str, str]]:
    from embed_core.inspection.plan.speed import REALISTIC

    speed, device = plan.speed, plan.device
    repeated = speed.flops_per_step / speed.model_flops_per_step if speed.model_flops_per_step else 1.0
    how = "" if speed.flops_by_shape else ", counted as a chunk ran"
    again = f"{repeated:.2f}× that with what is computed again" if repeated > 1.005 else ""
    yield "FLOPs per step", _flops(speed.model_flops_per_step), f"of the model{how}{again and '; ' + again}"
    if device.peak_flops is not None:
        source = "measured by matrix products" if device.peak_measured else "dense, of the data sheet"
        yield "peak per device", f"{_flops(device.peak_flops)}/s", f"in {plan.precision}, {source}"
    if speed.ceiling is not None and speed.realistic is not None:
        yield "tokens/s at most", f"{speed.ceiling:,.0f}", "all ranks, at the peak"
        yield "tokens/s realistic", f"{speed.realistic:,.0f}", f"at {REALISTIC:.0%} of the peak"
    if speed.measured is not None and speed.ceiling is not None:
        yield "tokens/s measured", f"{speed.measured:,.0f}", f"{speed.measured / speed.ceiling:.1%} of the peak"
    if speed.loss_seconds is not None:
        yield "loss per batch", _seconds(speed.loss_seconds), "measured, forward and backward"
    yield "steps", f"{speed.steps:,}", f"of {speed.tokens_per_step:,.0f} tokens"
    if speed.seconds is not None:
        basis = "the measured tokens/s" if speed.measured is not None else f"{REALISTIC:.0%} of the peak"
        yield "time", clock_time(speed.seconds), f"by {basis}; evaluations and the optimizer come on top"


def _bytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"


def _flops(count: float) -> str:
    for scale, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}FLOP"
    return f"{count / 1e6:,.1f} MFLOP"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.0f} ms"
