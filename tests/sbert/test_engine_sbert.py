"""The same loss, gradients and weights on 1 and 2 ranks, at every ZeRO stage, direct and cached."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processes import launch

WORKER = str(Path(__file__).parent / "sbert_worker.py")
CHAINS = ("nodrop", "dense", "router", "asymmetric")
REFERENCE = "0-direct-100000"
TWO_RANKS = [f"{chain}-{stage}-{strategy}-32" for chain, stage, strategy in (
    ("nodrop", 0, "direct"), ("nodrop", 1, "cached"), ("nodrop", 2, "direct"), ("nodrop", 3, "cached"),
    ("dense", 2, "cached"), ("dense", 3, "direct"),
    ("router", 0, "cached"), ("router", 3, "direct"), ("asymmetric", 3, "cached"),
)]  # fmt: skip
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def answers(saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every setting gave, by ``ranks-chain-stage-strategy-budget``; one start of the ranks for all of them."""
    out = tmp_path_factory.mktemp("answers")
    for chain, source in (("nodrop", "sqrt"), ("dense", "mean-dense"), *((one, one) for one in CHAINS[2:])):
        shutil.copytree(saved(source), out / chain)
    for ranks, settings in ((1, [f"{chain}-{REFERENCE}" for chain in CHAINS]), (2, TWO_RANKS)):
        assert launch([sys.executable, WORKER, str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.parametrize("setting", TWO_RANKS)
def test_ranks_and_stages_agree(answers: dict[str, Any], setting: str) -> None:
    found, wanted = answers[f"2-{setting}"], answers[f"1-{setting.split('-')[0]}-{REFERENCE}"]
    for number, (one, other) in enumerate(zip(found["steps"], wanted["steps"], strict=True)):
        assert one["loss"] == pytest.approx(other["loss"], abs=TOLERANCE)
        assert one["metrics"] == pytest.approx(other["metrics"], abs=TOLERANCE)
        assert one["gradients"].keys() >= other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            wanted_gradient = other["gradients"].get(name, [0.0] * len(gradient))
            tolerance = TOLERANCE * max(1.0, *map(abs, wanted_gradient))  # fp32 sums of numbers of that size
            tolerance *= 1 if number == 0 else 5  # from weights that rounding has moved apart
            assert gradient == pytest.approx(wanted_gradient, abs=tolerance), name
    for name, weights in found["weights"].items():
        assert weights == pytest.approx(wanted["weights"][name], abs=10 * TOLERANCE), name


def test_the_comparison_compares_something(answers: dict[str, Any]) -> None:
    """Every part of every chain is trained, the loss's own layer too."""
    parts = {
        "nodrop": ("0.model.embeddings.word_embeddings.weight", "0.model.encoder.layer.1.output.dense.weight"),
        "dense": ("2.linear.weight",),
        "router": (
            "0.sub_modules.query.0.model.embeddings.word_embeddings.weight",
            "0.sub_modules.document.2.linear.weight",
        ),
        "asymmetric": ("0.sub_modules.query.0.embedding.weight",),
    }  # fmt: skip
    for chain, names in parts.items():
        gradients = answers[f"1-{chain}-{REFERENCE}"]["steps"][0]["gradients"]
        for name in names:
            assert max(map(abs, gradients[f"model.sentence_transformer.{name}"])) > 1e-5, (chain, name)
    assert any(name.startswith("loss.") for name in answers[f"1-dense-{REFERENCE}"]["steps"][0]["gradients"])
