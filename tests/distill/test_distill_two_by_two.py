"""The 2×2 evaluator against a ranking by hand, on one rank and on several; its table; plain texts."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed_core.errors import ConfigError
from embed_core.events import RunEvent
from embed_core.testing.datasets import tiny_dataset
from embed_core.types import Embeddings, RetrievalSet, Role, SparseVectors
from embed_distill.datasets.plain_texts import Part, PlainTexts, drawn
from embed_distill.evaluation.asymmetric import TwoByTwoEvaluator
from embed_distill.evaluation.config import TwoByTwoConfig
from embed_distill.evaluation.table import FILE, markdown, report, squares
from embed_distill.teacher.config import TeacherConfig

torch.set_num_threads(1)

RNG = np.random.default_rng(3)
QUERIES, DOCUMENTS, WIDTH = 7, 23, 6
TEXTS = [f"q{n}" for n in range(QUERIES)] + [f"d{n}" for n in range(DOCUMENTS)]
STUDENT, TEACHER = ({text: RNG.normal(size=WIDTH) for text in TEXTS} for _ in range(2))
QRELS = {f"q{n}": {f"d{(3 * n + k) % DOCUMENTS}": 1 + k for k in range(2)} for n in range(QUERIES)}
DATA = RetrievalSet(
    "set", {f"q{n}": f"q{n}" for n in range(QUERIES)}, {f"d{n}": f"d{n}" for n in range(DOCUMENTS)}, QRELS
)
CONFIG = TwoByTwoConfig(teachers=(TeacherConfig(name_or_path="teacher"),), tile=4)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


class Student:
    """Vectors by text alone; ranks are threads that meet at a barrier."""

    def __init__(self, rank: int = 0, world_size: int = 1, board: list[Any] | None = None, barrier: Any = None) -> None:
        self.rank, self.world_size = rank, world_size
        self._board, self._barrier = board if board is not None else [None], barrier
        self.calls = 0
        self.width = WIDTH

    def encode(self, items: Sequence[Any], role: Role) -> Embeddings:
        self.calls += 1
        # Not of unit length: the evaluator sees to it.
        return Embeddings(
            torch.tensor(np.stack([3 * STUDENT[item][: self.width] for item in items]), dtype=torch.float32)
        )

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        if self._barrier is not None:
            self._barrier.wait()
        found = list(self._board)
        if self._barrier is not None:
            self._barrier.wait()
        return found


class Teachers:
    """What the evaluator uses of `Sources`."""

    def __init__(self) -> None:
        self.each = [self]
        self.asked: list[tuple[str, Role]] = []
        self.unloaded = 0

    def vectors(self, asked: Sequence[tuple[str, Role]]) -> np.ndarray:
        self.asked += asked
        return np.stack([unit(TEACHER[item]) for item, _ in asked]).astype(np.float32)

    def unload(self) -> None:
        self.unloaded += 1


def by_hand(queries: dict[str, Any], documents: dict[str, Any]) -> float:
    """nDCG@10 with linear gains, in float64."""
    values = []
    for query, relevant in QRELS.items():
        scores = {doc: float(unit(queries[query]) @ unit(documents[doc])) for doc in DATA.corpus}
        ranking = sorted(scores, key=lambda doc: -scores[doc])[:10]
        gain = sum(relevant.get(doc, 0) / math.log2(place + 2) for place, doc in enumerate(ranking))
        best = sum(g / math.log2(place + 2) for place, g in enumerate(sorted(relevant.values(), reverse=True)))
        values.append(gain / best)
    return float(np.mean(values))


def test_each_pair_ranks_as_by_hand() -> None:
    teachers = Teachers()
    evaluator = TwoByTwoEvaluator(CONFIG, DATA, lambda line: None, teachers)  # type: ignore[arg-type]
    found = evaluator.evaluate(Student())
    vectors = {"student": STUDENT, "teacher": TEACHER}
    for queries in vectors:
        for documents in vectors:
            wanted = by_hand(vectors[queries], vectors[documents])
            assert found[f"{queries}-{documents}/nDCG@10"] == pytest.approx(wanted, abs=1e-9)
    whole = found["teacher-teacher/nDCG@10"]
    assert found["kept/nDCG@10"] == pytest.approx(found["student-student/nDCG@10"] / whole)
    assert found["kept-asymmetric/nDCG@10"] == pytest.approx(found["student-teacher/nDCG@10"] / whole)
    assert next(iter(found)) == "student-student/nDCG@10", "the measure by which the best model is kept"
    assert {(item, role) for item, role in teachers.asked} == {
        (text, "query" if text.startswith("q") else "passage") for text in TEXTS
    }, "each in its role, so with the teacher's own prompt for it"
    again = evaluator.evaluate(Student())
    assert again == found, "the teacher by itself is remembered"
    assert teachers.unloaded == 2, "its memory is the student's while it trains"


def test_another_width_leaves_the_mixed_pairs_out() -> None:
    evaluator = TwoByTwoEvaluator(CONFIG, DATA, lambda line: None, Teachers())  # type: ignore[arg-type]
    student = Student()
    student.width = WIDTH - 1
    found = evaluator.evaluate(student)
    assert list(found) == ["student-student/nDCG@10", "teacher-teacher/nDCG@10", "kept/nDCG@10"]
    short = {text: vector[:-1] for text, vector in STUDENT.items()}
    assert found["student-student/nDCG@10"] == pytest.approx(by_hand(short, short), abs=1e-9)


@pytest.mark.parametrize("world_size", [2, 3, 30])
def test_any_number_of_ranks_is_one_rank(world_size: int) -> None:
    def evaluate(encoder: Student) -> Any:
        return TwoByTwoEvaluator(CONFIG, DATA, lambda line: None, Teachers()).evaluate(encoder)  # type: ignore[arg-type]

    alone = evaluate(Student())
    board, barrier = [None] * world_size, threading.Barrier(world_size)
    encoders = [Student(rank, world_size, board, barrier) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        together = list(pool.map(evaluate, encoders))
    assert all(one == alone for one in together)
    assert len({encoder.calls for encoder in encoders}) == 1, "encoding may be collective"


def test_a_model_without_dense_vectors_is_told() -> None:
    class Lexical(Student):
        def encode(self, items: Sequence[Any], role: Role) -> Embeddings:
            empty = torch.zeros(0)
            return Embeddings(sparse=SparseVectors(empty, empty.long(), torch.zeros(len(items) + 1).long()))

    with pytest.raises(ConfigError, match="dense"):
        TwoByTwoEvaluator(CONFIG, DATA, lambda line: None, Teachers()).evaluate(Lexical())  # type: ignore[arg-type]


METRICS = {
    "held-out/student-student/nDCG@10": 0.4,
    "held-out/student-teacher/nDCG@10": 0.45,
    "held-out/teacher-teacher/nDCG@10": 0.5,
    "held-out/kept/nDCG@10": 0.8,
    "held-out/dense/nDCG@10": 0.1,
}


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (square,) = squares(METRICS)
    assert markdown(square).splitlines()[-2:] == [
        "| student | 0.4000 (80.0%) | 0.4500 (90.0%) |",
        "| teacher | – | 0.5000 |",
    ]
    report(RunEvent(0, tmp_path, 3, None, None, {0: {}, 3: METRICS}))
    printed = capsys.readouterr().out
    assert "0.4500 (90.0%)" in printed
    assert markdown(square) in (tmp_path / FILE).read_text()
    report(RunEvent(0, tmp_path / "gone", 3, None, None, {3: METRICS}))
    assert "the table could not be written" in capsys.readouterr().out
    report(RunEvent(0, tmp_path, 3, None, None, {3: {"held-out/dense/nDCG@10": 0.1}}))
    assert capsys.readouterr().out == "", "a run without the evaluator has no table"


def test_plain_texts_are_the_texts_of_rows() -> None:
    inner = tiny_dataset(held_out_rows=6)
    texts = PlainTexts([Part(inner, drawn(len(inner), None, (1,)))])
    assert len(texts) == 2 * len(inner)
    rng = np.random.default_rng(0)
    seen = set()
    for row in range(len(texts)):
        example = texts.example(row, rng)
        assert example.passages == (example.query,)
        assert (example.row, example.query_prompt, example.passage_prompt) == (row, None, None)
        assert set(texts.identities(row)) == set(inner.identities(row // 2))
        assert texts.source(row) == inner.source(row // 2) == example.source
        seen.add(example.query)
    assert seen == set(texts.texts()), "every text that is drawn is named, for stores that are filled ahead"
    negatives = {text for row in inner._rows for text in row[2]} - {text for row in inner._rows for text in row[1]}
    assert not seen & negatives
    held_out = inner.held_out()
    assert held_out is not None
    assert not seen & set(held_out.queries.values())


def test_plain_texts_are_drawn_by_the_seed() -> None:
    inner = tiny_dataset()
    one, again, other = (
        PlainTexts([Part(inner, drawn(len(inner), 10, seed)), Part(inner, drawn(len(inner), 5, (9,)))])
        for seed in ((1,), (1,), (2,))
    )
    assert len(one) == 15
    assert len(set(one._parts[0].slots.tolist())) == 10, "none twice"
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert len(list(one.texts())) == len(set(one.texts())) <= 15
    places = {one.example(row, np.random.default_rng(0)).place for row in range(10)}
    assert len(places) > 5, "from everywhere"


def test_a_row_with_several_positives_draws_one_and_names_all() -> None:
    from embed_core.testing.datasets import RowsDataset

    inner = RowsDataset([("q", ["a", "b", "c"], ["n"])])
    texts = PlainTexts([Part(inner, np.array([1]))])
    found = {texts.example(0, np.random.default_rng(seed)).query for seed in range(30)}
    assert found == {"a", "b", "c"} == set(texts.texts())


def test_plain_texts_hold_out_what_their_datasets_do() -> None:
    with_split, without = tiny_dataset(held_out_rows=3), tiny_dataset()
    split = PlainTexts([Part(d, drawn(len(d), None, (0,))) for d in (without, with_split)]).held_out()
    assert split == with_split.held_out()
    assert PlainTexts([Part(without, drawn(len(without), None, (0,)))]).held_out() is None
