"""The command ``embed prove``: compares the loss and gradient of the user's own run over all execution paths."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_cli.run_command import RunRequest, resolve
from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from embed_core.inspection.prove.variants import Finding, Variant

WORKER = (sys.executable, "-m", "embed_core.inspection.prove.worker")
HEADER = ("variant", "chunks", "loss", "Δ loss", "Δ gradient", "result")


@dataclass(frozen=True)
class ProveRequest:
    """The options of ``embed prove``."""

    run: RunRequest
    """Identifies the run, by the same options as ``embed run``."""
    ranks: int = 2
    batches: int = 2
    phase: str | None = None
    """Phase of a run with several; None = the first."""


def execute(request: ProveRequest) -> None:
    """Measure every variant, print the table; exit code 1 where one fails."""
    if "RANK" in os.environ:
        raise ConfigError("embed prove starts its own ranks and RANK is set: run it without a launcher")
    config, _, _ = resolve(request.run, request.ranks)
    config = config.only(request.phase) if config.phases or request.phase else config
    rows = config.in_phase(0).sampler.batch_size
    if rows < request.ranks:
        raise ConfigError(
            f"--ranks {request.ranks}: a batch of {rows} rows (sampler.batch_size) cannot be "
            "shared by them: use at least one row per rank"
        )
    from rich.console import Console

    from embed_core.config.resolve import plain

    console = Console()
    batches = f"{request.batches} batches" if request.batches > 1 else "1 batch"
    ranks = "1 rank" if request.ranks == 1 else f"1 and {request.ranks} ranks"
    _print(console, f"comparing on {batches} of {rows} rows, in fp32, on {ranks}")
    findings = prove(plain(config), request.ranks, request.batches, WORKER)
    if console.is_terminal:
        console.print(table(findings))
    else:
        for line in plain_lines(findings):
            _print(console, line)
    for line in ending_lines(findings):
        _print(console, line)
    if not all(finding.passed for finding in findings):
        raise SystemExit(1)


def prove(config: dict[str, Any], ranks: int, batches: int, worker: Sequence[str]) -> list[Finding]:
    """Findings of all variants. ``worker`` is the command that each rank runs with a request file.

    Raises SystemExit with a worker's exit code where one fails; the worker has printed the reason.
    """
    from embed_core.inspection.prove.variants import variants_of

    with tempfile.TemporaryDirectory(prefix="embed-prove-") as directory:
        return [f for start in variants_of(ranks) for f in _start(start, config, batches, Path(directory), worker)]


def _start(
    variants: Sequence[Variant], config: dict[str, Any], batches: int, directory: Path, worker: Sequence[str]
) -> list[Finding]:
    from embed_cli.launch import launch
    from embed_core.inspection.prove.variants import FINDINGS, MeasureRequest, read_findings

    ranks = max(variant.ranks for variant in variants)
    path = directory / f"request-{ranks}.json"
    MeasureRequest(config, tuple(variants), batches, str(directory)).write(path)
    code = launch([*worker, str(path)], ranks)
    if code:
        raise SystemExit(code)
    found = read_findings(directory / FINDINGS)
    assert [f.variant for f in found] == [v.name for v in variants], "the workers measured something else"
    return found


def plain_lines(findings: Sequence[Finding]) -> list[str]:
    """The table as aligned text."""
    rows = [HEADER, *map(_cells, findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def table(findings: Sequence[Finding]) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    styles = {"pass": "green", "FAIL": "bold red"}
    built = Table(*HEADER, box=box.SIMPLE_HEAD, pad_edge=False)
    for finding in findings:
        cells = _cells(finding)
        built.add_row(*map(Text, cells[:-1]), Text(cells[-1], styles.get(cells[-1].split()[0], "")))
    return built


def _cells(finding: Finding) -> tuple[str, ...]:
    name, chunks, loss = finding.variant, str(finding.chunks), f"{finding.loss:.6f}"
    if finding.is_reference:
        return name, chunks, loss, "-", "-", "compared with"
    result = "pass" if finding.passed else "FAIL"
    return name, chunks, loss, f"{finding.loss_difference:.1e}", f"{finding.gradient_difference:.1e}", result


def ending_lines(findings: Sequence[Finding]) -> list[str]:
    """Lines that say what the table means, and where a failed variant differs most."""
    from embed_core.inspection.prove.variants import SCALE_TOLERANCE, TOLERANCE

    failed = [f for f in findings if not f.passed]
    lines = [
        f"FAIL: {f.variant}: differs from {f.against!r}, the loss by {f.loss_difference:.1e}, the gradient by "
        f"{f.gradient_difference:.1e} ({f.scaled_difference:.1e} of its largest value), most in "
        f"{f.worst_parameter or 'no parameter'}"
        for f in failed
    ]
    if not any(f.random for f in findings):
        lines.append("this model has no dropout: the variants with dropout on are like those without")
    checked = sum(not f.is_reference for f in findings)
    lines.append(
        f"{checked - len(failed)} of {checked} variants agree; tolerance {TOLERANCE:.0e} relative to max(1, largest "
        f"value), {SCALE_TOLERANCE:.0e} of the largest gradient"
    )
    return lines


def _print(console: Any, line: str) -> None:
    if "utf" not in console.encoding:
        line = line.replace("Δ", "diff of").encode(console.encoding, "replace").decode(console.encoding)
    console.print(line, markup=False, highlight=False, soft_wrap=True)
