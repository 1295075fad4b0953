"""The step is the same mathematics on any number of ranks, ZeRO stage, chunking and accumulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embed_cli.launch import _free_port, _start

WORKER = str(Path(__file__).parent / "engine_worker.py")


def run(tmp_path: Path, ranks: int, stage: int, precision: str = "fp32", budget: int = 32, clip: float = 0.5) -> Any:
    out = tmp_path / f"{ranks}-{stage}-{precision}-{budget}.json"
    command = [sys.executable, WORKER, str(out), str(stage), precision, str(budget), "1", str(clip)]
    port = _free_port()
    processes = [_start(command, rank, ranks, port, None) for rank in range(ranks)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One rank, no sharding, all texts in one chunk."""
    return run(tmp_path_factory.mktemp("reference"), ranks=1, stage=0, budget=100_000)


def assert_same(found: Any, wanted: Any, tolerance: float) -> None:
    for one, other in zip(found["steps"], wanted["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert one["rows"] == other["rows"]
        assert one["norm"] == pytest.approx(other["norm"], rel=10 * tolerance)
        assert one["gradients"].keys() == other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert gradient == pytest.approx(other["gradients"][name], abs=tolerance), name
    for name, weights in found["weights"].items():
        assert weights == pytest.approx(wanted["weights"][name], abs=10 * tolerance), name


@pytest.mark.parametrize(
    ("ranks", "stage", "budget"),
    [(1, 0, 32), (1, 1, 32), (1, 2, 32), (1, 3, 32), (2, 0, 32), (2, 1, 32), (2, 2, 32), (2, 3, 32), (2, 3, 100_000)],
)
def test_ranks_stages_and_chunking_agree(tmp_path: Path, reference: Any, ranks: int, stage: int, budget: int) -> None:
    assert_same(run(tmp_path, ranks, stage, budget=budget), reference, tolerance=1e-5)


def test_gradients_are_not_trivially_equal(reference: Any) -> None:
    """The comparison above compares something: every trained part has a gradient, and it clips."""
    first = reference["steps"][0]
    assert any(abs(value) > 1e-4 for value in first["gradients"]["loss.log_scale.weight"])
    for part in ("model.sparse_head.weight", "model.multi_head.weight", "model.embedding.weight"):
        assert any(abs(value) > 1e-4 for value in first["gradients"][part]), part
    assert first["norm"] > 0.5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_trains_with_fp32_master_weights_at_every_stage(tmp_path: Path, reference: Any, stage: int) -> None:
    found = run(tmp_path, 1, stage, precision="bf16")
    for one, other in zip(found["steps"], reference["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.05)
    # Master weights are not rounded to bf16: most differ from their own 8-bit-mantissa rounding.
    import torch

    weights = torch.tensor(found["weights"]["model.embedding.weight"])
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5


def test_worker_starts_without_a_compiler(tmp_path: Path) -> None:
    """DeepSpeed compiles its CPU communication at start where it can; nothing may depend on it."""
    out = tmp_path / "out.json"
    answer = subprocess.run(
        [sys.executable, WORKER, str(out), "1", "fp32", "32", "1", "0.5"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "ext")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert out.exists()
    assert not (tmp_path / "ext").exists()
