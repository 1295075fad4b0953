"""BGE-M3 with its unified loss: the same at 1 and 2 ranks, at every ZeRO stage, chunked and not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import launch

WORKER = str(Path(__file__).parents[1] / "core" / "engine_worker.py")
REFERENCE = "0-fp32-100000-direct"
ONE_RANK = [
    "0-fp32-64-direct",
    "3-fp32-64-direct",
    "0-fp32-64-cached",
    "1-fp32-64-cached",
    "2-fp32-64-cached",
    "3-fp32-64-cached",
]
TWO_RANKS = [
    "0-fp32-64-direct",
    "1-fp32-64-direct",
    "2-fp32-64-direct",
    "3-fp32-64-direct",
    "0-fp32-64-cached",
    "1-fp32-64-cached",
    "2-fp32-64-cached",
    "3-fp32-64-cached",
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every setting gave, by ``ranks-stage-precision-budget-strategy``."""
    from transformers import AutoTokenizer

    from embed_core.models.from_scratch.config import EncoderShape
    from embed_core.models.from_scratch.encoder import xlm_roberta
    from embed_core.models.from_scratch.unigram import unigram_tokenizer
    from embed_core.testing.datasets import tiny_dataset

    out = tmp_path_factory.mktemp("answers")
    shape = EncoderShape(vocab_size=200, hidden=16, layers=2, heads=2)
    tokenizer = unigram_tokenizer(tiny_dataset().texts(), 200, out, lambda line: None, max_length=64)
    tokenizer.save_pretrained(out / "model")
    xlm_roberta(len(tokenizer), shape, max_length=64, seed=3).save_pretrained(out / "model")
    assert AutoTokenizer.from_pretrained(out / "model").vocab_size > 50
    for ranks, settings in ((1, [REFERENCE, *ONE_RANK]), (2, TWO_RANKS)):
        assert launch([sys.executable, WORKER, "bge", str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.parametrize("setting", [*(f"1-{s}" for s in ONE_RANK), *(f"2-{s}" for s in TWO_RANKS)])
def test_loss_and_gradients_agree(answers: dict[str, Any], setting: str) -> None:
    for one, other in zip(answers[setting]["steps"], answers[f"1-{REFERENCE}"]["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=TOLERANCE)
        assert one["gradients"].keys() == other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert gradient == pytest.approx(other["gradients"][name], abs=TOLERANCE), name


def test_both_heads_and_the_encoder_are_compared(answers: dict[str, Any]) -> None:
    gradients = answers[f"1-{REFERENCE}"]["steps"][0]["gradients"]
    for part in ("colbert_linear.weight", "sparse_linear.weight", "word_embeddings.weight", "layer.0"):
        found = [max(map(abs, value)) for name, value in gradients.items() if part in name]
        assert found, part
        assert max(found) > 1e-4, part
