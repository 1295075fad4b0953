"""The parts of ``embed align`` without a language model: reading, chunking, combining, rows, report, messages."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_core.datasets.row import parse_row
from embed_core.errors import CheckpointError, ConfigError, DataError
from embed_data.align.output.report import Tally, lines
from embed_data.align.output.rows import drawn, eligible, swift_rows, training_row
from embed_data.align.request import AlignRequest, ChunkChoice, LanguageModelChoice, parse_weights
from embed_data.align.score.combine import Scored, combined, joined, ranked
from embed_data.align.score.scoring import blocks
from embed_data.align.session import check_folder
from embed_data.align.source.chunking import chunk, paragraphs, sentences, windows
from embed_data.align.source.corpus import Asked, Chunk, ChunkedCorpus, build_corpus
from embed_data.align.source.source import read_questions
from embed_data.align.source.store import Stage
from embed_data.formats.swift import swift_row
from embed_data.mining.request import ModelChoice

LM = LanguageModelChoice("lm")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def built(path: Path, choice: ChunkChoice, group_by: str | None = None) -> ChunkedCorpus:
    stage = Stage(path.parent / "out", "chunks", {"path": path.name, "by": choice.by, "group": group_by})
    build_corpus(path, None, group_by, choice, None, stage)
    return ChunkedCorpus(stage.folder)


# --- reading

SQUAD: dict[str, Any] = {
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "The Nile is long. The Nile is old.",
                    "qas": [
                        {
                            "id": "a", "question": "Which is old?",
                            "answers": [
                                {"text": "The Nile", "answer_start": 18}, {"text": "the nile", "answer_start": 18},
                            ],
                        },
                        {"id": "b", "question": "Which is wide?", "answers": []},
                    ],
                },
                {
                    "context": "The Rhine is cold.",
                    "qas": [
                        {"id": "c", "question": "Which is cold?", "answers": [{"text": "Rhine", "answer_start": 4}]}
                    ],
                },
            ],
        }
    ]
}  # fmt: skip


def test_squad_as_published_and_as_rows_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    rows = [
        {
            "id": asked["id"], "title": "Rivers", "context": paragraph["context"], "question": asked["question"],
            "answers": {
                "text": [one["text"] for one in asked["answers"]],
                "answer_start": [one["answer_start"] for one in asked["answers"]],
            },
        }
        for paragraph in SQUAD["data"][0]["paragraphs"]
        for asked in paragraph["qas"]
    ]  # fmt: skip
    write(tmp_path / "squad.jsonl", rows)
    for name in ("squad.json", "squad.jsonl"):
        corpus = built(tmp_path / name, ChunkChoice("sentences", 1, 0), "title")
        assert corpus.chunk_counts == [3]
        assert corpus.key(0) == "Rivers"
        asked = [corpus.asked(number) for number in range(3)]
        assert [one.answers for one in asked] == [("The Nile",), (), ("Rhine",)]
        assert asked[0].gold == (1,)  # where the data says, not wherever the words stand
        assert asked[2].gold == (2,)
    alone = built(tmp_path / "squad.jsonl", ChunkChoice("paragraphs"))
    assert alone.chunk_counts == [1, 1]  # one context, one document; equal ones are one
    assert alone.questions_of == [[0, 1], [2]]
    with pytest.raises(ConfigError, match=r"--group-by 'lang': .* has articles, which are its documents: leave it out"):
        list(read_questions(tmp_path / "squad.json", None, "lang"))


def test_input_answers_context_and_paragraph_lists(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ark.jsonl",
        [
            {"input": "Where?", "answers": ["ナイル川"], "context": "長い川。それはナイル 川。海に出る。"},
            {"query": "What?", "answer": "two", "context": ["one thing", "two things"], "id": 7},
        ],
    )
    corpus = built(path, ChunkChoice("sentences", 1, 0))
    assert [chunk.text for chunk in corpus.chunks(0)] == ["長い川。", "それはナイル 川。", "海に出る。"]
    assert corpus.asked(0).gold == (1,)
    assert [corpus.asked(n).key for n in range(2)] == ["row-0000000", "7"]
    assert corpus.asked(1).gold == (1,)
    assert len({chunk.key for n in range(2) for chunk in corpus.chunks(n)}) == 5


def test_beir_documents_grouped_by_title(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": f"T{n // 2}", "text": f"text {n}"} for n in range(4)])
    write(folder / "queries.jsonl", [{"_id": "q", "text": "which?", "answers": ["absent"]}])
    (folder / "qrels" / "test.tsv").write_text("q\td1\t1\n")
    corpus = built(folder, ChunkChoice("paragraphs"), "title")
    assert [one.key for one in corpus.chunks(0)] == ["d0", "d1"]
    assert corpus.asked(0).gold == (1,)  # judged relevant, whatever its words


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": ["a"], "context": "c"}, r"rows.jsonl:1: no `input` \(nor `question`, `query`\): the row has 'a"),
        ({"input": "q", "answers": ["a"]}, "no `context`: the row has 'input', 'answers'"),
        ({"input": " ", "answers": ["a"], "context": "c"}, "`input` is empty: remove the row"),
        ({"input": "q", "answers": ["a"], "context": []}, "a text or a list of paragraphs, found an empty list"),
        ({"input": "q", "answers": [3], "context": "c"}, r"`answers\[0\]` must be a string, found the number 3"),
        ({"input": "q", "answers": ["a"], "context": "c", "id": [1]}, "`id` must be a string or a number, found a"),
    ],
)  # fmt: skip
def test_bad_rows_say_where_and_what(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_questions(write(tmp_path / "rows.jsonl", [row]), None, None))


def test_messages_of_the_source(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"input": "q", "answers": ["a"], "context": "c", "id": "x", "topic": "t"}] * 2
    )
    with pytest.raises(DataError, match="question id 'x' occurs twice"):
        built(path, ChunkChoice("paragraphs"))
    with pytest.raises(
        DataError, match=r"`topics` of --group-by must be a string or a number, found nothing: did you mean 'topic'"
    ):
        list(read_questions(path, None, "topics"))
    with pytest.raises(ConfigError, match=r"--split 'dev': .* is no BEIR folder and has no splits"):
        list(read_questions(path, "dev", None))
    with pytest.raises(DataError, match="is a folder without qrels/"):
        list(read_questions(tmp_path, None, None))
    (tmp_path / "bad.json").write_text(json.dumps({"data": [{"title": "t"}]}))
    with pytest.raises(DataError, match=r"data\[0\]: no list of `paragraphs` in it"):
        list(read_questions(tmp_path / "bad.json", None, None))


# --- chunking


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 19))
def test_windows_cover_everything_and_overlap_as_asked(count: int, size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    found = windows(count, size, overlap)
    assert sorted({n for first, last in found for n in range(first, last + 1)}) == list(range(count))
    for (first, last), (following, _) in pairwise(found):
        assert last - first + 1 == size
        assert last - following + 1 == overlap


@given(st.text(alphabet='ab .!?。\n"A1', max_size=60))
def test_chunks_are_spans_that_lose_nothing_but_blanks(text: str) -> None:
    for cut in (sentences, paragraphs):
        assert "".join("".join(text[a:b].split()) for a, b in cut(text)) == "".join(text.split())
    words = [(n, n + 1) for n, letter in enumerate(text) if not letter.isspace()]
    spans = chunk([text], ChunkChoice("tokens", 4, 1), lambda _: words)
    kept = {n for span in spans for n in range(span.start, span.stop)}
    assert {start for start, _ in words} <= kept


def test_sentences_in_several_scripts() -> None:
    def cut(text: str) -> list[str]:
        return [text[a:b] for a, b in sentences(text)]

    assert cut('He met Dr. Smith in the U.S. army. "Why?" she asked. It cost 3.5 marks!') == [
        "He met Dr. Smith in the U.S. army.", '"Why?" she asked.', "It cost 3.5 marks!"
    ]  # fmt: skip
    assert cut("長い。短い！「何？」次") == ["長い。", "短い！", "「何？」", "次"]
    assert cut("यह नदी है। वह पहाड़ है।") == ["यह नदी है।", "वह पहाड़ है।"]


# --- combining


def asked_for(**options: Any) -> AlignRequest:
    return AlignRequest(Path("d"), Path("o"), **{"lm": LM, "retriever": ModelChoice("m"), **options})


def brute(rows: list[tuple[float, float, float]]) -> list[float]:
    columns = np.array(rows).T
    scaled = [(c - c.min()) / (c.max() - c.min()) if c.max() > c.min() else np.full(len(c), 0.5) for c in columns]
    total: list[float] = (1.0 * scaled[0] + 0.3 * scaled[1] + 1.0 * scaled[2]).tolist()
    return total


def as_rows(values: list[tuple[float, float, float]]) -> dict[int, dict[str, Any]]:
    return {n: dict(zip(("forward", "backward", "parameter"), v, strict=True)) for n, v in enumerate(values)}


@given(st.lists(st.tuples(*[st.floats(-20, 1, width=16)] * 3), min_size=1, max_size=8))
def test_min_max_per_document_is_what_the_formula_says(values: list[tuple[float, float, float]]) -> None:
    found = combined(as_rows(values), [50] * len(values), asked_for())
    assert [one.score for one in found] == pytest.approx(brute(values))


def test_raw_sums_equal_scores_and_short_chunks() -> None:
    values = [(-1.0, -2.0, 0.5), (-1.0, -2.0, 0.5), (-3.0, -2.0, 0.1)]
    raw = combined(as_rows(values), [50, 50, 5], asked_for(normalise="raw"))
    assert [one.score for one in raw] == pytest.approx([-1.1, -1.1, -3.5 * 2])  # worse, not better, for being short
    scaled = combined(as_rows(values), [50, 5, 50], asked_for())
    assert [one.score for one in scaled] == pytest.approx([2.15, 2.15 / 2, 0.15])
    assert [one.chunk for one in ranked(raw)] == [0, 1, 2]


def test_a_failed_component_has_no_score_and_disturbs_no_other() -> None:
    rows = as_rows([(-1.0, -1.0, 0.1), (-9.0, -2.0, 0.2), (-2.0, -3.0, 0.3)])
    rows[1] |= {"forward": None, "failed": "forward: why"}
    found = combined(rows, [50] * 3, asked_for())
    assert (found[1].score, found[1].failed) == (None, "forward: why")
    assert [found[0].score, found[2].score] == pytest.approx([1 + 0.3 + 0, 0 + 0 + 1.0])
    assert [one.chunk for one in ranked(found)] == [0, 2]
    ignored = combined(rows, [50] * 3, asked_for(weights=(0.0, 0.3, 1.0)))
    assert ignored[1].score is not None  # what does not count may fail


def test_stages_are_joined_by_id_whatever_is_missing() -> None:
    def row(document: int, question: int, chunk: int, **values: Any) -> dict[str, Any]:
        return {"document": document, "question": question, "chunk": chunk, **values}

    first = [row(0, 0, 0, forward=1, failed="a"), row(0, 0, 1, forward=2), row(2, 5, 0, forward=3)]
    second = [row(0, 0, 1, parameter=20), row(0, 0, 0, parameter=10, failed="b"), row(1, 3, 0, parameter=30)]
    found = dict(joined([first, second]))
    assert list(found) == [0, 1, 2]
    assert (found[0][0, 0]["forward"], found[0][0, 0]["parameter"], found[0][0, 0]["failed"]) == (1, 10, "a; b")
    assert (found[0][0, 1]["forward"], found[0][0, 1]["parameter"]) == (2, 20)
    assert "forward" not in found[1][3, 0]


def test_blocks_hold_every_pair_once() -> None:
    corpus = object.__new__(ChunkedCorpus)
    corpus.chunk_counts, corpus.questions_of = [3, 0, 700, 5], [[0], [1], [2, 3], []]
    pairs = [(one.document, c) for block in blocks(corpus) for one in block for c in range(one.first, one.last)]
    assert pairs == [(0, c) for c in range(3)] + [(2, c) for c in range(700)]
    sizes = [sum((one.last - one.first) * len(corpus.questions_of[one.document]) for one in b) for b in blocks(corpus)]
    assert max(sizes) <= 257


# --- rows

CHUNKS = [
    Chunk("a", "The wall was built by masons from the north of the country.", 12),
    Chunk("b", "Nobody knows who built the tower, though the masons are named.", 12),
    Chunk("c", "Rivers carry stones down to the sea in spring and autumn.", 11),
    Chunk("d", "from the north of the country. They came every year in spring.", 12),
    Chunk("e", "Boats were tied in the harbour all winter long.", 9),
]  # fmt: skip


def test_negatives_never_hold_the_answer_nor_overlap_nor_failed() -> None:
    asked = Asked("q", "Who built it?", ("masons",), (0,))
    assert eligible(asked, CHUNKS, [0], frozenset()) == [2, 4]  # b holds it, d begins as a ends
    assert eligible(asked, CHUNKS, [0], frozenset({4})) == [2]
    assert drawn([3, 5, 7, 9], 2, 1, "q") == drawn([3, 5, 7, 9], 2, 1, "q")
    assert {tuple(drawn([3, 5, 7, 9], 2, 1, f"q{n}")) for n in range(40)} == {
        (a, b) for a in (3, 5, 7, 9) for b in (3, 5, 7, 9) if a < b
    }


def test_rows_are_read_back_in_both_formats() -> None:
    asked = Asked("q", "Who built it?", ("masons",), (0,))
    row = training_row(asked, "doc", CHUNKS, [0, 1], [2, 4])
    read = parse_row(row, "place")
    assert (read.pos, read.neg) == ((CHUNKS[0].text, CHUNKS[1].text), (CHUNKS[2].text, CHUNKS[4].text))
    assert read.pos_keys == ("a", "b")
    swift = [swift_row(one) for one in swift_rows(row)]
    assert [one["pos"] for one in swift] == [[CHUNKS[0].text], [CHUNKS[1].text]]
    assert all(one["query"] == asked.text and one["neg"] == list(read.neg) for one in swift)


def test_the_report_counts_and_correlates() -> None:
    rng = np.random.default_rng(0)
    tally, columns, hits = Tally(("forward", "parameter")), [], [0, 0]
    for _ in range(50):
        values = rng.normal(size=(6, 2))
        gold = int(rng.integers(6))
        values[gold, 0] += 2
        scored = [
            Scored(c, {"forward": v[0], "parameter": v[1]}, v.sum()) for c, v in enumerate(values.tolist() and values)
        ]
        tally.add(scored, [gold])
        columns.append(values)
        hits = [hits[n] + int(values[:, n].argmax() == gold) for n in range(2)]
    tally.add([Scored(0, {"forward": None, "parameter": 1.0}, None)], [0])
    tally.add([Scored(0, {"forward": 0.0, "parameter": 1.0}, 1.0)], [])
    result = tally.result()
    whole = np.concatenate([*columns, [[0.0, 1.0]]])
    assert result["correlation"]["forward"]["parameter"] == pytest.approx(np.corrcoef(whole.T)[0, 1])
    assert result["finds_gold"]["forward"]["top1"] == pytest.approx(hits[0] / 50)
    assert result["finds_gold"]["parameter"]["top1"] == pytest.approx(hits[1] / 50)
    chance = 1 - math.comb(5, 3) / math.comb(6, 3)
    assert result["finds_gold"]["chance"]["top3"] == pytest.approx(chance)
    one = result["histogram"]["forward"]
    assert (sum(one["gold"]), sum(one["other"])) == (50, 251)
    screen = "\n".join(lines(result))
    assert "chunks that hold the answer (50), and others (251)" in screen
    assert f"{100 * chance:.1f}%" in screen
    assert "nothing to find" in "\n".join(lines(Tally(("forward",)).result()))


# --- messages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm": LanguageModelChoice()}, "need a causal language model: --lm DIRECTORY, or --weights 0,0,1"),
        ({"retriever": ModelChoice()}, r"the parameter score needs a retriever: .* or --weights 1,0.3,0"),
        ({"weights": (0.0, 0.0, 0.0)}, "--weights 0,0,0: three numbers from 0 on are needed"),
        ({"weights": (1.0, -1.0, 0.0)}, "--weights 1,-1,0"),
        ({"normalise": "max"}, "--normalise 'max' is none: did you mean 'minmax'"),
        ({"positives": 0}, "--positives 0: at least 1"),
        ({"negatives": -1}, "--negatives -1: 0 or more"),
        ({"retriever": ModelChoice(), "weights": (1.0, 0.0, 0.0), "way": "dense"}, "--way 'dense' is of no use"),
        ({"lm": LanguageModelChoice(), "weights": (0.0, 0.0, 1.0)}, "--chunk-by tokens needs a tokenizer to count by"),
    ],
)  # fmt: skip
def test_contradictions_of_the_request(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked_for(**options)


def test_contradictions_of_its_parts(tmp_path: Path) -> None:
    chunking: list[tuple[Any, str]] = [
        (("words",), "--chunk-by 'words' is none: one of: paragraphs, sentences, tokens"),
        (("tokens", 0), "--chunk-size 0"),
        (("tokens", 8, 8), "--chunk-overlap 8: it must be from 0 to below the chunk size, 8"),
    ]
    for options, message in chunking:
        with pytest.raises(ConfigError, match=message):
            ChunkChoice(*options)
    assert ChunkChoice().resolved == (512, 12)
    assert ChunkChoice("tokens", 64, 8).resolved == (64, 8)
    assert ChunkChoice("sentences", 1).resolved == (1, 0)
    models: list[tuple[dict[str, Any], str]] = [
        ({"url": "http://x"}, "--lm-url 'http://x' needs --lm"),
        ({"path": "m", "url": "http://x"}, "prompts as token ids: --tokenizer"),
        ({"path": "m", "url": "http://x", "tokenizer": "t"}, "--lm-url needs --max-length"),
        ({"path": "m", "precision": "fp8"}, "--lm-precision 'fp8' is none"),
        ({"path": "m", "batch_tokens": 0}, "--batch-tokens 0"),
        ({"path": "m", "max_length": 1}, "--max-length 1"),
    ]
    for lm, message in models:
        with pytest.raises(ConfigError, match=message):
            LanguageModelChoice(**lm)
    with pytest.raises(ConfigError, match="--weights '1,2': three numbers are needed"):
        parse_weights("1,2")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file: give the name of a folder"):
        check_folder(tmp_path / "file", ("a",), overwrite=False)
    with pytest.raises(CheckpointError, match="is not empty: choose a new folder"):
        check_folder(tmp_path, ("a",), overwrite=False)
    with pytest.raises(CheckpointError, match="does not exist: create it"):
        check_folder(tmp_path / "no" / "out", ("a",), overwrite=False)
    stage = Stage(tmp_path, "x", {})
    stage.start()
    stage.write(0, [{"a": 1}])
    (stage.folder / "000000.jsonl").write_text("{broken")
    with pytest.raises(CheckpointError, match=r"000000.jsonl: damaged \(not JSON\): remove the file"):
        list(stage.rows(1))
