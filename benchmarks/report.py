"""Measurements → Markdown: speeds with their spread, ratios pair by pair, loss curves side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.cases import Case

Spread = tuple[float, float, float]
"""Smallest, median, largest."""


@dataclass(frozen=True)
class Measurement:
    """One process: what its clock saw."""

    marks: Sequence[tuple[float, float]]
    """Wall-clock and CPU seconds at the end of each step."""
    losses: Sequence[float]
    peak_mib: float
    flops: Sequence[float] = ()
    """Of the model in each step, where the system knows them: one forward and one backward, no padding."""
    peak_flops: float = 0.0
    """What the device can do per second."""

    def rows_per_second(self, case: Case, *, cpu: bool = False) -> float:
        """From the end of step ``skip`` to the end of the last one."""
        assert len(self.marks) == case.steps, f"{len(self.marks)} steps were marked, {case.steps} asked for"
        column = 1 if cpu else 0
        return case.timed_rows / (self.marks[-1][column] - self.marks[case.skip - 1][column])


Repeats = Mapping[str, Sequence["Measurement | None"]]
"""System → a measurement per repeat, ``None`` where it failed."""


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return min(values), median(values), max(values)


def ratios(case: Case, over: str, under: str, repeats: Repeats, *, cpu: bool = False) -> list[float]:
    """Rows/s of ``over`` / rows/s of ``under``, pair by pair; a pair with a failure is left out."""
    pairs = zip(repeats[over], repeats[under], strict=True)
    return [a.rows_per_second(case, cpu=cpu) / b.rows_per_second(case, cpu=cpu) for a, b in pairs if a and b]


def case_report(case: Case, repeats: Repeats, tokens_per_row: float) -> str:
    """A section."""
    tables = speeds(case, repeats, tokens_per_row), comparison(case, repeats), curves(case, repeats)
    parts = [f"### {case.title} ({case.precision})", *tables]
    return "\n\n".join(parts) + "\n"


def speeds(case: Case, repeats: Repeats, tokens_per_row: float) -> str:
    """A line per system; medians, with the smallest and the largest of rows/s."""
    rows = []
    per_row, peak = cost_of_a_row(case, repeats)
    for system in case.systems:
        good = [m for m in repeats[system.name] if m]
        failed = len(repeats[system.name]) - len(good)
        if not good:
            rows.append([system.name, "failed", "", "", "", "", ""])
            continue
        low, middle, high = spread([m.rows_per_second(case) for m in good])
        cpu = median([m.rows_per_second(case, cpu=True) for m in good])
        memory = max(m.peak_mib for m in good)
        count = f"{len(good)}" + (f" ({failed} failed)" if failed else "")
        rows.append([system.name, f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{middle * tokens_per_row:,.0f}"])
        used = f"{middle * per_row / peak:.1%}" if peak else ""
        rows[-1] += [f"{cpu:.2f}", used, f"{memory:,.0f}", count]
    return table(
        ["system", "rows/s", "tokens/s", "rows per CPU-second", "of the peak FLOP/s", "peak MiB", "runs"], rows
    )


def cost_of_a_row(case: Case, repeats: Repeats) -> tuple[float, float]:
    """FLOPs of a row and FLOP/s of the device, by the system that knows them: the work is the same for all. Zeros where
    none does."""
    for measured in (m for of in repeats.values() for m in of if m and m.peak_flops):
        return sum(measured.flops[case.skip :]) / case.timed_rows, measured.peak_flops
    return 0.0, 0.0


def comparison(case: Case, repeats: Repeats) -> str:
    """A line per ratio: over the pairs, smallest, median and largest."""
    rows = []
    for ratio in case.ratios:
        wall = ratios(case, ratio.over, ratio.under, repeats)
        name, target = f"{ratio.over} / {ratio.under}", f"{ratio.target:.2f}"
        if not wall:
            rows.append([name, "no pair", "", target, "not measured", ""])
            continue
        low, middle, high = spread(wall)
        cpu = median(ratios(case, ratio.over, ratio.under, repeats, cpu=True))
        met = "met" if middle >= ratio.target else "**missed**"
        pairs = zip(repeats[ratio.over], repeats[ratio.under], strict=True)
        memory = median([a.peak_mib / b.peak_mib for a, b in pairs if a and b])
        rows.append([name, f"{middle:.2f}× ({low:.2f}–{high:.2f})", f"{cpu:.2f}×", target, met, f"{memory:.2f}×"])
    return table(["rows/s of", "ratio, median (min–max)", "by CPU time", "at least", "", "peak memory"], rows)


def curves(case: Case, repeats: Repeats, lines: int = 8) -> str:
    """The loss of each system's first good run, at steps spread over the run, the first and the last included."""
    first = {name: next((m for m in of if m), None) for name, of in repeats.items()}
    shown = {name: m for name, m in first.items() if m}
    count = min(lines, case.steps)
    steps = sorted({round(n * (case.steps - 1) / max(1, count - 1)) for n in range(count)})
    rows = [[str(step + 1), *(f"{m.losses[step]:.4f}" for m in shown.values())] for step in steps]
    return table(["loss at step", *shown], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
