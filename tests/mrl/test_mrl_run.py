"""Whole runs in miniature: the recipe, and the loss around BGE-M3's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_core.config import document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.distributed.process_group import leave
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.train.run import Options, RunResult, run

torch.set_num_threads(1)

TOPICS = ("rivers", "engines", "gardens", "letters", "bridges", "winters", "markets", "planets")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunResult]]:
    """``start("mrl", "mrl_dims=[32,16]")`` → the result of a run with ``--sanity`` over some rows of text."""
    rows = [
        {
            "query": f"what of {topic} number {i}",
            "pos": [f"{topic} {i} are told of at length in part {i}"],
            "neg": ["no"],
        }
        for topic in TOPICS
        for i in range(8)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def go(*arguments: str, out: str = "out", **options: Any) -> RunResult:
        plugins = [argument for argument in arguments if "=" not in argument]
        manager, registry = activate(plugins)
        settings = [f"train_data={path}", "held_out_rows=20", "tracking.report_to=[]", "engine.precision=fp32"]
        settings += [argument for argument in arguments if "=" in argument]
        request = Request(
            registry.recipe(plugins[0]),
            overrides=document.overrides(settings),
            sanity=True,
            flags={"output_dir": str(tmp_path / out), "plugins": plugins},
        )
        return run(resolve_run(registry, request), manager, registry, Options(announce=lambda line: None, **options))

    yield go
    leave()


def test_the_recipe_runs_to_a_model_that_can_be_cut(
    start: Callable[..., RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    result = start("mrl", "mrl_dims=[32,16]", "truncate_dim=16", "n_dims_per_step=2")
    names = {f"held-out/dense@{dim}/{p}/nDCG@10" for dim in (32, 16) for p in ("fp32", "int8", "binary")}
    assert names <= result.evaluations[0].keys() & result.evaluations[4].keys()
    assert "held-out: size against quality" in capsys.readouterr().out
    assert "| 16 | binary | 2 |" in (result.output_dir / "dimensions.md").read_text()
    metrics = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert all({"loss", "loss@16", "accuracy@16"} <= line["terms"].keys() for line in metrics if "terms" in line)
    model = SentenceTransformer(str(result.export_dir), device="cpu")
    assert model.encode(["bridges"]).shape == (1, 16)
    assert "### held-out: size against quality" in (result.export_dir / "README.md").read_text()


def test_around_bge_m3_s_loss(start: Callable[..., RunResult]) -> None:
    """All three kinds are trained, the dense vectors at every dimension; BGE-M3's layout says so."""
    result = start(
        "bge",
        "mrl",
        "loss={kind: matryoshka, dims: [16, 8], inner: {kind: bge-unified, use_self_distill: true}}",
        "checkpoint={kind: matryoshka, dims: [16, 8], inner: {kind: bge-m3}}",
    )
    metrics = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    terms = next(line["terms"] for line in metrics if "terms" in line)
    assert {"dense", "sparse", "multi", "ensemble", "self_distill", "loss@16", "loss@8"} <= terms.keys()
    assert json.loads((result.export_dir / "config.json").read_text())["matryoshka_dimensions"] == [32, 16, 8]
    assert (result.export_dir / "colbert_linear.pt").exists()


def test_dimensions_the_model_does_not_have_stop_the_run_before_a_step(start: Callable[..., RunResult]) -> None:
    with pytest.raises(ConfigError, match="dims: 64 is more than the 32 dimensions of the model's vectors: use"):
        start("mrl", "loss.dims=[64]", "evaluation=[{kind: dimensions, dims: [64]}]")
