"""Real Japanese text: no mined negative holds the answer, none is a known positive, all are hard."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from embed_core.distributed.process_group import Ranks
from embed_data.mining import session
from embed_data.mining.output.progress import Progress
from embed_data.mining.request import MiningRequest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("EMBED_TEST_DATA") or ROOT.parent / "shared" / "data")


@pytest.mark.parametrize(("name", "split", "queries"), [("jaquad/dev", "dev", 3939), ("xquad/test-th", "test", 296)])
def test_no_mined_negative_holds_the_answer(tmp_path: Path, name: str, split: str, queries: int) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    output = tmp_path / "mined.jsonl"
    request = MiningRequest(data=folder, output=output)
    counts = session.run(request, Ranks(0, 1, 0, "cpu"), lambda line: None, Progress(shown=False))
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == counts["rows"] == queries
    assert sum(len(row["neg"]) for row in rows) > 6.8 * queries, "and yet nearly every row has its seven"
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant.setdefault(query, set()).add(document)
    answers = {
        row["_id"]: row["answers"]
        for row in map(json.loads, (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines())
        if "answers" in row
    }
    for row in rows:
        assert relevant[row["query_id"]].isdisjoint(row["neg_id"])
        for answer in answers.get(row["query_id"], ()):
            folded = unicodedata.normalize("NFKC", answer).casefold()
            for text in row["neg"]:
                assert answer not in text
                assert folded not in unicodedata.normalize("NFKC", text).casefold()
    hard = sum(score > 0.5 * row["pos_scores"][0] for row in rows for score in row["neg_scores"])
    assert hard > 0.1 * sum(len(row["neg"]) for row in rows)
