"""Whole runs of a model with adapters: saved, resumed, exported, and the same in both exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_bge.config import BGEM3ModelConfig
from embed_core.config import document
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.distributed.process_group import leave
from embed_core.models.lora.config import LoraModelConfig
from embed_core.plugin.manager import activate
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.models import assert_same_text, encode, text_vectors
from embed_core.train.run import Options, RunResult, run

TEXTS = ["Where does the lynx live?", "Worms and beetles.", "After dusk: that is when the mole is awake."]
torch.set_num_threads(1)

SETTINGS = (
    "sampler={kind: shuffled, batch_size: 6}",
    "loss={kind: bge-unified, temperature: 0.2}",
    "train={max_steps: 4, optimizer: {learning_rate: 0.01}}",
    "tracking.report_to=[]",
    "checkpoint.every_minutes=0",
    "evaluation=[]",
)
Start = Callable[..., RunResult]


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Iterator[Start]:
    """``start("out", "engine.zero_stage=3", resume=True)``: a run of the bge plugin with adapters on its model."""

    def started(out: str, *settings: str, model: str = "", lines: list[str] | None = None, **options: Any) -> RunResult:
        manager, registry = activate(["bge"])
        inner = f"inner: {{kind: bge-m3, name_or_path: '{base / 'model'}'}}"
        given = [f"model={{kind: lora, r: 4, {inner}{model}}}", *SETTINGS, *settings]
        flags = {"output_dir": str(tmp_path / out), "plugins": ["bge"]}
        request = Request(registry.recipe("bge"), overrides=document.overrides(given), flags=flags)
        announce = (lambda line: None) if lines is None else lines.append
        chosen = Options(dataset=tiny_dataset(), announce=announce, **options)
        return run(resolve_run(registry, request), manager, registry, chosen)

    yield started
    leave()


def loaded(directory: Path) -> Any:
    config = BGEM3ModelConfig(name_or_path=str(directory))
    return config.build(BuildContext(registry=Registry(), announce=lambda line: None))


def assert_alike(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    first, second = encode(one, TEXTS), encode(other, TEXTS)
    for index in range(len(TEXTS)):
        assert_same_text(text_vectors(first, index), text_vectors(second, index), tolerance, f"text {index}")


def test_the_trained_model_and_its_export_agree(start: Start, base: Path) -> None:
    lines: list[str] = []
    result = start("run", "engine.precision=fp32", lines=lines)
    assert any(line.startswith("LoRA r 4, alpha 32: trainable 2,593 of ") for line in lines)
    assert_alike(result.model, loaded(result.export_dir))
    moved = encode(result.model, TEXTS).dense_ND - encode(loaded(base / "model"), TEXTS).dense_ND
    assert float(moved.abs().max()) > 1e-2
    assert f"Started from `{base / 'model'}`" in (result.export_dir / "README.md").read_text()


@pytest.mark.parametrize("precision", ["fp32", "bf16-weights"])
def test_both_exports_are_the_same_model(start: Start, base: Path, precision: str) -> None:
    """In bf16 too: the base of the adapter is the fp32 one, and so is what the adapters are merged into."""
    engine = f"engine={{zero_stage: 3, precision: {precision}, strategy: cached, gradient_checkpointing: true}}"
    merged = start("merged", engine)
    adapter = start("adapter", engine, model=", export: adapter")
    config = LoraModelConfig(inner=BGEM3ModelConfig(name_or_path=str(base / "model")), r=4, adapter=adapter.export_dir)
    assert_alike(loaded(merged.export_dir), config.build(BuildContext(Registry(), announce=lambda line: None)))


def test_an_adapter_trains_on(start: Start) -> None:
    first = start("first", model=", export: adapter")
    lines: list[str] = []
    second = start("second", "train.max_steps=1", model=f", adapter: '{first.export_dir}'", lines=lines)
    before, after = (encode(run.model, TEXTS).dense_ND for run in (first, second))
    assert 0 < float((before - after).abs().max()) < 0.2
    assert not any("stay as the inner model has them" in line for line in lines)


@pytest.mark.parametrize("engine", ["{zero_stage: 3, strategy: cached}", "{zero_stage: 1, precision: bf16-weights}"])
def test_resumed_is_uninterrupted(start: Start, engine: str) -> None:
    settings = (f"engine={engine}", "checkpoint.every_steps=2", "train.schedule.kind=constant")
    whole = start("whole", *settings)
    start("part", *settings, "train.max_steps=2")
    lines: list[str] = []
    rest = start("part", *settings, resume=True, lines=lines)
    assert "resuming after step 2" in lines
    assert_alike(loaded(whole.export_dir), loaded(rest.export_dir), tolerance=1e-6)


def test_a_model_without_transformers_runs_too(hello_lora: Callable[[], tuple[RunResult, Any]]) -> None:
    """embed-hello's: its own layout, read by its own loader."""
    result, inner = hello_lora()
    assert type(inner).__name__ == "NgramEncoder"
    assert_alike(result.model, inner)


@pytest.fixture
def hello_lora(tmp_path: Path) -> Iterator[Callable[[], tuple[RunResult, Any]]]:
    def started() -> tuple[RunResult, Any]:
        from embed_hello.checkpoint import load as load_hello

        manager, registry = activate(["hello"])
        sizes = "buckets: 64, width: 8, dimension: 8"
        given = [f"model={{kind: lora, r: 2, inner: {{kind: hello, {sizes}}}}}", "sampler.batch_size=6"]
        given += [
            "train={max_steps: 3, optimizer: {learning_rate: 0.1}}",
            "tracking.report_to=[]",
            "engine.precision=fp32",
        ]
        flags = {"output_dir": str(tmp_path / "hello"), "plugins": ["hello"]}
        request = Request(registry.recipe("hello"), overrides=document.overrides(given), flags=flags)
        options = Options(dataset=tiny_dataset(held_out_rows=6), announce=lambda line: None)
        result = run(resolve_run(registry, request), manager, registry, options)
        return result, load_hello(result.export_dir)

    yield started
    leave()
