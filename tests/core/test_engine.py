"""The step is the same mathematics on any number of ranks, at any ZeRO stage and with any chunking."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import launch

WORKER = str(Path(__file__).parent / "engine_worker.py")
REFERENCE = "0-fp32-100000-direct"
"""Not sharded, every text in one chunk."""
ONE_RANK = [
    "0-fp32-32-direct",
    "1-fp32-32-direct",
    "2-fp32-32-direct",
    "3-fp32-32-direct",
    "0-fp32-32-cached",
    "1-fp32-32-cached",
    "2-fp32-32-cached",
    "3-fp32-32-cached",
]
TWO_RANKS = [
    "0-fp32-32-direct",
    "1-fp32-32-direct",
    "2-fp32-32-direct",
    "3-fp32-32-direct",
    "3-fp32-100000-direct",
    "0-fp32-32-cached",
    "1-fp32-32-cached",
    "2-fp32-32-cached",
    "3-fp32-32-cached",
]
BF16 = ["0-bf16-32-direct", "1-bf16-32-direct", "2-bf16-32-direct", "3-bf16-32-direct"]
SHARED = ["0-fp32-32-direct", "2-fp32-32-direct", "3-fp32-32-direct", "0-fp32-32-cached", "3-fp32-32-cached"]
"""With a loss of which each rank computes its own rows."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every setting gave, by ``ranks-stage-precision-budget-strategy``; one start of the ranks for all of them."""
    out = tmp_path_factory.mktemp("answers")
    for ranks, settings in ((1, [REFERENCE, *ONE_RANK, *BF16]), (2, [*TWO_RANKS, *BF16[2:]])):
        assert launch([sys.executable, WORKER, "tiny", str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.fixture(scope="module")
def shared_answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same of the loss whose rows the ranks share: whole on one rank, in parts and in tiles on two."""
    out = tmp_path_factory.mktemp("shared")
    for ranks, settings in ((1, [REFERENCE]), (2, SHARED)):
        assert launch([sys.executable, WORKER, "shared", str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def assert_same(found: Any, wanted: Any, tolerance: float) -> None:
    for one, other in zip(found["steps"], wanted["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert one["metrics"] == pytest.approx(other["metrics"], abs=tolerance)
        assert one["rows"] == other["rows"] == 7
        assert one["norm"] == pytest.approx(other["norm"], rel=10 * tolerance)
        assert one["gradients"].keys() == other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert gradient == pytest.approx(other["gradients"][name], abs=tolerance), name
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, weights in found["weights"].items():
        assert weights == pytest.approx(wanted["weights"][name], abs=10 * tolerance), name


@pytest.mark.parametrize("setting", [*(f"1-{s}" for s in ONE_RANK), *(f"2-{s}" for s in TWO_RANKS)])
def test_ranks_stages_and_chunking_agree(answers: dict[str, Any], setting: str) -> None:
    assert_same(answers[setting], answers[f"1-{REFERENCE}"], tolerance=1e-5)


@pytest.mark.parametrize("setting", SHARED)
def test_a_loss_that_shares_its_rows_among_the_ranks_is_the_same(shared_answers: dict[str, Any], setting: str) -> None:
    """Value, metrics, gradients (those of the loss's own parameter too), norm and weights."""
    reference = shared_answers[f"1-{REFERENCE}"]
    assert_same(shared_answers[f"2-{setting}"], reference, tolerance=1e-5)
    first = reference["steps"][0]
    assert first["metrics"]["masked"] > 0
    assert any(abs(value) > 1e-4 for value in first["gradients"]["loss.log_scale.weight"])


def test_the_comparison_compares_something(answers: dict[str, Any]) -> None:
    """Every trained part has a gradient, and clipping has to clip."""
    first = answers[f"1-{REFERENCE}"]["steps"][0]
    for part in ("loss.log_scale", "model.sparse_head", "model.multi_head", "model.embedding"):
        assert any(abs(value) > 1e-4 for value in first["gradients"][f"{part}.weight"]), part
    assert first["norm"] > 0.5


@pytest.mark.parametrize("setting", [*(f"1-{s}" for s in BF16), *(f"2-{s}" for s in BF16[2:])])
def test_bf16_keeps_fp32_master_weights_at_every_stage(answers: dict[str, Any], setting: str) -> None:
    for one, other in zip(answers[setting]["steps"], answers[f"1-{REFERENCE}"]["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.05)
    weights = torch.tensor(answers[setting]["weights"]["model.embedding.weight"])
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5, "the weights are rounded to bf16"


def test_nothing_is_compiled_at_start(tmp_path: Path) -> None:
    """DeepSpeed builds its CPU communication with a C++ compiler where it finds one: none is needed, none is used."""
    answer = subprocess.run(
        [sys.executable, WORKER, "tiny", str(tmp_path), "1-fp32-32-direct"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert (answer.stdout, answer.stderr) == ("", "")
    assert (tmp_path / "1-1-fp32-32-direct.json").exists()
    assert not (tmp_path / "built").exists()
