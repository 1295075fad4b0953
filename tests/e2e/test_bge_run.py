"""`embed run --plugin bge` as a user runs it: own rows, real text, several ranks; and what the export is used for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from processes import run

DATA = Path(os.environ.get("EMBED_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
pytestmark = pytest.mark.e2e
SMALL = ["model.from_scratch.hidden=32", "model.from_scratch.layers=1", "model.from_scratch.vocab_size=400"]
FP32 = "engine.precision=fp32"
"""Where runs are compared: in bf16 the chunks of two ranks round otherwise than those of one."""
TOPICS = ("river", "bridge", "violin", "harbour", "glacier", "lantern", "orchard", "compass", "meadow", "engine")
KINDS = ("old", "small", "broken", "northern")


def embed(*arguments: str) -> str:
    """Standard output of the command; it must succeed in silence on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "embed_cli", "run", "--plugin", "bge", *arguments]
    answer = run(command, capture_output=True, timeout=200, env=environment)
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr + answer.stdout
    return answer.stdout


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [(kind, topic) for topic in TOPICS for kind in KINDS]
    lines = [
        {
            "query": f"where is the {kind} {topic}?",
            "pos": [f"The {kind} {topic} is {number} miles from here."],
            "neg": [f"Nobody has seen a {topic} that is not {kind}."],
        }
        for number, (kind, topic) in enumerate(texts)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def records(run: Path, key: str) -> list[Any]:
    """What ``metrics.jsonl`` says of ``key`` (``loss``, ``evaluation``), in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module")
def one_rank(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on one rank: its directory and what it printed."""
    run = tmp_path_factory.mktemp("one") / "run"
    settings = sets(f"data.path={rows}", "sampler.batch_size=6", "held_out_rows=8", *SMALL, FP32)
    return run, embed("--output-dir", str(run), "--max-steps", "6", *settings)


def test_a_run_reports_before_and_after_for_every_way(one_rank: tuple[Path, str]) -> None:
    _, printed = one_rank
    table = printed[printed.index("held-out: step 0 → step 6") :].splitlines()
    assert table[1].split() == ["nDCG@10", "MRR@10", "Recall@10"]
    assert [line.split()[0] for line in table[2:6]] == ["all", "dense", "sparse", "multi-vector"]
    assert all(line.count("→") == 3 for line in table[2:6])


def test_two_ranks_at_zero_3_train_the_same_model(one_rank: tuple[Path, str], rows: Path, tmp_path: Path) -> None:
    settings = sets(f"data.path={rows}", "sampler.batch_size=6", "held_out_rows=8", *SMALL, FP32, "engine.zero_stage=3")
    embed("--output-dir", str(tmp_path / "run"), "--max-steps", "6", "--nproc", "2", *settings)
    one, two = one_rank[0], tmp_path / "run"
    assert len(records(one, "loss")) == 6
    assert records(two, "loss") == pytest.approx(records(one, "loss"), rel=1e-4)
    for found, wanted in zip(records(two, "evaluation"), records(one, "evaluation"), strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


def test_the_export_scores_alike_in_every_client(one_rank: tuple[Path, str]) -> None:
    from FlagEmbedding import BGEM3FlagModel
    from sentence_transformers import SentenceTransformer

    from embed_bge import BGEM3Model
    from embed_core.scoring import kind_scores
    from embed_core.testing.models import encode

    directory = str(one_rank[0] / "model")
    query, passage = "where is the old bridge?", "The old bridge is 5 miles from here, the small bridge 6."
    ours = BGEM3Model(directory, sentence_pooling_method="mean")
    scores = kind_scores(
        encode(ours, [query], "query"), encode(ours, [passage], "passage"), ("dense", "sparse", "multi")
    )
    flag: Any = BGEM3FlagModel(directory, use_fp16=False, pooling_method="mean", devices="cpu")
    theirs = flag.compute_score([(query, passage)], weights_for_different_modes=[1, 1, 1])
    assert float(scores["dense"]) == pytest.approx(theirs["dense"][0], abs=1e-4)
    assert float(scores["sparse"]) == pytest.approx(theirs["sparse"][0], abs=1e-4)
    assert float(scores["multi"]) == pytest.approx(theirs["colbert"][0], abs=1e-4)
    dense = np.asarray(SentenceTransformer(directory, device="cpu").encode([query, passage]))
    assert dense[0] @ dense[1] == pytest.approx(float(scores["dense"]), abs=1e-4)


@pytest.mark.skipif(not (DATA / "xquad").is_dir(), reason=f"no real text at {DATA}")
def test_real_multilingual_text(tmp_path: Path) -> None:
    xquad = DATA / "xquad"
    folders = ", ".join(str(xquad / f"test-{language}") for language in ("en", "de", "zh"))
    settings = sets(f"data.path={xquad / 'train.jsonl'}", "data.limit=200", f"eval_data=[{folders}]", *SMALL)
    printed = embed("--output-dir", str(tmp_path / "run"), "--max-steps", "2", *settings, *sets("sampler.batch_size=8"))
    for language in ("en", "de", "zh"):
        assert f"test-{language}: step 0 → step 2" in printed
    assert (tmp_path / "run" / "model" / "sparse_linear.pt").exists()
