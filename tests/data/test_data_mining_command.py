"""``embed mine`` as it is typed: inputs, outputs, kills, audits, and every message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import processes
from embed_cli.main import add_plugin_commands, app
from embed_core.datasets.row import parse_row
from embed_core.datasets.sampling import DrawOptions, draw_example
from embed_core.distributed.process_group import Ranks
from embed_core.errors import EmbedError
from embed_data.mining import session
from embed_data.mining.output.progress import Progress
from embed_data.mining.request import MiningRequest, ModelChoice

TOPICS = ["wall", "river", "copper", "harbour", "treaty", "comet"]
WORDS = [f"word{n}" for n in range(60)]
ALONE = Ranks(0, 1, 0, "cpu")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """60 documents in six topics, 40 questions; the answer is one word of the document, and of others."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join([TOPICS[n % 6], *rng.choice(WORDS, size=12)]) for n in range(60)]
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)])
    queries = [
        {"_id": f"q{n}", "text": f"{TOPICS[n % 6]} {texts[n].split()[3]}", "answers": [texts[n].split()[5]]}
        for n in range(40)
    ]
    write(folder / "queries.jsonl", queries)
    lines = [f"q{n}\td{n}\t1" for n in range(40)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BLOCK", 7)


def mine(data: Path, output: Path, **changes: Any) -> dict[str, int]:
    request = MiningRequest(data=data, output=output, **changes)
    return session.run(request, ALONE, lambda line: None, Progress(shown=False))


def typed(*arguments: object) -> Any:
    add_plugin_commands(["mine"])
    return CliRunner().invoke(app, ["mine", *map(str, arguments)])


def fails(*arguments: object) -> str:
    """The error that the command ends with: one line."""
    result = typed(*arguments)
    assert isinstance(result.exception, EmbedError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_beir_folder(beir: Path, tmp_path: Path) -> None:
    result = typed(beir, "-o", tmp_path / "out.jsonl", "-n", 3)
    assert result.exit_code == 0, result.output
    assert "negatives for 40 rows" in result.output
    assert "hold the answer" in result.output
    corpus = {row["_id"]: row["text"] for row in read(beir / "corpus.jsonl")}
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == 40
    for number, row in enumerate(rows):
        parsed = parse_row(row, "here")
        assert row["query_id"] == f"q{number}"
        assert row["doc_id"] == [f"d{number}"]
        assert [corpus[key] for key in row["neg_id"]] == row["neg"]
        assert row["pos"][0] not in row["neg"]
        assert parsed.neg_scores is not None
        assert sorted(row["neg_scores"], reverse=True) == row["neg_scores"]
        assert not any(answer in text for answer in row["answers"] for text in row["neg"])
    assert sum(len(row["neg"]) for row in rows) > 100


def test_jsonl_rows_keep_what_they_have_and_their_positives_are_the_corpus(tmp_path: Path) -> None:
    rows = [{"query": f"topic {n}", "pos": [f"topic {n} text {n}"], "neg": ["old"], "prompt": "p: ", "mine": n}
            for n in range(5)]  # fmt: skip
    mine(write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", negatives=2)
    for number, row in enumerate(read(tmp_path / "out.jsonl")):
        assert (row["mine"], row["prompt"]) == (number, "p: ")
        assert len(row["neg"]) == 2
        others = {f"topic {n} text {n}" for n in range(5) if n != number}
        assert set(row["neg"]) <= others
        assert "neg_id" not in row


def test_a_folder_of_files_and_a_corpus_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "b.jsonl", [{"query": "river two", "pos": ["the river is two"]}])
    write(tmp_path / "rows" / "a.jsonl", [{"query": "river one", "pos": ["the river is one"]}])
    write(tmp_path / "corpus.jsonl", [{"id": 7, "text": "a river, any"}, {"text": "no water"}])
    mine(tmp_path / "rows", tmp_path / "out.jsonl", corpus=tmp_path / "corpus.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["query"] for row in rows] == ["river one", "river two"]
    assert [row["neg"] for row in rows] == [["a river, any"]] * 2, "a positive of another row is not in the corpus"
    assert rows[0]["neg_id"] == ["7"]


def test_ranks_margins_and_samples(beir: Path, tmp_path: Path) -> None:
    found = {}
    for name, changes in {
        "all": {"negatives": 50},
        "later": {"negatives": 50, "first_rank": 4},
        "margin": {"negatives": 50, "relative_margin": 0.3},
        "sample": {"negatives": 2, "draw": "sample"},
        "again": {"negatives": 2, "draw": "sample"},
        "seeded": {"negatives": 2, "draw": "sample", "seed": 7},
    }.items():
        mine(beir, tmp_path / f"{name}.jsonl", **changes)
        found[name] = read(tmp_path / f"{name}.jsonl")
    for everything, later, margin, sample in zip(
        found["all"], found["later"], found["margin"], found["sample"], strict=True
    ):
        assert everything["neg"][-len(later["neg"]) :] == later["neg"]
        assert 0 <= len(everything["neg"]) - len(later["neg"]) <= 3, "of the first three some hold the answer"
        limit = everything["pos_scores"][0] * 0.7
        assert margin["neg"] == [
            t for t, s in zip(everything["neg"], everything["neg_scores"], strict=True) if s <= limit
        ]
        assert set(sample["neg"]) <= set(everything["neg"])
    assert found["sample"] == found["again"] != found["seeded"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_and_repeated_is_as_if_nothing_had_been(beir: Path, tmp_path: Path, after: int) -> None:
    mine(beir, tmp_path / "whole.jsonl", draw="sample", negatives=2)
    program = f"""
import os, signal
from pathlib import Path
from embed_core.distributed.process_group import Ranks
from embed_data.mining import session
from embed_data.mining.output import work
from embed_data.mining.output.progress import Progress
from embed_data.mining.request import MiningRequest
session.BLOCK = 7
written, write = [], work.Work.write_block
def block(self, number, lines, counts):
    if len(written) == {after}:
        self.write(f"block-{{number:06}}.output.jsonl", "half")  # the lines are there, the counts are not
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(number)
    write(self, number, lines, counts)
work.Work.write_block = block
data, output = Path({str(beir)!r}), Path({str(tmp_path / "out.jsonl")!r})
request = MiningRequest(data=data, output=output, draw="sample", negatives=2)
session.run(request, Ranks(0, 1, 0, "cpu"), print, Progress(shown=False))
"""
    assert processes.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out.jsonl").exists()
    told: list[str] = []
    counted: list[int] = []
    original = session.MiningBlocks.block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            session.MiningBlocks, "block", lambda self, rows: counted.append(len(rows)) or original(self, rows)
        )
        request = MiningRequest(data=beir, output=tmp_path / "out.jsonl", draw="sample", negatives=2)
        session.run(request, ALONE, told.append, Progress(shown=False))
    assert "going on with what .out.jsonl.work holds" in told
    assert len(counted) == 6 - after, "what was finished is not done again"
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beir", "out.jsonl", "whole.jsonl"]


@pytest.mark.usefixtures("small_blocks")
def test_unfinished_work_of_another_command_is_not_mixed_in(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(session.MiningBlocks, "block", lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mine(beir, tmp_path / "out.jsonl", negatives=2)
    error = fails(beir, "-o", tmp_path / "out.jsonl", "-n", 3)
    assert "holds the unfinished work of another command (different: negatives)" in error
    assert "--overwrite" in error
    mine(beir, tmp_path / "out.jsonl", negatives=3, overwrite=True)
    mine(beir, tmp_path / "fresh.jsonl", negatives=3)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_changed_data_is_another_command(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(session.MiningBlocks, "block", lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mine(beir, tmp_path / "out.jsonl")
    with (beir / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "text": "a new wall"}) + "\n")
    assert "(different: documents, rows)" in fails(beir, "-o", tmp_path / "out.jsonl")


def test_nothing_is_overwritten_unasked(beir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    assert "exists: --overwrite replaces it, --output chooses another" in fails(beir, "-o", output)
    assert output.read_text() == "mine"
    assert typed(beir, "-o", output, "--overwrite").exit_code == 0
    assert len(read(output)) == 40


def test_a_failed_run_leaves_the_old_output(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    monkeypatch.setattr(session.MiningBlocks, "block", lambda self, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mine(beir, output, overwrite=True)
    assert output.read_text() == "mine"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Rows with negatives: one that is better than the positive, one that holds the answer, one that is fine."""
    rows = [
        {
            "query": "old grey wall",
            "pos": ["a wall of stone", "the grey wall is old"],
            "doc_id": ["p1", "p2"],
            "neg": ["old grey wall, old grey wall", "masons sang in the rain", "a river in spring"],
            "neg_id": ["n0", "n1", "n2"],
            "pos_scores": [0.5, 0.9],
            "neg_scores": [0.7, 0.2, 0.1],
            "answers": "masons",
        },
        {"query": "river", "pos": ["the long river"], "neg": [], "pos_scores": [0.4], "neg_scores": []},
        {"query": "comet", "pos": ["a comet"], "neg": ["a treaty"], "pos_scores": [0.4], "neg_scores": [0.1]},
    ]
    return write(tmp_path / "trained.jsonl", rows)


@pytest.mark.parametrize("by", ["scores", "bm25"])
def test_audit(trained: Path, tmp_path: Path, by: str) -> None:
    result = typed(trained, "--audit", "--by", by, "-o", tmp_path / "found.jsonl")
    assert result.exit_code == 0, result.output
    assert "2 of 4 negatives are doubtful, in 1 of 3 rows" in result.output
    assert "1 hold the answer" in result.output
    assert "1 score above the positive" in result.output
    above, answer = read(tmp_path / "found.jsonl")
    assert (above["why"], above["neg_id"], above["neg_index"], above["pos_id"]) == (["score"], "n0", 0, "p1")
    assert above["neg_score"] > above["pos_score"]
    assert above["place"] == f"{trained}:1"
    assert (answer["why"], answer["neg"], answer["neg_id"]) == (["answer"], "masons sang in the rain", "n1")
    if by == "scores":
        assert (above["neg_score"], above["pos_score"]) == (0.7, 0.5)


def test_a_margin_makes_the_audit_stricter(trained: Path, tmp_path: Path) -> None:
    mine(trained, tmp_path / "found.jsonl", by="scores", audit=True, absolute_margin=0.31)
    assert [row["neg_id"] for row in read(tmp_path / "found.jsonl") if "score" in row["why"]] == ["n0", "n1", None]


@pytest.mark.parametrize("mask", ["drop", "mark"])
def test_masked_rows_train_without_what_was_found(trained: Path, tmp_path: Path, mask: Any) -> None:
    masked = tmp_path / "masked.jsonl"
    mine(trained, tmp_path / "found.jsonl", by="scores", audit=True, mask=mask, masked_data=masked)
    first, *others = read(masked)
    assert first["neg"] == ["a river in spring"]
    assert (first["neg_scores"], first["neg_id"], first["pos_scores"]) == ([0.1], ["n2"], [0.5, 0.9])
    assert others == read(trained)[1:], "rows in which nothing was found stay as they are"
    example = draw_example(parse_row(first, "here"), 0, "", DrawOptions(negatives=1), np.random.default_rng(0))
    assert example.passages[1] == "a river in spring"
    gone = {"old grey wall, old grey wall", "masons sang in the rain"}
    # What is marked is a known positive to the loss: wherever it is in the batch, it is no negative of this query.
    assert gone <= set(example.positives) if mask == "mark" else gone.isdisjoint(example.positives)
    assert example.passages[0] in ("a wall of stone", "the grey wall is old"), "and it is never drawn"


def test_marks_add_up(trained: Path, tmp_path: Path) -> None:
    """Audited twice, the texts of both audits are masked."""
    mine(trained, tmp_path / "f1.jsonl", by="scores", audit=True, mask="mark", masked_data=tmp_path / "m1.jsonl")
    options: dict[str, Any] = {"audit": True, "mask": "mark", "masked_data": tmp_path / "m2.jsonl"}
    mine(tmp_path / "m1.jsonl", tmp_path / "f2.jsonl", by="scores", absolute_margin=0.45, **options)
    assert len(read(tmp_path / "m2.jsonl")[0]["masked"]) == 3


def test_data_errors_name_their_place(beir: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["p"]}, {"query": "q", "pos": ["p"], "answers": [3]}])
    assert f"{rows}:2: `answers[0]` must be a string, found the number 3" in fails(rows, "-o", tmp_path / "o.jsonl")
    rows = write(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["p"], "answer": 3}])
    assert f"{rows}:1: `answer` must be a string or a list of strings" in fails(rows, "-o", tmp_path / "o.jsonl")
    rows = write(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["p"]}])
    for corpus, message in {
        '{"text": "a", "_id": "x"}\n{"text": "b", "_id": "x"}': ":2: `_id` 'x' occurs twice",
        '{"text": " "}': ":1: an empty document",
        '{"text": "a", "_id": [1]}': ":1: `_id` must be a string or a number, found a list",
        '{"contents": "a"}': ":1: `text` must be a string, found nothing",
    }.items():
        (tmp_path / "corpus.jsonl").write_text(corpus)
        error = fails(rows, "-o", tmp_path / "o.jsonl", "--corpus", tmp_path / "corpus.jsonl")
        assert f"{tmp_path / 'corpus.jsonl'}{message}" in error
    assert "no corpus.jsonl" in fails(rows, "-o", tmp_path / "o.jsonl", "--corpus", beir / "qrels")
    assert "no such file or folder: did you mean 'rows.jsonl'?" in fails(tmp_path / "row.jsonl", "-o", "o.jsonl")
    assert "is no BEIR folder and has no splits" in fails(rows, "-o", tmp_path / "o.jsonl", "--split", "dev")
    (tmp_path / "rows.csv").write_text("a,b")
    assert f"{tmp_path / 'rows.csv'}: it has no rows" in fails(tmp_path / "rows.csv", "-o", tmp_path / "o.jsonl")
    (tmp_path / "none").mkdir()
    assert "no file of a known format" in fails(tmp_path / "none", "-o", tmp_path / "o.jsonl")
    assert "there are only 1 documents to rank" in fails(rows, "-o", tmp_path / "o.jsonl", "--ranks", "5-9")
    assert "no row has negatives" in fails(rows, "-o", tmp_path / "o.jsonl", "--audit")
    plain = write(tmp_path / "plain.jsonl", [{"query": "q", "pos": ["p"], "neg": ["n"]}])
    assert f"{plain}:1: no `pos_scores`" in fails(plain, "-o", tmp_path / "o.jsonl", "--audit", "--by", "scores")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "bm52"], "--by 'bm52' is none: did you mean 'bm25'?"),
        (["--draw", "best"], "--draw 'best' is none: one of: sample, top"),
        (["--mask", "hide"], "--mask 'hide' is none: one of: drop, mark"),
        (["--ranks", "x"], "--ranks 'x': give the first and the last rank"),
        (["--ranks", "9-3"], "--ranks 9-3: give the first and the last rank"),
        (["-n", "0"], "--negatives 0: at least 1"),
        (["--absolute-margin", "nan"], "--absolute-margin nan: a finite number"),
        (["--relative-margin", "1.5"], "--relative-margin 1.5: a share from 0 to below 1"),
        (["--overlap", "0"], "--overlap 0.0: a share above 0"),
        (["--by", "dense"], "--by dense needs a model"),
        (["--faiss", "Flat"], "--faiss 'Flat' is of no use with --by bm25: add --by dense"),
        (["--way", "all"], "--way 'all' is of no use with --by bm25"),
        (["--by", "dense", "--model", "m", "--audit", "--faiss", "Flat"], "--faiss searches, and an audit has nothing"),
        (["--cross-encoder", "a", "--teacher", "b"], "give one of them"),
        (["--by", "scores"], "--by scores ranks no corpus: it is for --audit"),
        (["--by", "scores", "--audit", "--teacher", "b"], "leave out --cross-encoder and --teacher"),
        (["--mask", "drop"], "--mask and --masked-data belong together"),
        (["--mask", "drop", "--masked-data", "m.jsonl"], "--mask is for what --audit finds"),
        (["--by", "dense", "--model", "nowhere"], "--model 'nowhere' is no output of a run"),
    ],
)
def test_options_that_cannot_be(beir: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in fails(beir, "-o", tmp_path / "out.jsonl", *arguments)
    assert not (tmp_path / "out.jsonl").exists()


def test_outputs_that_cannot_be(beir: Path, tmp_path: Path) -> None:
    assert "is a folder" in fails(beir, "-o", tmp_path)
    assert "does not exist: create it" in fails(beir, "-o", tmp_path / "a" / "b.jsonl")
    rows = write(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["p"]}])
    assert "must be different files" in fails(rows, "-o", rows, "--overwrite")
    (tmp_path / ".o.jsonl.work").mkdir()
    (tmp_path / ".o.jsonl.work" / "plan.json").write_text("{")
    assert "damaged (not JSON): remove the folder" in fails(rows, "-o", tmp_path / "o.jsonl")


def test_without_bm25s_nothing_is_begun(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    message = fails(beir, "-o", tmp_path / "o.jsonl")
    assert "needs bm25s, which is not installed: pip install 'embed-data[mine]'" in message
    assert not list(tmp_path.glob(".o.jsonl*"))


def test_a_second_launcher(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "--nproc 2 under another launcher" in fails(beir, "-o", tmp_path / "o.jsonl", "--nproc", 2)


def test_an_unfinished_run_has_no_model(tmp_path: Path, beir: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1")
    error = fails(beir, "-o", tmp_path / "o.jsonl", "--by", "dense", "--model", tmp_path / "run")
    assert "the run has no model/ yet" in error


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """A rank that is a thread: they meet at a barrier of their own."""

    meeting: threading.Barrier | None = None

    def barrier(self) -> None:
        assert self.meeting is not None
        self.meeting.wait(30)


@pytest.mark.usefixtures("small_blocks")
def test_three_ranks_write_the_same(beir: Path, tmp_path: Path) -> None:
    mine(beir, tmp_path / "one.jsonl")
    meeting, counts = threading.Barrier(3), {}

    def rank(number: int) -> None:
        request = MiningRequest(data=beir, output=tmp_path / "three.jsonl")
        ranks = ThreadRanks(number, 3, number, "cpu", meeting)
        counts[number] = session.run(request, ranks, lambda line: None, Progress(shown=False))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts[0]["rows"] == 40
    assert counts[1] == counts[2] == {}
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()


def test_bm25_needs_no_torch(beir: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    command = [sys.executable, "-m", "embed_cli", "mine", str(beir), "-o", str(tmp_path / "o.jsonl")]
    answer = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "mining rows: 40 of 40" in answer.stderr


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "embed_cli", "mine", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "o.jsonl")]
    answer = processes.run(command, capture_output=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1


def test_model_choice_knows_whether_it_was_made() -> None:
    assert not ModelChoice().given
    assert not ModelChoice(overrides=("a=b",)).given
    assert all(c.given for c in (ModelChoice("m"), ModelChoice(plugins=("bge",)), ModelChoice(config="c")))
