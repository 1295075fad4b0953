"""Adapters in the loop's own step: the same loss, gradients and weights on any ranks, at any ZeRO stage, by either
strategy, with gradient checkpointing or without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import launch

WORKER = str(Path(__file__).parent / "lora_worker.py")
PLAIN = "0-fp32-100000-direct"
"""Not sharded, every text in one chunk."""
DORA, SAVED = f"dora-{PLAIN}", f"saved-{PLAIN}"
DROPOUT = "dropout-0-fp32-64-direct"
"""Masks depend on the chunks: compared with runs of the same ones."""
ONE_RANK = {
    "2-fp32-64-cached": PLAIN,
    "recompute-3-fp32-64-direct": PLAIN,
    "dropout-0-fp32-64-cached": DROPOUT,
    "recompute-dropout-0-fp32-64-direct": DROPOUT,
    "recompute-dropout-3-fp32-64-cached": DROPOUT,
}
TWO_RANKS = {
    "0-fp32-64-direct": PLAIN,
    "1-fp32-64-cached": PLAIN,
    "recompute-3-fp32-64-cached": PLAIN,
    "dora-3-fp32-64-direct": DORA,
    "saved-2-fp32-64-direct": SAVED,
}
REFERENCES = [PLAIN, DORA, SAVED, DROPOUT]
BF16 = ["recompute-0-bf16-64-direct", "3-half-64-cached"]
PAIRS = [(f"1-{k}", v) for k, v in ONE_RANK.items()] + [(f"2-{k}", v) for k, v in TWO_RANKS.items()]


@pytest.fixture(scope="module")
def answers(base: Path) -> dict[str, Any]:
    """What every setting gave, by ``ranks-setting``; one start of the ranks for all of them."""
    for ranks, settings in ((1, [*REFERENCES, *ONE_RANK, *BF16]), (2, [*TWO_RANKS])):
        assert launch([sys.executable, WORKER, str(base), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in base.glob("*-*.json")}


@pytest.mark.parametrize(("setting", "reference"), PAIRS, ids=[f"{setting}" for setting, _ in PAIRS])
def test_every_way_is_the_same_training(answers: dict[str, Any], setting: str, reference: str) -> None:
    found, wanted = answers[setting], answers[f"1-{reference}"]
    for one, other in zip(found["steps"], wanted["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-5)
        assert one["gradients"].keys() == other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert gradient == pytest.approx(other["gradients"][name], abs=2e-6), name
    for name, weights in found["weights"].items():
        assert weights == pytest.approx(wanted["weights"][name], abs=1e-5), name


def test_the_comparison_compares_something(answers: dict[str, Any]) -> None:
    """Adapters and heads have gradients, nothing else has; and dropout changes them."""
    first = answers[f"1-{PLAIN}"]["steps"][0]["gradients"]
    adapters = [name for name in first if ".lora_A." in name or ".lora_B." in name]
    assert len(adapters) == 24
    assert set(first) - set(adapters) == {
        f"model.inner.{h}_linear.{k}" for h in ("colbert", "sparse") for k in ("weight", "bias")
    }
    for name in adapters:
        # What is added to every key of a text alike leaves the attention as it is.
        assert max(map(abs, first[name])) > (0 if ".key." in name else 1e-5), name
    other = answers[f"1-{DROPOUT}"]["steps"][0]["gradients"]
    assert other[adapters[0]] != pytest.approx(first[adapters[0]], abs=1e-4)
    assert any("lora_magnitude_vector" in name for name in answers[f"1-{DORA}"]["steps"][0]["gradients"])
    assert any("modules_to_save" in name for name in answers[f"1-{SAVED}"]["steps"][0]["gradients"])


@pytest.mark.parametrize("setting", [f"1-{PLAIN}", *(f"1-{s}" for s in BF16), "2-recompute-3-fp32-64-cached"])
def test_frozen_weights_leave_as_they_came(answers: dict[str, Any], base: Path, setting: str) -> None:
    """In bf16 too, where DeepSpeed has only the rounded ones left."""
    weights = answers[setting]["weights"]
    loaded = load_file(base / "model" / "model.safetensors")
    for name, value in loaded.items():
        stem, _, kind = name.rpartition(".")
        ours = weights.get(f"model.inner.encoder.{name}", weights.get(f"model.inner.encoder.{stem}.base_layer.{kind}"))
        assert torch.equal(torch.tensor(ours), value.flatten()), name
    assert not torch.equal(
        loaded["embeddings.word_embeddings.weight"].bfloat16().float(), loaded["embeddings.word_embeddings.weight"]
    )


@pytest.mark.parametrize("setting", [f"1-{s}" for s in BF16])
def test_bf16_trains_the_adapters_in_fp32(answers: dict[str, Any], setting: str) -> None:
    for one, other in zip(answers[setting]["steps"], answers[f"1-{PLAIN}"]["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.05)
    name = next(n for n in answers[setting]["weights"] if "lora_B" in n)
    weights = torch.tensor(answers[setting]["weights"][name])
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5, "the weights are rounded to bf16"
