"""A projected model under all losses: the same loss, gradients and weights on 1 and 2 ranks, at every ZeRO stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import launch

WORKER = str(Path(__file__).parent / "distill_losses_worker.py")
REFERENCE = "0-direct-100000"
TWO_RANKS = ("0-direct-32", "1-cached-32", "2-direct-32", "3-cached-32", "3-direct-32")
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every setting gave, by ``ranks-stage-strategy-budget``."""
    out = tmp_path_factory.mktemp("answers")
    for ranks, settings in ((1, [REFERENCE]), (2, TWO_RANKS)):
        assert launch([sys.executable, WORKER, str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.parametrize("setting", TWO_RANKS)
def test_ranks_and_stages_agree(answers: dict[str, Any], setting: str) -> None:
    found, wanted = answers[f"2-{setting}"], answers[f"1-{REFERENCE}"]
    assert found["scales"] == pytest.approx(wanted["scales"], rel=1e-4)
    for one, other in zip(found["steps"], wanted["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)
        assert one["metrics"] == pytest.approx(other["metrics"], abs=TOLERANCE, rel=TOLERANCE)
        for name, gradient in one["gradients"].items():
            wanted_gradient = other["gradients"].get(name, [0.0] * len(gradient))
            assert gradient == pytest.approx(wanted_gradient, abs=1e-4), name
    for name, weights in found["weights"].items():
        if not name.startswith("loss."):  # the bits of the scales
            assert weights == pytest.approx(wanted["weights"][name], abs=10 * TOLERANCE), name


@pytest.mark.parametrize("setting", TWO_RANKS)
def test_the_scales_are_in_the_training_state(answers: dict[str, Any], setting: str) -> None:
    assert answers[f"2-{setting}"]["restored"] == [5.0] * 9


def test_the_comparison_compares_something(answers: dict[str, Any]) -> None:
    """The projection and the student have gradients, every term counts, and no scale is left at one."""
    reference = answers[f"1-{REFERENCE}"]
    assert all(scale != 1 for scale in reference["scales"])
    for part in ("projection.0.linear.weight", "projection.1.linear.bias", "inner.embedding.weight"):
        assert max(map(abs, reference["steps"][1]["gradients"][f"model.{part}"])) > 1e-3, part
    names = ("nce", "mse", "cosine", "l2", "similarity", "kl", "batch", "margins", "spread")
    assert all(reference["steps"][0]["metrics"][name] > 0 for name in names)
