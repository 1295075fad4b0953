"""Retrieval by dimension and precision: against brute force and sentence-transformers' own quantisation."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers.util.quantization import _dequantize_embeddings, quantize_embeddings, semantic_search_faiss
from torch.nn.functional import normalize

from embed_core.errors import ConfigError
from embed_core.evaluation.measures import mean_measures, parse_measures
from embed_core.types import Embeddings, RetrievalSet
from embed_mrl import evaluator as module
from embed_mrl import quantise
from embed_mrl.config import DimensionsEvaluatorConfig
from embed_mrl.evaluator import DimensionsEvaluator
from embed_mrl.sizes import bytes_per_vector

torch.set_num_threads(1)

WIDTH = 64


def vectors(texts: Sequence[str]) -> torch.Tensor:
    """A vector per text, not of unit length; most of it lies in the first values, as Matryoshka training leaves it."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(WIDTH) for text in texts]
    fading = np.linspace(2, 0.5, WIDTH)
    topics = [np.random.default_rng(int(text.split()[1]) % 9).standard_normal(WIDTH) for text in texts]
    return torch.tensor(np.stack(rows) * fading + np.stack(topics), dtype=torch.float32)


class FakeEncoder:
    """Ranks are threads that meet at a barrier."""

    scores: Any = {"dense": {"dense": 1.0}}  # noqa: RUF012

    def __init__(self, rank: int = 0, world_size: int = 1, board: list[Any] | None = None, barrier: Any = None) -> None:
        self.rank, self.world_size = rank, world_size
        self._board: list[Any] = board if board is not None else [None]
        self._barrier = barrier or threading.Barrier(1)
        self.encoded: list[str] = []

    def encode(self, items: Sequence[str], role: str) -> Embeddings:
        self.encoded += items
        return Embeddings(vectors(items))

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(timeout=20)
        values = list(self._board)
        self._barrier.wait(timeout=20)
        return values


def data(documents: int = 90, queries: int = 20) -> RetrievalSet:
    corpus = {f"d{i:03}": f"document {i}" for i in range(documents)}
    qrels = {f"q{i}": {f"d{j:03}": 1 for j in range(i % 9, documents, 9)} for i in range(queries)}
    return RetrievalSet("made", {f"q{i}": f"query {i}" for i in range(queries)}, corpus, qrels)


def build(found: RetrievalSet | None = None, **options: Any) -> DimensionsEvaluator:
    config = DimensionsEvaluatorConfig(**{"tile": 7, "measures": ("nDCG@10", "MRR@10"), **options})
    return DimensionsEvaluator(config, found or data(), lambda line: None)


def cut(texts: Sequence[str], dim: int) -> np.ndarray:
    found: np.ndarray = normalize(vectors(texts)[:, :dim], dim=-1).numpy()
    return found


def expected(precision: str, dim: int, multiplier: int = 4) -> dict[str, float]:
    """Rankings by sentence-transformers' functions over the whole corpus, then ir-measures."""
    made = data()
    queries, documents = cut(list(made.queries.values()), dim), cut(list(made.corpus.values()), dim)
    if precision == "binary":
        packed = quantize_embeddings(documents, "ubinary")
        hits, *_ = semantic_search_faiss(
            queries, packed, corpus_precision="ubinary", top_k=10, rescore=True, rescore_multiplier=multiplier
        )
        found = [[hit["corpus_id"] for hit in of] for of in hits]
    else:
        if precision == "int8":
            ranges = np.vstack((documents.min(0), documents.max(0)))
            codes = quantize_embeddings(documents, "int8", ranges=ranges)
            documents = _dequantize_embeddings(codes, "int8", ranges)
        found = [list(np.argsort(-(documents @ query), kind="stable")[:10]) for query in queries]
    ids = list(made.corpus)
    rankings = {query: [ids[place] for place in of] for query, of in zip(made.queries, found, strict=True)}
    return mean_measures(parse_measures(("nDCG@10", "MRR@10")), made.qrels, rankings)


@pytest.mark.parametrize("precision", ["fp32", "int8", "binary"])
@pytest.mark.parametrize("dim", [64, 32, 12])
def test_measures_what_sentence_transformers_would_find(precision: str, dim: int) -> None:
    # So many candidates that a tie of Hamming distances at the last place decides nothing.
    found = build(dims=(dim,), precisions=(precision,), rescore_multiplier=9).evaluate(FakeEncoder())
    for measure, value in expected(precision, dim, 9).items():
        assert found[f"dense@{dim}/{precision}/{measure}"] == pytest.approx(value, abs=1e-6), measure


def test_binary_looks_at_the_nearest_by_hamming_distance_only() -> None:
    """With a multiplier of 1 the ten nearest are reordered; with more, better documents are among them."""
    made = data()
    few, many = (
        build(precisions=("binary",), rescore_multiplier=multiplier).evaluate(FakeEncoder()) for multiplier in (1, 9)
    )
    name = "dense@64/binary/nDCG@10"
    assert few[name] < many[name]
    # By hand: distances of packed bits, the first documents of equal ones.
    queries, documents = cut(list(made.queries.values()), 64) > 0, cut(list(made.corpus.values()), 64) > 0
    floats, ids = cut(list(made.queries.values()), 64), list(made.corpus)
    rankings = {}
    for place, query in enumerate(made.queries):
        near = np.argsort((queries[place] != documents).sum(1), kind="stable")[:10]
        rankings[query] = [ids[n] for n in near[np.argsort(-(documents[near] @ floats[place]), kind="stable")]]
    wanted = mean_measures(parse_measures(("nDCG@10",)), made.qrels, rankings)
    assert few[name] == pytest.approx(wanted["nDCG@10"], abs=1e-6)


def test_names_and_order() -> None:
    found = build(dims=(32,)).evaluate(FakeEncoder())
    ways = [f"dense@{dim}/{precision}" for dim in (64, 32) for precision in ("fp32", "int8", "binary")]
    assert list(found) == [f"{way}/{measure}" for way in ways for measure in ("nDCG@10", "MRR@10")]
    assert {name.split("/")[0] for name in build().evaluate(FakeEncoder())} == {"dense@64", "dense@32", "dense@16"}
    assert list(build(dims=(64,), precisions=("int8", "int8"), measures=("R@5",)).evaluate(FakeEncoder())) == [
        "dense@64/int8/Recall@5"
    ]


def test_everything_is_encoded_once() -> None:
    encoder = FakeEncoder()
    build().evaluate(encoder)
    assert sorted(encoder.encoded) == sorted([*data().queries.values(), *data().corpus.values()])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_find_what_one_finds(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges over the documents of all ranks, candidates of all ranks; also with a rank that has no document."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "DOCUMENT_BLOCK", 5)
    monkeypatch.setattr(module, "RESCORED_ELEMENTS", 1000)
    for made in (data(), data(documents=2, queries=2)):
        alone = build(made).evaluate(FakeEncoder())
        board, barrier = [None] * world_size, threading.Barrier(world_size)
        encoders = [FakeEncoder(rank, world_size, board, barrier) for rank in range(world_size)]
        with ThreadPoolExecutor(world_size) as pool:
            waiting = [pool.submit(build(made).evaluate, encoder) for encoder in encoders]
            together = [one.result() for one in waiting]
        for found in together:
            assert found == pytest.approx(alone)


def test_quantisation_is_sentence_transformers() -> None:
    documents = torch.tensor(cut([f"document {i}" for i in range(50)], 20))
    documents[:, 3] = 0.25  # a dimension without any range
    others = torch.tensor(cut([f"other {i}" for i in range(30)], 20))
    ranges = quantise.Ranges(documents.amin(0), documents.amax(0))
    theirs = np.vstack((documents.numpy().min(0), documents.numpy().max(0)))
    for given in (documents, others):  # the others lie beyond the ranges, here and there
        codes = quantize_embeddings(given.numpy(), "int8", ranges=theirs)
        wanted = _dequantize_embeddings(codes, "int8", theirs)
        found = quantise.int8_values(given, ranges).numpy()
        assert np.mean(np.abs(found - wanted) > 1e-6) < 0.002, "a value on the border of two steps may fall to either"
    signs = np.unpackbits(quantize_embeddings(documents.numpy(), "ubinary"), axis=-1)[:, :20]
    assert np.array_equal(quantise.bits(documents).numpy(), signs)
    apart = quantise.hamming(quantise.bits(others), quantise.bits(documents)).numpy()
    assert np.array_equal(apart, ((others.numpy() > 0)[:, None] != (documents.numpy() > 0)).sum(-1))


def test_sizes_are_those_of_the_stored_vectors() -> None:
    given = cut([f"document {i}" for i in range(100)], 20)
    for precision, theirs in (("fp32", "float32"), ("int8", "int8"), ("binary", "ubinary")):
        assert bytes_per_vector(20, precision) == quantize_embeddings(given, theirs)[0].nbytes


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError) as wide:
        build(dims=(128, 32)).evaluate(FakeEncoder())
    assert str(wide.value) == (
        "evaluation 'held-out': dims: 128 is more than the 64 dimensions of the model's vectors: use [32]"
    )
    with pytest.raises(
        ValidationError, match=r"ways: kind 'dimensions' ranks by dense vectors alone: leave the key out"
    ):
        build(ways=("dense",))
    encoder = FakeEncoder()
    encoder.encode = lambda items, role: Embeddings()  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="'dense' scores are asked for, but the model gives only: nothing"):
        build().evaluate(encoder)
