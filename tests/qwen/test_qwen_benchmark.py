"""Both sides of the benchmark against ms-swift are told the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embed_qwen.recipe import QwenRecipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """``cases``, ``run`` and ``train_swift`` of ``benchmarks/``, a folder of scripts and no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import cases, run, train_swift

    return cases, run, train_swift


def test_settings(modules: tuple[Any, Any, Any], tmp_path: Path) -> None:
    cases, run, peer = modules
    case = next(one for one in cases.CASES if one.name == "swift")
    orders = [
        run.order(case, system, tmp_path / "m", tmp_path / "r", tmp_path / "o", tmp_path / system.name)
        for system in case.systems
    ]
    assert {key for key in orders[0] if orders[0][key] != orders[1][key]} == {"output", "measured"}
    words = peer.arguments(orders[1])
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert told["--model"] == str(tmp_path / "m")
    assert told["--deepspeed"] == "zero2"
    assert told["--per_device_train_batch_size"] == str(case.batch_size)
    assert told["--max_length"] == str(case.passage_max_len)
    assert told["--torch_dtype"] == "float32"
    assert peer.launched()["INFONCE_TEMPERATURE"] == "0.05"
    # The arguments that embed is given in train_embed.train_qwen compile, and mean the same loss.
    same = {"infonce_include_qq": False, "infonce_include_dd": False, "infonce_mask_fake_negative": False}
    loss = QwenRecipe(dataset_paths=("rows.jsonl",), negatives=0, temperature=0.05, **same).compile(1)["loss"]
    assert (loss["query_query"], loss["document_document"], loss["temperature"]) == (False, False, 0.05)
    assert loss["mask"]["margin"] is None


def test_rows(modules: tuple[Any, Any, Any]) -> None:
    row = modules[2].swift_row({"query": "q", "pos": ["p", "other"]})
    assert json.loads(json.dumps(row)) == {
        "messages": [{"role": "user", "content": "q"}],
        "positive_messages": [[{"role": "user", "content": "p"}]],
    }
