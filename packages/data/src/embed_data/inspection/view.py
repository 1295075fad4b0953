"""An inspection as lines for the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from embed_data.inspection.measure import Inspection, Lengths

NAMES = {"query": "queries", "pos": "positives", "neg": "negatives"}


def lines(found: Inspection) -> Iterator[str]:
    """Aligned lines, one fact each."""
    yield f"{found.name}: {found.place}"
    yield _fact("format", found.format)
    yield _fact("columns", ", ".join(found.columns) or "-")
    yield _fact("rows", f"{found.usable:,} usable of {found.read:,}")
    if found.bad:
        yield _fact("bad rows", ", ".join(f"{count:,} {reason}" for reason, count in found.bad.items()))
        yield from (f"    {example}" for example in found.bad_examples)
        yield _fact("listed in", str(found.skipped_file))
    yield from _table("characters", found.characters)
    yield from _table("tokens", found.tokens)
    for part, count in found.too_long.items():
        if part in found.tokens:
            yield _fact("over-long", f"{count:,} of {found.tokens[part].texts:,} {NAMES[part]} would be truncated")
    yield _fact("contents", ", ".join(f"{count:,} {what}" for what, count in found.counts.items() if count) or "pairs")
    repeated = ", ".join(f"{count:,} {what}" for what, count in found.duplicates.items() if count)
    yield _fact("duplicates", repeated + " occurred before" if repeated else "none")
    for name, counts in found.leak_counts.items():
        yield _fact(
            "leaks",
            f"{counts['queries']:,} of {counts['of queries']:,} queries and {counts['positives']:,} of "
            f"{counts['of positives']:,} positives of {name} are in the training rows",
        )
        yield from (f"    {example}" for example in found.leaks[name])


def _fact(name: str, value: str) -> str:
    return f"  {name:<12}{value}"


def _table(title: str, lengths: Mapping[str, Lengths]) -> Iterator[str]:
    if not lengths:
        return
    rows = [(title, "texts", "mean", "median", "p95", "longest")]
    rows += [
        (NAMES[part], f"{one.texts:,}", f"{one.mean:,.0f}", f"{one.median:,}", f"{one.p95:,}", f"{one.longest:,}")
        for part, one in lengths.items()
    ]
    for row in rows:
        yield "  " + row[0].ljust(12) + "".join(cell.rjust(11) for cell in row[1:])
