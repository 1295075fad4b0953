"""Names retrieval measures. The library ir-measures computes them (MacAvaney et al. 2022).

Users know ``MRR@10`` and ``Recall@10``; ir-measures prints ``RR@10`` and ``R@10``. Both spellings are accepted, and
results are always named the way users know them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from embed_core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

COMMON = ("nDCG@10", "MRR@10", "Recall@10", "AP@100", "P@10", "Success@10")
"""Measures that an error suggests where no known name is close; ir-measures knows many more."""

WITHOUT_CUTOFF = 1000
"""Documents kept per query for a measure without a cutoff: what TREC and BEIR runs hold."""


def parse_measures(names: Iterable[str]) -> dict[str, Any]:
    """Display name → ``ir_measures`` measure, in the given order; two spellings of one measure are one entry.

    Raises ConfigError for a name that ir-measures does not know, or that nothing installed can compute.
    """
    parsed = [_parse(name) for name in names]
    return {display_name(measure): measure for measure in parsed}


def display_name(measure: Any) -> str:
    """``RR@10`` → ``MRR@10``, ``R@10`` → ``Recall@10``, every other name as ir-measures has it."""
    text = str(measure)
    return re.sub(r"^RR\b", "MRR", re.sub(r"^R(?=[@(]|$)", "Recall", text))


def deepest_cutoff(measures: Mapping[str, Any]) -> int:
    """Documents per query that the measures look at: the largest cutoff, :data:`WITHOUT_CUTOFF` where one has none."""
    return max(_cutoff(measure) or WITHOUT_CUTOFF for measure in measures.values())


def mean_measures(
    measures: Mapping[str, Any], qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Display name → value over all queries of ``qrels``; ``rankings`` is query id → document ids, the best first.

    A query without a ranking counts with the measure's worst value. ir-measures gets ranks, not scores, so that no
    provider breaks ties in a way of its own.
    """
    import ir_measures

    run = {query: {doc: float(-place) for place, doc in enumerate(docs)} for query, docs in rankings.items() if docs}
    judged = {query: dict(documents) for query, documents in qrels.items()}
    values = ir_measures.evaluator(list(measures.values()), judged).calc_aggregate(run)
    return {name: float(values[measure]) for name, measure in measures.items()}


def _parse(name: str) -> Any:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()
        usable = any(p.is_available() and p.supports(measure) for p in ir_measures.providers.registry.values())
    except (NameError, ValueError, TypeError, KeyError, AssertionError):
        raise ConfigError(f"unknown measure {name!r}: {_suggestion(name)}") from None
    if not usable:
        raise ConfigError(
            f"measure {name!r} cannot be computed by anything installed: use one like {', '.join(COMMON)}"
        )
    cutoff = _cutoff(measure)
    if cutoff is not None and cutoff < 1:
        raise ConfigError(f"measure {name!r} has a cutoff of {cutoff}: it must be at least 1, as in {COMMON[0]!r}")
    return measure


def _cutoff(measure: Any) -> int | None:
    value = measure.params.get("cutoff")
    return value if isinstance(value, int) else None


def _suggestion(name: str) -> str:
    """Most slips are of case (``ndcg@10``), of form (``ndcg_at_10``) or a missing cutoff; name what was meant."""
    import ir_measures

    base, _, cutoff = name.strip().replace("_at_", "@").partition("@")
    by_lower = {known.lower(): known for known in sorted(ir_measures.measures.registry) if known.isascii()}
    if base.lower() in by_lower:
        return f"did you mean '{by_lower[base.lower()]}@{cutoff if cutoff.isdigit() else 10}'?"
    return did_you_mean(name, COMMON)
