"""Whole runs in miniature: the recipe over the embedded pictures and over files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from embed_core.config import document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.distributed.process_group import leave
from embed_core.errors import DataError
from embed_core.plugin.manager import activate
from embed_core.train.run import Options, RunResult, run

torch.set_num_threads(1)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunResult]]:
    """``start("loss_type=siglip")`` → the result of a run with ``--sanity``."""
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))

    def go(*settings: str, out: str = "out", text: str = "", **options: Any) -> RunResult:
        manager, registry = activate(["vision"])
        fixed = ["engine.precision=fp32", "data.drawn=shapes"] if "data_path" not in str(settings) + text else []
        request = Request(
            registry.recipe("vision"),
            document.parse(text, "train.yaml") if text else document.Document(),
            overrides=document.overrides([*fixed, "engine.precision=fp32", *settings]),
            sanity=True,
            flags={"output_dir": str(tmp_path / out), "plugins": ["vision"]},
        )
        return run(resolve_run(registry, request), manager, registry, Options(announce=lambda line: None, **options))

    yield go
    leave()


def steps(result: RunResult) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "terms" in line]


def test_the_recipe_runs_to_a_model_and_a_gallery(start: Callable[..., RunResult]) -> None:
    from transformers import AutoModel, AutoProcessor

    result = start("gallery=3")
    assert result.steps == 4
    names = {f"{name}/dense/Recall@{k}" for name in ("t2i", "i2t") for k in (1, 5)}
    assert names | {"validation/loss/loss", "validation/loss/scale"} <= result.evaluations[0].keys()
    assert result.evaluations[0].keys() == result.evaluations[4].keys()
    # The validation loss is that of the scale being trained.
    assert result.evaluations[4]["validation/loss/scale"] != result.evaluations[0]["validation/loss/scale"]
    for name in ("t2i", "i2t"):
        assert Image.open(result.output_dir / f"gallery-{name}.png").width > 600
    model = AutoModel.from_pretrained(result.export_dir)
    trained = result.evaluations[4]["validation/loss/scale"]
    assert float(model.logit_scale.detach().exp()) == pytest.approx(trained, rel=1e-5)
    assert AutoProcessor.from_pretrained(result.export_dir).image_processor is not None


@pytest.mark.parametrize("mode", ["i2t", "m2i"])
def test_other_modes(start: Callable[..., RunResult], mode: str) -> None:
    result = start(f"retrieval_mode={mode}", "gallery=0")
    assert f"{mode}/dense/Recall@1" in result.evaluations[4]
    assert not list(result.output_dir.glob("gallery*"))


@pytest.mark.parametrize("settings", [("loss_type=siglip",), ("loss_type=triplet",), ("loss_type=cosent",),
                                      ("loss_type=infonce", "use_lora=true", "lora_r=2")])  # fmt: skip
def test_other_losses(start: Callable[..., RunResult], settings: tuple[str, ...]) -> None:
    result = start(*settings, "gallery=0")
    assert result.steps == 4
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in steps(result))


def test_at_several_widths(start: Callable[..., RunResult]) -> None:
    """Around the loss with a learned scale; the layout says to what widths its vectors may be cut."""
    result = start("mrl_dims=[16,8]", "gallery=0")
    assert {"loss", "loss@8", "accuracy@8"} <= steps(result)[0]["terms"].keys()
    assert (result.export_dir / "model.safetensors").exists()


@pytest.mark.parametrize("stage", [1, 3])
def test_chunks_and_shards_change_nothing(start: Callable[..., RunResult], stage: int) -> None:
    """Gradient caching and ZeRO: the same losses and the same scale, step by step."""
    plain = start("gallery=0", "evaluation=[]", out="plain")
    other = start(
        "gallery=0", "evaluation=[]", "use_gradient_cache=true", "gradient_cache_chunk_size=2",
        f"engine.zero_stage={stage}", "gradient_checkpointing=true", out="other",
    )  # fmt: skip
    for mine, theirs in zip(steps(plain), steps(other), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["terms"]["scale"] == pytest.approx(theirs["terms"]["scale"], rel=1e-6)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """train.jsonl and val.jsonl with hard negatives, beside ``images/``."""
    (tmp_path / "images").mkdir()
    colours = ("red", "green", "blue", "orange", "purple", "black", "cyan", "pink")
    for number, colour in enumerate(colours):
        for size in range(4):
            image = Image.new("RGB", (20, 20), "white")
            image.paste(colour, (0, 0, 8 + size, 8 + number))
            image.save(tmp_path / "images" / f"{colour}-{size}.png")
    for name, sizes in (("train", range(3)), ("val", [3])):
        rows = [
            {"query": f"{c}, {s}", "positive": f"{c}-{s}.png", "negatives": [f"{colours[(n + 1) % 8]}-{s}.png"]}
            for n, c in enumerate(colours)
            for s in sizes
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


CONFIG = """\
data_path: {root}/train.jsonl
val_data_path: {root}/val.jsonl
image_root: {root}/images
epochs: 1
batch_size: 8
lr: 1e-3
scheduler_type: cosine
use_gradient_cache: true
gradient_cache_chunk_size: 4
save_steps: 2
report_to: none
"""


def test_files_of_one_s_own(start: Callable[..., RunResult], files: Path) -> None:
    result = start(text=CONFIG.format(root=files))
    assert result.steps == 4
    assert "t2i/dense/Recall@1" in result.evaluations[0]
    assert Image.open(result.output_dir / "gallery-t2i.png").width > 600


def test_a_broken_picture_stops_before_anything_is_written(start: Callable[..., RunResult], files: Path) -> None:
    (files / "images" / "blue-1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train.jsonl:5: picture .*blue-1.png' cannot be read"):
        start(text=CONFIG.format(root=files))
    assert not (files / "out").exists()
    assert start("on_bad_row=skip", text=CONFIG.format(root=files)).steps == 4


def test_a_resumed_run_is_the_same_run(start: Callable[..., RunResult]) -> None:
    """Weights of both towers and the learned scale, to the bit."""
    from safetensors.torch import load_file

    common = ("gallery=0", "scheduler_type=constant", "lr=0.01")
    whole = start(*common, "max_steps=4", out="whole")
    start(*common, "max_steps=2", out="parts")
    parts = start(*common, "max_steps=4", out="parts", resume=True)
    assert parts.steps == 4
    one, other = (load_file(run.export_dir / "model.safetensors") for run in (whole, parts))
    torch.testing.assert_close(other, one, atol=0, rtol=0)
    assert steps(whole)[-1]["terms"]["scale"] != steps(whole)[1]["terms"]["scale"]


def test_a_teacher_of_pictures(start: Callable[..., RunResult]) -> None:
    """Any recipe's ``teacher_model_name``: the teacher sees the same pictures, and the scale is trained on."""
    teacher = start("gallery=0", out="teacher")
    result = start(f"teacher_model_name={teacher.export_dir}", "distillation_alpha=0.3", "gallery=0")
    terms = steps(result)[0]["terms"]
    assert terms["kd"] > 0
    assert steps(result)[0]["loss"] == pytest.approx(0.7 * terms["task"] + 0.3 * terms["kd"], rel=1e-4)
    assert result.evaluations[4]["validation/loss/scale"] != result.evaluations[0]["validation/loss/scale"]
