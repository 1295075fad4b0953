"""The same loss, gradients and weights on 1 and 2 ranks, at every ZeRO stage, direct and cached."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import launch
from training import assert_same_training

WORKER = str(Path(__file__).parent / "mrl_worker.py")
LOSSES = ("infonce", "drawn", "bge")
REFERENCE = "0-direct-100000"
TWO_RANKS = [f"{loss}-{stage}-{strategy}-32" for loss, stage, strategy in (
    ("infonce", 0, "direct"), ("infonce", 1, "direct"), ("infonce", 2, "cached"), ("infonce", 3, "cached"),
    ("drawn", 0, "cached"), ("drawn", 3, "direct"),
    ("bge", 0, "cached"), ("bge", 2, "direct"), ("bge", 3, "direct"),
)]  # fmt: skip
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every setting gave, by ``ranks-loss-stage-strategy-budget``; one start of the ranks for all of them."""
    out = tmp_path_factory.mktemp("answers")
    for ranks, settings in ((1, [f"{loss}-{REFERENCE}" for loss in LOSSES]), (2, TWO_RANKS)):
        assert launch([sys.executable, WORKER, str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.parametrize("setting", TWO_RANKS)
def test_ranks_and_stages_agree(answers: dict[str, Any], setting: str) -> None:
    found, wanted = answers[f"2-{setting}"], answers[f"1-{setting.split('-')[0]}-{REFERENCE}"]
    assert_same_training(found, wanted, TOLERANCE)


def test_the_comparison_compares_something(answers: dict[str, Any]) -> None:
    """Dimensions are drawn anew, false negatives are masked, and every head has a gradient."""
    drawn = [
        {name for name in step["metrics"] if name.startswith("loss@")}
        for step in answers[f"1-drawn-{REFERENCE}"]["steps"]
    ]
    assert all(len(step) == 1 for step in drawn)
    assert len(set.union(*drawn)) > 1
    assert answers[f"1-infonce-{REFERENCE}"]["steps"][0]["metrics"]["masked"] > 0
    gradients = answers[f"1-bge-{REFERENCE}"]["steps"][1]["gradients"]
    for part in ("sparse_head.weight", "multi_head.weight", "embedding.weight"):
        assert max(map(abs, gradients[f"model.{part}"])) > 1e-4, part
