"""The retrieval evaluator against brute force in float64, on one and on several simulated ranks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embed_core.embeddings import offsets_of
from embed_core.errors import ConfigError, DataError
from embed_core.evaluation import retrieval
from embed_core.evaluation.config import RetrievalEvaluatorConfig
from embed_core.evaluation.retrieval import RetrievalEvaluator
from embed_core.types import Embeddings, MultiVectors, RetrievalSet, SparseVectors

torch.set_num_threads(1)

WAYS: dict[str, Mapping[str, float]] = {
    "dense": {"dense": 1.0},
    "sparse": {"sparse": 1.0},
    "multi": {"multi": 1.0},
    "all": {"dense": 1.0, "sparse": 0.5, "multi": 1.0},
}
WIDTH = 4


def _rng(text: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(text.encode()))


def _dense(text: str) -> np.ndarray:
    # Small integers: products are exact in fp32, so that ties are ties however the work is cut.
    return _rng("dense" + text).integers(-3, 4, WIDTH).astype(np.float64)


def _sparse(text: str) -> dict[int, float]:
    rng = _rng("sparse" + text)
    ids = rng.choice(12, size=int(rng.integers(0, 6)), replace=False)
    return {int(i): float(rng.integers(1, 4)) for i in ids}


def _multi(text: str) -> np.ndarray:
    rng = _rng("multi" + text)
    # Two or four query tokens: the mean over them is exact too.
    return rng.integers(-2, 3, (2 ** int(rng.integers(1, 3)), WIDTH)).astype(np.float64)


def _brute_force(query: str, document: str) -> dict[str, float]:
    q_ids, p_ids = _sparse(query), _sparse(document)
    q_MC, p_MC = _multi(query), _multi(document)
    kinds = {
        "dense": float(_dense(query) @ _dense(document)),
        "sparse": sum(weight * p_ids.get(id_, 0.0) for id_, weight in q_ids.items()),
        "multi": sum(max(float(t @ u) for u in p_MC) for t in q_MC) / len(q_MC),
    }
    return {way: sum(weight * kinds[kind] for kind, weight in weights.items()) for way, weights in WAYS.items()}


class FakeEncoder:
    """Embeddings that depend on the text alone; ranks are threads that meet at a barrier."""

    def __init__(self, rank: int = 0, world_size: int = 1, board: list[Any] | None = None, barrier: Any = None) -> None:
        self.scores = WAYS
        self.rank, self.world_size = rank, world_size
        self._board: list[Any] = board if board is not None else [None]
        self._barrier = barrier or threading.Barrier(1)
        self.calls: list[tuple[str, int]] = []
        self.seen: list[str] = []

    def encode(self, items: Sequence[str], role: str) -> Embeddings:
        assert items, "an encoder is never asked for nothing"
        self.calls.append((role, len(items)))
        if role == "passage":
            self.seen += items
        sparse = [_sparse(text) for text in items]
        multi = [_multi(text) for text in items]
        return Embeddings(
            torch.tensor(np.stack([_dense(text) for text in items]), dtype=torch.float32),
            SparseVectors(
                torch.tensor([w for s in sparse for w in s.values()], dtype=torch.float32),
                torch.tensor([i for s in sparse for i in s], dtype=torch.int64),
                offsets_of(torch.tensor([len(s) for s in sparse])),
            ),
            MultiVectors(
                torch.tensor(np.concatenate(multi), dtype=torch.float32),
                offsets_of(torch.tensor([len(m) for m in multi])),
            ),
        )

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(timeout=20)
        values = list(self._board)
        self._barrier.wait(timeout=20)
        return values


def _data(queries: int = 25, documents: int = 67, relevant: int = 3) -> RetrievalSet:
    rng = np.random.default_rng(7)
    corpus = {f"doc{i}": f"document {i} " + "x" * int(rng.integers(0, 90)) for i in range(documents)}
    ids = list(corpus)
    qrels = {f"q{i}": {str(rng.choice(ids)): int(rng.integers(1, 3)) for _ in range(relevant)} for i in range(queries)}
    return RetrievalSet("made", {f"q{i}": f"question {i}" for i in range(queries)}, corpus, qrels)


def _evaluator(data: RetrievalSet, **options: Any) -> tuple[RetrievalEvaluator, list[str]]:
    said: list[str] = []
    return RetrievalEvaluator(RetrievalEvaluatorConfig(**options), data, said.append), said


def _expected(data: RetrievalSet, depth: int = 10) -> dict[str, float]:
    """nDCG@10, MRR@10 and Recall@10 by sorting every document for every query."""
    sums: dict[str, float] = {}
    for query, judged in data.qrels.items():
        scores = {doc: _brute_force(data.queries[query], text) for doc, text in data.corpus.items()}
        relevant = {doc: gain for doc, gain in judged.items() if gain > 0}
        ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(relevant.values(), reverse=True)[:depth]))
        for way in WAYS:
            ranking = sorted(data.corpus, key=lambda doc, way=way: (-scores[doc][way], doc))[:depth]  # type: ignore[misc]
            gains = [relevant.get(doc, 0) for doc in ranking]
            values = {
                "nDCG@10": sum(g / math.log2(i + 2) for i, g in enumerate(gains)) / ideal,
                "MRR@10": next((1 / (i + 1) for i, g in enumerate(gains) if g), 0.0),
                "Recall@10": sum(g > 0 for g in gains) / len(relevant),
            }
            for name, value in values.items():
                sums[f"{way}/{name}"] = sums.get(f"{way}/{name}", 0.0) + value / len(data.qrels)
    return sums


@pytest.mark.parametrize("tile", [1, 10, 500])
def test_equals_brute_force_whatever_the_tile(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", 9)
    data = _data()
    evaluator, said = _evaluator(data, tile=tile)
    got = evaluator.evaluate(FakeEncoder())
    want = _expected(data)
    assert list(got) == [f"{way}/{m}" for way in WAYS for m in ("nDCG@10", "MRR@10", "Recall@10")]
    assert dict(got) == pytest.approx(want, abs=1e-9)
    assert 0.05 < want["dense/nDCG@10"] < 0.95
    assert said == []


@pytest.mark.parametrize(("world_size", "documents"), [(2, 67), (3, 67), (4, 3)])
def test_any_number_of_ranks_is_one_rank(world_size: int, documents: int) -> None:
    data = _data(documents=documents)
    alone = _evaluator(data, tile=8)[0].evaluate(FakeEncoder())
    board: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size)
    encoders = [FakeEncoder(rank, world_size, board, barrier) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        together = list(pool.map(lambda e: _evaluator(data, tile=8)[0].evaluate(e), encoders))
    assert all(metrics == alone for metrics in together)  # to the bit, on every rank
    # Encoding may be collective: every rank must ask as often as the others.
    assert len({len(encoder.calls) for encoder in encoders}) == 1
    assert all(size <= 8 for encoder in encoders for role, size in encoder.calls if role == "passage")
    # Nothing is encoded twice, except the document of a rank that has run out; and the work is even.
    shares = [set(encoder.seen) for encoder in encoders]
    assert set().union(*shares) == set(data.corpus.values())
    if documents == 67:
        assert sum(map(len, shares)) == documents
        characters = [sum(map(len, share)) for share in shares]
        assert max(characters) - min(characters) <= 91 + len("document 66 ")


def test_fewer_documents_than_asked_for() -> None:
    data = _data(queries=6, documents=4, relevant=1)
    got = _evaluator(data)[0].evaluate(FakeEncoder())
    assert dict(got) == pytest.approx(_expected(data), abs=1e-9)
    assert got["all/Recall@10"] == 1.0


def test_ties_are_broken_by_document_id() -> None:
    same = "the very same text"
    corpus = {"b": same, "a": same, "c": same}
    data = RetrievalSet("ties", {"q": "question"}, corpus, {"q": {"b": 1}})
    got = _evaluator(data, measures=("MRR@10",), tile=1)[0].evaluate(FakeEncoder())
    assert got["dense/MRR@10"] == got["all/MRR@10"] == 0.5


def test_queries_without_relevant_documents_are_left_out_and_counted() -> None:
    data = _data()
    more = RetrievalSet(
        data.name,
        {**data.queries, "lost": "no judgement", "bad": "judged irrelevant"},
        data.corpus,
        {**data.qrels, "bad": {"doc1": 0}},
    )
    evaluator, said = _evaluator(more)
    assert evaluator.dropped == 2
    assert said == ["evaluation 'held-out': 2 of 27 queries have no relevant document and are left out"]
    assert evaluator.evaluate(FakeEncoder()) == _evaluator(data)[0].evaluate(FakeEncoder())


def test_nothing_to_judge_is_an_error() -> None:
    data = _data()
    with pytest.raises(DataError, match=r"^evaluation 'held-out': of 25 queries and 67 documents none can be judged"):
        _evaluator(RetrievalSet("none", data.queries, data.corpus, {}))


def test_what_a_diverged_model_says_is_no_ranking() -> None:
    class Diverged(FakeEncoder):
        def encode(self, items: Sequence[str], role: str) -> Embeddings:
            whole = super().encode(items, role)
            assert whole.dense_ND is not None
            return whole._replace(dense_ND=torch.full_like(whole.dense_ND, math.nan))

    got = _evaluator(_data())[0].evaluate(Diverged())
    assert got["dense/nDCG@10"] == got["all/Recall@10"] == 0.0
    assert got["sparse/nDCG@10"] > 0


def test_each_kind_of_score_is_computed_once_per_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    real = retrieval.kind_scores

    def counting(q: Embeddings, p: Embeddings, kinds: Any) -> Any:
        kinds = tuple(kinds)
        asked.append(kinds)
        return real(q, p, kinds)

    monkeypatch.setattr(retrieval, "kind_scores", counting)
    _evaluator(_data(), tile=40)[0].evaluate(FakeEncoder())
    assert asked == [("dense", "sparse", "multi")] * 2


def test_ways_choose_what_is_reported_and_computed() -> None:
    got = _evaluator(_data(), ways=("sparse",), measures=("P@3",))[0].evaluate(FakeEncoder())
    assert list(got) == ["sparse/P@3"]
    with pytest.raises(ConfigError) as caught:
        _evaluator(_data(), ways=("spares",))[0].evaluate(FakeEncoder())
    assert str(caught.value) == (
        "evaluation 'held-out': the model has no way of scoring 'spares': did you mean 'sparse'?"
    )


def test_limits_keep_relevant_documents_and_say_so() -> None:
    data = _data(queries=25, documents=67, relevant=1)
    evaluator, said = _evaluator(data, query_limit=5, corpus_limit=20)
    kept = evaluator.data
    assert len(kept.queries) == 5
    assert len(kept.corpus) == 20
    assert all(doc in kept.corpus for judged in kept.qrels.values() for doc in judged)
    assert evaluator.evaluate(FakeEncoder()) == pytest.approx(_expected(kept), abs=1e-9)
    assert said == ["evaluation 'held-out': 5 of 25 queries, 20 of 67 documents: comparable only under the same limits"]
    few = _evaluator(data, corpus_limit=1)[0].data.corpus
    assert set(few) == {doc for judged in data.qrels.values() for doc in judged}


def test_limits_draw_the_same_in_another_process() -> None:
    code = (
        "from embed_core.evaluation.subset import subset; from embed_core.types import RetrievalSet;"
        "ids = [str(i) for i in range(50)];"
        "d = RetrievalSet('x', dict.fromkeys(ids, ''), dict.fromkeys(ids, ''), {i: {i: 1} for i in ids});"
        "print(sorted(subset(d, 5, 9).corpus))"
    )
    seeds = ("0", "1")
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": s},
        ).stdout
        for s in seeds
    }
    assert len(outputs) == 1


# --- the config -----------------------------------------------------------------------------------------------------


def _beir(folder: Path, data: RetrievalSet) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, items in (("corpus", data.corpus), ("queries", data.queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in items.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f"{q}\t{d}\t{gain}" for q, judged in data.qrels.items() for d, gain in judged.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    return folder


def _built(config: RetrievalEvaluatorConfig, held_out: RetrievalSet | None = None) -> RetrievalEvaluator:
    context: Any = SimpleNamespace(announce=print)
    dataset: Any = SimpleNamespace(name="pairs", held_out=lambda: held_out)
    return config.build(context, dataset)


def test_a_beir_folder_names_the_evaluation(tmp_path: Path) -> None:
    data = _data()
    config = RetrievalEvaluatorConfig(path=str(_beir(tmp_path / "made-up", data)))
    evaluator = _built(config)
    assert evaluator.name == config.name == "made-up"
    assert evaluator.evaluate(FakeEncoder()) == _evaluator(data)[0].evaluate(FakeEncoder())
    assert RetrievalEvaluatorConfig(path="x/y", name="other").name == "other"


def test_without_a_path_the_held_out_split_is_used() -> None:
    data = _data()
    assert _built(RetrievalEvaluatorConfig(), data).data.queries == data.queries
    with pytest.raises(ConfigError) as caught:
        _built(RetrievalEvaluatorConfig())
    assert str(caught.value) == (
        "evaluation 'held-out' has nothing to evaluate on: dataset 'pairs' holds no rows out; set the evaluation's "
        "`path` to a BEIR folder, or `data.held_out_rows` to a number of rows"
    )


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        _built(RetrievalEvaluatorConfig(path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ("ndcg@10",)}, "unknown measure 'ndcg@10': did you mean 'nDCG@10'?"),
        ({"name": "a/b"}, "'a/b' cannot name an evaluator: metrics are named name/way/measure; leave '/' out"),
        ({"top_k": 5}, "top_k is 5, but nDCG@10 looks at 10 documents: set it to 10"),
        ({"measures": ()}, "at least 1 item"),
        ({"tile": 0}, "greater than 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RetrievalEvaluatorConfig(**options)
    assert message in str(caught.value)


def test_top_k_sets_the_depth_of_measures_without_a_cutoff() -> None:
    assert _evaluator(_data(), measures=("AP",))[0].depth == 1000
    assert _evaluator(_data(), measures=("AP",), top_k=20)[0].depth == 20


def test_importing_the_config_imports_no_torch() -> None:
    code = "import embed_core.evaluation.config as c, sys; c.RetrievalEvaluatorConfig(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "False"


def test_real_text(tmp_path: Path) -> None:
    """Words as lexical weights on XQuAD: far above chance, and the same as scoring all pairs at once."""
    root = Path(os.environ.get("EMBED_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    folder = root / "xquad" / "test-en"
    if not folder.exists():
        pytest.skip(f"no real data at {folder}; set EMBED_TEST_DATA")

    class Words(FakeEncoder):
        scores: Mapping[str, Any]

        def encode(self, items: Sequence[str], role: str) -> Embeddings:
            rows = [sorted({zlib.crc32(w.encode()) % 100_003 for w in text.lower().split()}) for text in items]
            ids_K = torch.tensor([i for row in rows for i in row])
            weights_K = torch.ones(len(ids_K))
            return Embeddings(sparse=SparseVectors(weights_K, ids_K, offsets_of(torch.tensor([*map(len, rows)]))))

    encoder = Words()
    encoder.scores = {"sparse": {"sparse": 1.0}}
    evaluator = _built(RetrievalEvaluatorConfig(path=str(folder), tile=16))
    got = evaluator.evaluate(encoder)
    assert len(evaluator.data.queries) == 296
    assert len(evaluator.data.corpus) == 60
    assert got["sparse/Recall@10"] > 0.7
