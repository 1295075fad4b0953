"""The same loss, gradients and weights on 1, 2 and 4 ranks, at every ZeRO stage, direct and cached."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import launch
from training import assert_same_training

WORKER = str(Path(__file__).parent / "qwen_worker.py")
PARTS = ("swift", "online", "paper", "qwen")
REFERENCE = "0-direct-100000"
TWO_RANKS = ("swift-0-direct-32", "swift-3-cached-32", "online-2-direct-32", "paper-1-cached-32", "qwen-3-direct-64")
STRATEGIES = ("direct", "cached")
EVERY_RANK = [
    f"{parts}-{stage}-{strategy}-64" for parts in ("swift", "paper", "qwen") for stage in range(4)
    for strategy in STRATEGIES
]  # fmt: skip
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A folder with the model, and what one rank gives."""
    folder = tmp_path_factory.mktemp("answers")
    shutil.copytree(base, folder / "base")
    start(folder, 1, [f"{parts}-{REFERENCE}" for parts in PARTS])
    return folder


def start(folder: Path, ranks: int, settings: Any) -> None:
    assert launch([sys.executable, WORKER, str(folder), *settings], ranks) == 0


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def check(folder: Path, ranks: int, setting: str) -> None:
    found, wanted = read(folder, f"{ranks}-{setting}"), read(folder, f"1-{setting.split('-')[0]}-{REFERENCE}")
    assert_same_training(found, wanted, TOLERANCE)


@pytest.fixture(scope="module")
def two_ranks(out: Path) -> Path:
    start(out, 2, TWO_RANKS)
    return out


@pytest.mark.parametrize("setting", TWO_RANKS)
def test_two_ranks_agree_with_one(two_ranks: Path, setting: str) -> None:
    check(two_ranks, 2, setting)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_stage_agrees_with_one_rank(out: Path, ranks: int) -> None:
    start(out, ranks, EVERY_RANK)
    for setting in EVERY_RANK:
        check(out, ranks, setting)


def test_the_comparison_compares_something(out: Path) -> None:
    """The gradients are no zeros, and masks and second positives take part."""
    for parts in PARTS:
        # online_contrastive has nothing to say of a batch whose pairs are in order.
        steps = read(out, f"1-{parts}-{REFERENCE}")["steps"]
        largest = [max(abs(value) for gradient in step["gradients"].values() for value in gradient) for step in steps]
        assert (max if parts == "online" else min)(largest) > 1e-3, parts
    assert any(step["metrics"]["masked"] > 0 for step in read(out, f"1-paper-{REFERENCE}")["steps"])
