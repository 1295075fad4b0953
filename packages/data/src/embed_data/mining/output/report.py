"""The final summary of a mining run or an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embed_data.mining.request import MiningRequest

WORDS = {
    "positive": "known positives",
    "query": "the query itself",
    "answer": "hold the answer",
    "overlap": "overlap with a positive",
    "repeat": "repeat another negative",
    "margin": "score too near the positive or above it",
    "score": "score above the positive",
}


def lines(request: MiningRequest, counts: Mapping[str, int]) -> Iterator[str]:
    """The summary as lines for the user."""
    yield from _audited(request, counts) if request.audit else _mined(request, counts)


def _mined(request: MiningRequest, counts: Mapping[str, int]) -> Iterator[str]:
    rows, negatives = counts["rows"], counts.get("negatives", 0)
    yield f"{negatives:,} negatives for {rows:,} rows, {negatives / rows:.2f} a row, scored by {request.judge}"
    yield from _listed("refused", counts, "refused.")
    if counts.get("short") or counts.get("none"):
        yield (
            f"rows with fewer than {request.negatives}: {counts.get('short', 0):,}, "
            f"with none: {counts.get('none', 0):,} (more ranks or a larger corpus gives more)"
        )
    if counts.get("above"):
        yield (
            f"{counts['above']:,} of the negatives score above the positive: "
            "a margin keeps them out, --audit lists them"
        )
    yield f"written to {request.output}"


def _audited(request: MiningRequest, counts: Mapping[str, int]) -> Iterator[str]:
    yield (
        f"{counts.get('found', 0):,} of {counts.get('negatives', 0):,} negatives are doubtful, in "
        f"{counts.get('touched', 0):,} of {counts['rows']:,} rows, scored by {request.judge}"
    )
    yield from _listed("because they", counts, "why.")
    yield f"written to {request.output}"
    if request.masked_data is not None:
        yield f"rows with these {'marked' if request.mask == 'mark' else 'dropped'}: {request.masked_data}"


def _listed(title: str, counts: Mapping[str, int], prefix: str) -> Iterator[str]:
    found = sorted((-count, key.removeprefix(prefix)) for key, count in counts.items() if key.startswith(prefix))
    if found:
        yield f"{title}: " + ", ".join(f"{-count:,} {WORDS.get(key, key)}" for count, key in found)
