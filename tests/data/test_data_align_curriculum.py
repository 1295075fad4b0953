"""``embed curriculum``: graphs, subgraphs, augmented queries, three stages, and a language model in their place."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import networkx  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import pytest
from typer.testing import CliRunner

from embed_cli.main import add_plugin_commands, app
from embed_core.datasets.row import parse_row
from embed_core.distributed.process_group import Ranks
from embed_core.errors import CheckpointError, ConfigError, DataError
from embed_data.align.curriculum import curriculum
from embed_data.align.curriculum.augment import augmented_offline
from embed_data.align.curriculum.entities import extract_offline, json_in
from embed_data.align.curriculum.graph import around, build_graph, cut, seeds
from embed_data.align.curriculum.request import CurriculumRequest, LanguageServer
from embed_data.align.curriculum.within import Bm25Within, brought_in
from embed_data.mining.output.progress import Progress
from embed_data.mining.request import ModelChoice
from embed_data.mining.select.screen import plain

ALONE, QUIET = Ranks(0, 1, 0, "cpu"), Progress(shown=False)
TEXTS = [
    "Nikola Tesla met George Westinghouse in Pittsburgh. Tesla died on 7 January 1943.",
    "The General Conference on Weights and Measures named the unit Tesla.",
    "In Pittsburgh, George Westinghouse paid for the patents that Nikola Tesla held.",
    "Rivers carry stones down to the sea. Spring floods are common there.",
    "A wall of copper was never built, said Thomas Edison in New York.",
    "Harbours silt up where rivers are slow, and boats are tied to the wall.",
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    """Two documents of six chunks and two questions each, as ``embed align`` leaves them."""
    folder = tmp_path / "aligned"
    folder.mkdir()
    chunks: list[dict[str, Any]] = []
    scored: list[dict[str, Any]] = []
    for d in range(2):
        keys = [f"d{d}#{n}" for n in range(6)]
        chunks += [{"_id": key, "doc_id": f"d{d}", "text": t, "tokens": 12} for key, t in zip(keys, TEXTS, strict=True)]
        for q, (text, answer, best) in enumerate(
            (("When did Tesla die?", "1943", 0), ("Who paid?", "Westinghouse", 2))
        ):
            scored.append(
                {
                    "id": f"q{d}{q}", "query": text, "answers": [answer], "doc_id": f"d{d}", "document": d, "number": 0,
                    "gold": [keys[best]], "positives": [keys[best]], "negatives": [],
                    "chunks": [{"id": k, "score": 1.0 - n / 10, "forward": -float(n)} for n, k in enumerate(keys)],
                }
            )  # fmt: skip
    scored[0]["chunks"][5]["score"] = None
    write(folder / "chunks.jsonl", chunks)
    write(folder / "scored.jsonl", scored)
    (folder / "report.json").write_text("{}")
    return folder


def run(asked: CurriculumRequest) -> dict[str, Any]:
    return curriculum.run(asked, ALONE, lambda line: None, QUIET)


# --- graphs


def test_the_cut_is_at_the_largest_step_of_the_logarithm() -> None:
    ranks = [0.5, 0.2, 0.19, 0.18, 0.001, 0.0009, 0.0001]
    assert cut(ranks, 3, 6) == 4
    assert cut(ranks, 5, 6) == 6
    assert cut(ranks[:2], 3, 6) == 2
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranks = sorted(rng.random(30).tolist(), reverse=True)
        steps = {k: math.log(ranks[k - 1]) - math.log(ranks[k]) for k in range(3, 11)}
        assert cut(ranks, 3, 10) == max(steps, key=lambda k: steps[k])


def test_pagerank_is_the_one_of_the_definition_and_nearest_comes_first() -> None:
    graph = build_graph(extract_offline(TEXTS))
    start = seeds(graph, ["George Westinghouse"], [])
    assert start == ["GEORGE WESTINGHOUSE"]
    names = sorted(graph)
    weights = networkx.to_numpy_array(graph, nodelist=names, weight="weight")
    out = weights.sum(axis=1, keepdims=True)
    step = np.where(out > 0, weights / np.where(out > 0, out, 1), 0)
    jump = np.array([float(name in start) for name in names])
    rank = jump.copy()
    for _ in range(1000):
        rank = 0.85 * (rank @ step + rank[out[:, 0] == 0].sum() * jump) + 0.15 * jump
    nearest = around(graph, start, 3, 4)
    assert nearest[0] == "GEORGE WESTINGHOUSE"
    assert set(nearest) <= {names[n] for n in np.argsort(-rank)[:6]}
    assert "THOMAS EDISON" not in nearest
    assert around(graph, [], 3, 4) == []


def test_offline_entities_in_scripts_with_and_without_capitals() -> None:
    found = extract_offline(TEXTS)
    assert {"NIKOLA TESLA", "GEORGE WESTINGHOUSE", "PITTSBURGH", "1943"} <= set(found[0].entities)
    assert "THE" not in found[1].entities
    chinese = extract_offline(["尼罗河流经埃及。", "铜矿在岛上。"])
    assert chinese[0].entities
    assert not set(chinese[0].entities) & set(chinese[1].entities)
    graph = build_graph(found, [("THOMAS EDISON", "NIKOLA TESLA")])
    assert graph.edges["NIKOLA TESLA", "GEORGE WESTINGHOUSE"]["weight"] == 2  # two chunks
    assert graph.has_edge("NIKOLA TESLA", "THOMAS EDISON")
    assert seeds(graph, ["an answer that is nowhere"], ["PITTSBURGH", "ELSEWHERE"]) == ["PITTSBURGH"]


def test_augmented_queries_never_tell_the_answer() -> None:
    names = ["1943", "NIKOLA TESLA", "PITTSBURGH", "GEORGE", "WALL", "NEW YORK", "EDISON", "JANUARY 1943"]
    found = augmented_offline("When did he die?", ["1943"], names, 4)
    assert len(found) == len(set(found)) == 4
    assert all(one.startswith("When did he die? ") and "1943" not in one for one in found)
    assert found[0].endswith("NIKOLA TESLA PITTSBURGH GEORGE")
    assert augmented_offline("When?", ["1943"], ["1943"], 4) == []


def test_chunks_brought_in_by_several_queries() -> None:
    scores = [[9.0, 1.0, 5.0, 0.0], [9.0, 6.0, 0.0, 2.0]]
    assert brought_in(scores, [1, 2, 3], 1, 20) == [1, 2]
    assert brought_in(scores, [1, 2, 3], 2, 2) == [1, 2]
    assert brought_in(scores, [], 2, 2) == []
    assert int(np.argmax(Bm25Within().scores(["copper wall"], TEXTS)[0])) == 4
    assert Bm25Within().scores(["x"], ["。"]) == [[0.0]]


# --- stages


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_gives_rows_without_the_answer(aligned: Path, tmp_path: Path, stage: int) -> None:
    report = run(CurriculumRequest(aligned, tmp_path / "out", stage, queries=3))
    rows = read(tmp_path / "out" / f"stage{stage}.jsonl")
    assert (report["rows"], len(rows), [row["query_id"] for row in rows]) == (4, 4, ["q00", "q01", "q10", "q11"])
    for row in rows:
        parsed = parse_row(row, "place")
        assert parsed.neg
        assert not set(parsed.neg) & set(parsed.pos)
        assert not any(plain(row["answers"][0]) in plain(text) for text in parsed.neg)
    assert "d0#5" not in rows[0]["neg_id"]  # its score failed
    assert "d1#5" in rows[2]["neg_id"]
    swift = read(tmp_path / "out" / f"stage{stage}.swift.jsonl")
    assert [one["messages"][0]["content"] for one in swift] == [row["query"] for row in rows]
    if stage > 1:
        assert (report["questions_augmented_offline"], report["chunks_read_offline"]) == (4, 12)


def test_mined_negatives_are_nearer_than_random_ones(aligned: Path, tmp_path: Path) -> None:
    run(CurriculumRequest(aligned, tmp_path / "out", 3, negatives=1))
    first = read(tmp_path / "out" / "stage3.jsonl")[0]
    assert first["neg_id"] == ["d0#2"]  # of the same people and place


def test_forward_scores_keep_false_negatives_out(aligned: Path, tmp_path: Path) -> None:
    run(CurriculumRequest(aligned, tmp_path / "out", 1, forward_margin=3.5))
    assert read(tmp_path / "out" / "stage1.jsonl")[0]["neg_id"] == [
        "d0#4"
    ]  # 4 nats below; the fifth failed, the third is too near


def test_interrupted_and_resumed_is_uninterrupted(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = CurriculumRequest(aligned, tmp_path / "whole", 2)
    run(asked)
    calls, right = [0], curriculum._mined

    def killed(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(curriculum, "_mined", killed)
    again = replace(asked, output=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        run(again)
    run(again)
    assert calls[0] == 3  # the first document was not mined twice
    for name in asked.outputs:
        assert (asked.output / name).read_bytes() == (again.output / name).read_bytes()
    with pytest.raises(CheckpointError, match=r"holds stage2\.jsonl already"):
        run(again)
    run(replace(again, stage=3))  # beside the other stage


# --- a language model


class Chatty(BaseHTTPRequestHandler):
    """Entities for extraction, questions for augmentation; talk around the JSON, and sometimes nonsense."""

    def do_POST(self) -> None:
        server: Any = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        instruction, text = (one["content"] for one in asked["messages"])
        if "JSON list" in instruction:
            said = '["When was his last day?", "Did he die in 1943?", "When did Tesla die?"]'
        elif "copper" in text:
            said = "I cannot do that."
        else:
            names = [
                {"name": name, "description": "thing"} for name in ("Tesla", "Westinghouse", "1943") if name in text
            ]
            said = json.dumps({"entities": names, "relations": [{"source": "Tesla", "target": "1943"}]})
        with server.lock:
            server.asked.append(asked["model"])
        body = json.dumps({"choices": [{"message": {"content": f"Sure:\n```json\n{said}\n```"}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def chatty() -> Iterator[Any]:
    found: Any = ThreadingHTTPServer(("127.0.0.1", 0), Chatty)
    found.asked, found.lock = [], threading.Lock()
    found.url = f"http://127.0.0.1:{found.server_port}/v1"
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def test_a_model_reads_and_asks_and_is_asked_once(chatty: Any, aligned: Path, tmp_path: Path) -> None:
    server = LanguageServer(chatty.url, "chatty")
    report = run(CurriculumRequest(aligned, tmp_path / "out", 2, server=server))
    assert (report["chunks_read_by_model"], report["chunks_read_offline"]) == (10, 2)  # two answers were nonsense
    assert report["questions_augmented_by_model"] == 4
    (folder,) = (tmp_path / "out" / ".work").glob("queries2-*")
    asked = json.loads((folder / "000000.jsonl").read_text().splitlines()[0])
    assert asked["queries"] == ["When was his last day?"]  # what tells the answer or repeats the question is dropped
    before = len(chatty.asked)
    run(CurriculumRequest(aligned, tmp_path / "out", 3, server=server))
    assert len(chatty.asked) - before == 4  # the graph is there; a question each


def test_json_in_what_a_model_says() -> None:
    assert json_in('Here [it is]: {"a": [1]} ok') == {"a": [1]}
    assert json_in("nothing") is None


# --- messages


def test_messages(aligned: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"stage": 4}, "--stage 4: 1"),
        ({"stage": 1, "retriever": ModelChoice("m")}, "--stage 1 draws at random and needs no model"),
        ({"stage": 2, "way": "dense"}, "--way 'dense' is of no use without a model"),
        ({"stage": 2, "queries": 0}, "--queries 0: at least 1"),
        ({"stage": 2, "similarity": 2.0}, "--similarity 2.0"),
        ({"stage": 2, "forward_margin": math.nan}, "--forward-margin nan"),
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            CurriculumRequest(aligned, tmp_path, **options)
    with pytest.raises(ConfigError, match="--llm-url and --llm belong together"):
        LanguageServer("http://x")
    with pytest.raises(ConfigError, match="--concurrency 0"):
        LanguageServer(concurrency=0)
    (aligned / "report.json").unlink()
    with pytest.raises(DataError, match=r"no report\.json: give the folder of a finished `embed align`"):
        run(CurriculumRequest(aligned, tmp_path / "out", 1))
    (aligned / "report.json").write_text("{}")
    write(aligned / "chunks.jsonl", [{"_id": "x", "doc_id": "d0", "text": "t", "tokens": 1}])
    with pytest.raises(DataError, match=r"chunk 'd0#0' is not in chunks\.jsonl: the files are of different alignments"):
        run(CurriculumRequest(aligned, tmp_path / "out", 1))


def test_the_command_as_it_is_typed(aligned: Path, tmp_path: Path) -> None:
    add_plugin_commands(["curriculum"])
    result = CliRunner().invoke(app, ["curriculum", str(aligned), "-o", str(tmp_path / "out"), "--stage", "2"])
    assert result.exit_code == 0, result.output
    assert "stage 2: 4 rows, 1.0 positives" in result.output
    assert (
        "entities of 0 chunks by the language model, 12 offline; queries of 0 questions by the model, 4"
        in result.output
    )
