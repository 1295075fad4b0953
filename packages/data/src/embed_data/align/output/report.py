"""Reports on the score components: histograms, correlation, and how often each alone finds the answer's chunk."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embed_data.align.score.combine import Scored

BINS = 12
BAR = 28
TOPS = (1, 3, 5)


class Tally:
    """Adds up statistics question by question; a few numbers per pair are in memory."""

    def __init__(self, components: Sequence[str]) -> None:
        self._names = (*components, "combined")
        self._components = tuple(components)
        self._values = {name: array("d") for name in self._names}
        self._gold = array("b")
        self._hits = {name: dict.fromkeys(TOPS, 0) for name in (*self._names, "chance")}
        for name in self._hits:
            self._hits[name] = dict.fromkeys(TOPS, 0.0)  # type: ignore[arg-type] # chance is a fraction
        self.with_gold = 0

    def add(self, scored: Sequence[Scored], gold: Sequence[int]) -> None:
        """Add the chunks of one question; ``gold`` are those that hold its answer."""
        whole = [one for one in scored if one.score is not None and None not in one.raw.values()]
        for one in whole:
            for name in self._names:
                self._values[name].append(_value(one, name))
            self._gold.append(one.chunk in gold)
        right = [one for one in whole if one.chunk in gold]
        if not right or len(whole) == len(right):
            return  # nothing to find, or nothing to miss
        self.with_gold += 1
        for name in self._names:
            order = sorted(whole, key=lambda one: (-_value(one, name), one.chunk))
            first = next(at for at, one in enumerate(order) if one.chunk in gold)
            for top in TOPS:
                self._hits[name][top] += first < top
        for top in TOPS:
            self._hits["chance"][top] += _chance(len(whole), len(right), top)  # type: ignore[assignment]

    def result(self) -> dict[str, Any]:
        """The statistics as plain numbers."""
        import numpy as np

        gold = np.frombuffer(self._gold, dtype=np.int8).astype(bool)
        values = {name: np.frombuffer(self._values[name], dtype=np.float64) for name in self._names}
        found: dict[str, Any] = {"pairs": len(gold), "questions_with_gold": self.with_gold}
        found["histogram"] = {name: _histogram(np, one, gold) for name, one in values.items()} if len(gold) else {}
        found["correlation"] = _correlation(np, [values[name] for name in self._components], self._components)
        found["finds_gold"] = {
            name: {f"top{top}": count / max(1, self.with_gold) for top, count in hits.items()}
            for name, hits in self._hits.items()
        }
        return found


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The statistics as lines for the user."""
    for name, one in result["histogram"].items():
        yield from _bars(name, one)
    names = list(result["correlation"])
    if len(names) > 1:
        yield "correlation of the components over all pairs (Pearson)"
        yield " " * 12 + "".join(f"{name:>11}" for name in names)
        for name in names:
            cells = (result["correlation"][name][other] for other in names)
            yield f"  {name:<10}" + "".join(f"{'–' if cell is None else f'{cell:.3f}':>11}" for cell in cells)
        yield ""
    if result["questions_with_gold"]:
        yield f"how often each alone finds a chunk that holds the answer ({result['questions_with_gold']:,} questions)"
        yield " " * 12 + "".join(f"{f'top {top}':>9}" for top in TOPS)
        for name, hits in result["finds_gold"].items():
            yield f"  {name:<10}" + "".join(f"{100 * hits[f'top{top}']:>8.1f}%" for top in TOPS)
    else:
        yield "no question has both a chunk that holds its answer and one that does not: nothing to find"


def _bars(name: str, one: Mapping[str, Any]) -> Iterator[str]:
    edges, gold, other = one["edges"], one["gold"], one["other"]
    most = max(1, *gold, *other) if not sum(gold) or not sum(other) else 0
    scale = (most or max(gold), most or max(other))
    yield f"{name}: chunks that hold the answer ({sum(gold):,}), and others ({sum(other):,})"
    for at in range(len(gold)):
        left, right = ("█" * round(BAR * n[at] / max(1, top)) for n, top in zip((gold, other), scale, strict=True))
        yield f"  {edges[at]:>8.3f} {gold[at]:>7,} {left:<{BAR}} {other[at]:>7,} {right}".rstrip()
    yield ""


def _value(one: Scored, name: str) -> float:
    value = one.score if name == "combined" else one.raw[name]
    assert value is not None, "pairs without a score are left out"
    return value


def _histogram(np: Any, values: Any, gold: Any) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(values, bins=BINS)
    return {
        "edges": [float(edge) for edge in edges],
        "gold": np.histogram(values[gold], bins=edges)[0].tolist(),
        "other": np.histogram(values[~gold], bins=edges)[0].tolist(),
    }


def _correlation(np: Any, columns: Sequence[Any], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Pearson correlation of the components; None where a component is the same for all pairs."""
    found: dict[str, dict[str, float | None]] = {name: {} for name in names}
    for name, own in zip(names, columns, strict=True):
        for other, column in zip(names, columns, strict=True):
            spread = len(own) > 1 and own.std() > 0 and column.std() > 0
            found[name][other] = float(np.corrcoef(own, column)[0, 1]) if spread else None
    return found


def _chance(chunks: int, right: int, top: int) -> float:
    """The probability that ``top`` random chunks include one of the ``right`` ones."""
    missed = 1.0
    for at in range(min(top, chunks)):
        missed *= max(0, chunks - right - at) / (chunks - at)
    return 1.0 - missed
