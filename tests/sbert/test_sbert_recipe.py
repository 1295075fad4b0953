"""The recipe's keys: what they compile to, what they refuse, and the config files that come with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embed_core.config import document
from embed_core.config.presets import find_config, shipped_configs
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.testing import check_plugin
from embed_sbert.recipe import SbertRecipe

AS_WRITTEN = """{
  "model_id": "BAAI/bge-small-en-v1.5",
  "hf": {
    "trust_remote_code": true
  },
  "device": {
    "device": "auto",      // auto | cuda | mps | cpu
    "dtype": "auto"        // auto | float32 | float16 | bfloat16
  },
  "train": {
    "batch_size": 8,
    "epochs": 15,
    "max_length": 128,
    "grad_accum_steps": 1,   // 메모리 제약 시 배치 크기를 줄이고 이 값을 늘려 유효 배치 크기 유지
    "pad_to_multiple_of": 8, // MPS/CUDA 성능 최적화 (8 또는 16 권장)
    "fp16": "auto"           // auto | true | false (혼합 정밀도 학습 활성화)
  },
  "optim": {
    "lr": 5e-5
  },
  "data": {
    "pairs_path": "./tools/data/pairs.jsonl"
  },
  "output": {
    "save_dir": "./outputs",
    "save_name": "embed-ft"
  }
}
"""


def resolve(*overrides: str, config: Path | None = None, sanity: bool = False, ranks: int = 1) -> RunConfig:
    _, registry = activate(["sbert"])
    read = document.read(config) if config else document.Document()
    request = Request(
        registry.recipe("sbert"), read, sanity=sanity, overrides=document.overrides(overrides), world_size=ranks
    )
    return resolve_run(registry, request)


def model_of(run: RunConfig) -> Any:
    return run.model


def test_the_plugin_keeps_its_promises() -> None:
    check_plugin("sbert")


def test_a_config_as_users_have_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(AS_WRITTEN, encoding="utf-8")
    run = resolve(config=path, ranks=2)
    model, data, checkpoint = model_of(run), run.data.model_dump(), run.checkpoint.model_dump()
    assert (model.kind, model.name_or_path, model.trust_remote_code) == (
        "sentence-transformers",
        "BAAI/bge-small-en-v1.5",
        True,
    )
    assert (model.max_seq_length, model.pad_to_multiple_of) == (128, 8)
    assert (data["kind"], data["path"], data["held_out_rows"]) == ("file", "./tools/data/pairs.jsonl", None)
    assert run.sampler.batch_size == 16, "rows of a rank, on two ranks"
    assert run.train.epochs == 15
    assert run.train.gradient_accumulation_steps == 1
    assert run.train.optimizer.learning_rate == 5e-5
    assert run.output_dir == Path("outputs/embed-ft")
    assert run.name == "embed-ft"
    assert (checkpoint["kind"], checkpoint["in_output_dir"]) == ("sentence-transformers", True)
    assert (run.engine.precision, run.engine.device) == ("auto", "auto")
    assert run.loss.model_dump()["scale"] == 20


def test_shipped_configs_compile() -> None:
    found = shipped_configs(SbertRecipe)
    assert list(found) == ["config", "config.qwen"]
    first, second = (resolve(config=path) for path in found.values())
    assert model_of(first).name_or_path == "BAAI/bge-small-en-v1.5"
    assert model_of(second).name_or_path == "Qwen/Qwen3-Embedding-0.6B"
    assert second.engine.precision == "bf16"
    assert second.train.gradient_accumulation_steps == 4
    assert find_config("config.qwen", SbertRecipe) == found["config.qwen"]


def test_without_a_config_it_needs_nothing() -> None:
    run = resolve()
    assert model_of(run).name_or_path == "from-scratch"
    assert run.data.kind == "pydocs"
    assert run.output_dir is None
    assert run.checkpoint.model_dump()["in_output_dir"] is False
    assert (run.train.epochs, run.train.optimizer.learning_rate, run.sampler.batch_size) == (2, 1e-3, 64)


def test_defaults_follow_the_model() -> None:
    run = resolve("model_id=some/model")
    assert (run.train.epochs, run.train.optimizer.learning_rate, run.sampler.batch_size) == (1, 5e-5, 32)
    assert resolve("model.name_or_path=some/model").train.epochs == 1


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        ((), "auto"),
        (("device.dtype=float32",), "fp32"),
        (("device.dtype=float16",), "fp16"),
        (("device.dtype=bfloat16",), "bf16"),
        (("train.fp16=true",), "fp16"),
        (("train.fp16=true", "device.dtype=bfloat16"), "bf16"),
        (("train.fp16=true", "device.dtype=float32"), "fp16"),
        (("train.fp16=false",), "fp32"),
        (("train.fp16=false", "device.dtype=float32"), "fp32"),
    ],
)
def test_precision(overrides: tuple[str, ...], precision: str) -> None:
    assert resolve(*overrides).engine.precision == precision


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("device.device=mps",),
            r"--set device.device: device.device: 'mps' cannot be trained on here, because DeepSpeed",
        ),
        (("train.fp16=false", "device.dtype=float16"), r"train.fp16: false switches mixed precision off, .* 'float16'"),
        (("train.fp16=true", "device.device=cpu"), r"train.fp16: true needs CUDA, device.device is 'cpu': use dtype"),
        (("device.dtype=float16", "device.device=cpu"), r"device.dtype: 'float16' needs CUDA"),
        (("train.batchsize=8",), r"unknown key 'batchsize': did you mean 'batch_size'"),
        (("data.pairs_pth=x",), r"unknown key 'pairs_pth': did you mean 'pairs_path'"),
        (("data.pairs_path=x.jsonl", "data.columnz={}"), r"--set data.columnz: data.columnz: unknown key 'columnz'"),
        (("output.save_nam=x",), r"unknown key 'save_nam': did you mean 'save_name'"),
        (("hf.trust=true",), r"hf.trust: unknown key 'trust'"),
        (
            ("train.grad_accum_steps=2", "train.gradient_accumulation_steps=3"),
            r"grad_accum_steps 2 and gradient_accumulation_steps 3 are the same key: set one",
        ),
        (("modelid=x",), r"'modelid' is no key of recipe 'sbert' or of a run: did you mean 'model_id'"),
    ],
)
def test_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(*overrides)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_s_own_keys_mix_in() -> None:
    """The sections of the file are those of a run, too."""
    run = resolve(
        "train.max_steps=7",
        "train.schedule.kind=cosine",
        "optim.warmup_ratio=0.2",
        "optim.weight_decay=0.1",
        "train.optimizer.beta2=0.98",
        "train.gradient_clipping=0.5",
        "train.grad_accum_steps=3",
        "loss.scale=50",
        "engine.zero_stage=2",
        "model.query_prompt='질문: '",
        "data.pairs_path=pairs.csv",
        "data.columns={query: q}",
        "data.held_out_rows=0",
    )
    assert run.train.max_steps == 7
    assert (run.train.schedule.kind, run.train.schedule.warmup_ratio) == ("cosine", 0.2)
    assert (run.train.optimizer.weight_decay, run.train.optimizer.beta2) == (0.1, 0.98)
    assert run.train.optimizer.learning_rate == 1e-3
    assert (run.train.gradient_clipping, run.train.gradient_accumulation_steps) == (0.5, 3)
    assert run.loss.model_dump()["scale"] == 50
    assert run.engine.zero_stage == 2
    assert model_of(run).query_prompt == "질문: "
    assert run.data.model_dump()["columns"] == {"query": "q"}
    assert run.evaluation == ()
    assert resolve("train.optimizer.learning_rate=0.5").train.optimizer.learning_rate == 0.5
    assert resolve("train.epochs=3").train.epochs == 3


def test_a_dataset_of_another_kind_takes_the_place_of_the_pairs() -> None:
    run = resolve("data={kind: retrieval, path: rows.jsonl, negatives: 2}", sanity=True)
    assert (run.data.kind, run.data.model_dump()["negatives"], run.data.model_dump()["limit"]) == ("retrieval", 2, None)


def test_evaluation_and_output() -> None:
    run = resolve("data.eval_paths=[a/beir]", "data.pairs_path=p.jsonl", "output.save_name=mine")
    assert [one.model_dump()["path"] for one in run.evaluation] == ["a/beir"]
    assert run.data.model_dump()["held_out_rows"] == 0
    assert run.output_dir == Path("outputs/mine")
    assert resolve("output.save_dir=there").output_dir == Path("there/sbert")


def test_lora_goes_around_the_recipe_s_model() -> None:
    run = resolve("model={kind: lora, r: 4, inner: {query_prompt: 'q: '}}", "model_id=some/model")
    inner = model_of(run).inner
    assert (model_of(run).r, inner.name_or_path, inner.query_prompt) == (4, "some/model", "q: ")


def test_sanity_is_small_and_leaves_what_was_set() -> None:
    run = resolve(sanity=True)
    assert (model_of(run).from_scratch.hidden, run.data.model_dump()["limit"]) == (32, 128)
    kept = resolve("model.from_scratch={hidden: 64}", "data.limit=5", sanity=True)
    assert (model_of(kept).from_scratch.hidden, kept.data.model_dump()["limit"]) == (64, 5)
