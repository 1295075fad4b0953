"""Measures: both spellings, every error, and values against formulas written out here."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from embed_core.errors import ConfigError
from embed_core.evaluation.measures import deepest_cutoff, mean_measures, parse_measures


def test_both_spellings_are_one_measure_with_the_name_users_know() -> None:
    measures = parse_measures(["nDCG@10", "RR@10", "MRR@10", "R@5", "Recall@5", "RR", "AP@100", "Rprec"])
    assert list(measures) == ["nDCG@10", "MRR@10", "Recall@5", "MRR", "AP@100", "Rprec"]
    assert [str(m) for m in measures.values()] == ["nDCG@10", "RR@10", "R@5", "RR", "AP@100", "Rprec"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndcg@10", "unknown measure 'ndcg@10': did you mean 'nDCG@10'?"),
        ("recall_at_5", "unknown measure 'recall_at_5': did you mean 'Recall@5'?"),
        ("Recall", "unknown measure 'Recall': did you mean 'Recall@10'?"),
        ("nDGC@10", "unknown measure 'nDGC@10': did you mean 'nDCG@10'?"),
        (
            "@@",
            "unknown measure '@@': one of: AP@100, MRR@10, P@10, Recall@10, Success@10, nDCG@10",
        ),
        ("nDCG@0", "measure 'nDCG@0' has a cutoff of 0: it must be at least 1, as in 'nDCG@10'"),
    ],
)
def test_a_wrong_name_says_what_was_meant(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_measures([name])
    assert str(caught.value) == message


def test_a_measure_that_nothing_installed_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_measures

    monkeypatch.setattr(ir_measures.providers, "registry", {})
    with pytest.raises(ConfigError, match=r"^measure 'nDCG@10' cannot be computed by anything installed: use one like"):
        parse_measures(["nDCG@10"])


def test_depth_is_the_deepest_cutoff_or_a_thousand() -> None:
    assert deepest_cutoff(parse_measures(["nDCG@10", "Recall@200"])) == 200
    assert deepest_cutoff(parse_measures(["nDCG@10", "AP"])) == 1000


def _ndcg(ranking: list[str], judged: dict[str, int], k: int) -> float:
    gains = [max(0, judged.get(doc, 0)) for doc in ranking[:k]]
    ideal = sorted((g for g in judged.values() if g > 0), reverse=True)[:k]

    def dcg(values: list[int]) -> float:
        return sum(gain / math.log2(place + 2) for place, gain in enumerate(values))

    return dcg(gains) / dcg(ideal)


def _mrr(ranking: list[str], judged: dict[str, int], k: int) -> float:
    return next((1 / (place + 1) for place, doc in enumerate(ranking[:k]) if judged.get(doc, 0) > 0), 0.0)


def _recall(ranking: list[str], judged: dict[str, int], k: int) -> float:
    relevant = {doc for doc, gain in judged.items() if gain > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant)


def test_values_are_those_of_the_formulas() -> None:
    draw = random.Random(0)
    docs = [f"d{i}" for i in range(40)]
    qrels = {f"q{i}": {draw.choice(docs): draw.choice([1, 2, 3]) for _ in range(4)} | {"d0": 0} for i in range(30)}
    rankings = {query: draw.sample(docs, draw.randrange(0, 40)) for query in qrels}
    rankings["q0"] = []  # a query that found nothing at all still counts
    got = mean_measures(parse_measures(["nDCG@10", "MRR@3", "Recall@7"]), qrels, rankings)

    def mean(formula: Any, k: int) -> float:
        return sum(formula(rankings[query], judged, k) for query, judged in qrels.items()) / len(qrels)

    want = {"nDCG@10": mean(_ndcg, 10), "MRR@3": mean(_mrr, 3), "Recall@7": mean(_recall, 7)}
    assert got == pytest.approx(want, abs=1e-9)
    assert 0 < got["nDCG@10"] < 1
