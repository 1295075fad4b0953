"""The recipe's keys reach the run, every one of them, and its defaults suit the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embed_core.config.document import overrides
from embed_core.config.resolve import Request, resolve
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.models.lora.addon import LoraAddOn
from embed_core.plugin.manager import activate
from embed_qwen.recipe import QwenRecipe

QWEN = "model_name_or_path=Qwen/Qwen3-Embedding-0.6B"
FILE = "dataset_paths=a.jsonl"


@pytest.fixture(scope="module")
def registry() -> Any:
    return activate(["qwen"])[1]


def run(registry: Any, *pairs: str, world_size: int = 1, sanity: bool = False) -> RunConfig:
    return resolve(registry, Request(QwenRecipe, overrides=overrides(pairs), world_size=world_size, sanity=sanity))


def at(config: RunConfig, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value


# Every field of the recipe: settings, and where what arrives.
LORA = "tuner_type=lora"
SWIFT = "loss_type=infonce"
ARRIVES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "model_name_or_path": ((QWEN,), {"model.name_or_path": "Qwen/Qwen3-Embedding-0.6B"}),
    "dataset_paths": (
        ("dataset_paths=[a.jsonl, b.jsonl]",),
        {"data.kind": "mix", "data.datasets.1.data_path": "b.jsonl"},
    ),
    "eval_data": (("eval_data=[x/one, two]",), {"evaluation.0.path": "x/one", "evaluation.1.path": "two"}),
    "held_out_rows": ((FILE, "held_out_rows=7"), {"data.held_out_rows": 7}),
    "output_dir": (("output_dir=o",), {"output_dir": Path("o")}),
    "seed": (("seed=7",), {"seed": 7}),
    "max_length": (("max_length=99",), {"model.query_max_length": 99, "model.passage_max_length": 99}),
    "query_max_length": (("query_max_length=9",), {"model.query_max_length": 9, "model.passage_max_length": 128}),
    "instruction": (("instruction=Find it",), {"model.instruction": "Find it"}),
    "trust_remote_code": (("trust_remote_code=true",), {"model.trust_remote_code": True}),
    "tuner_type": ((LORA,), {"model.kind": "lora", "model.inner.kind": "qwen3-embedding", "model.r": 8}),
    "lora_rank": ((LORA, "lora_rank=3"), {"model.r": 3}),
    "lora_alpha": ((LORA, "lora_alpha=5"), {"model.alpha": 5}),
    "lora_dropout": ((LORA, "lora_dropout=0.5"), {"model.dropout": 0.5}),
    "target_modules": ((LORA, "target_modules=[q_proj]"), {"model.target_modules": ("q_proj",)}),
    "lora_export": ((LORA, "lora_export=adapter"), {"model.export": "adapter"}),
    "loss_type": (("loss_type=contrastive",), {"loss.kind": "swift-contrastive"}),
    "temperature": (("temperature=0.5",), {"loss.temperature": 0.5}),
    "infonce_use_batch": ((SWIFT, "infonce_use_batch=false"), {"loss.use_batch": False}),
    "infonce_hard_negatives": ((SWIFT, "infonce_hard_negatives=3"), {"loss.hard_negatives": 3}),
    "infonce_mask_fake_negative": ((SWIFT, "infonce_mask_fake_negative=true"), {"loss.mask_fake_negative": True}),
    "infonce_fake_neg_margin": ((SWIFT, "infonce_fake_neg_margin=0.3"), {"loss.fake_neg_margin": 0.3}),
    "infonce_include_qq": ((SWIFT, "infonce_include_qq=true"), {"loss.include_qq": True}),
    "infonce_include_dd": ((SWIFT, "infonce_include_dd=true"), {"loss.include_dd": True}),
    "hard_negatives": (("hard_negatives=own",), {"loss.hard_negatives": "own"}),
    "labels": (("loss_type=cosine_similarity", "labels=scores"), {"loss.labels": "scores"}),
    "negatives": ((FILE, "negatives=3"), {"data.negatives": 3}),
    "curriculum": ((FILE, "curriculum=true"), {"sampler.kind": "curriculum", "phases.1.data.by": "share"}),
    "stages": (("stages=[{epochs: 4, name: a}]",), {"phases.0.name": "a", "phases.0.train.epochs": 4}),
    "learning_rate": (
        ("learning_rate=0.5",),
        {"train.optimizer.learning_rate": 0.5, "phases.2.train.optimizer.learning_rate": 0.2},
    ),
    "num_train_epochs": (("num_train_epochs=8",), {"train.epochs": 8, "phases.0.train.epochs": 5}),
    "max_steps": (("max_steps=9",), {"train.max_steps": 9}),
    "per_device_train_batch_size": (("per_device_train_batch_size=5",), {"sampler.batch_size": 10}),
    "gradient_accumulation_steps": (
        ("gradient_accumulation_steps=3",),
        {"train.gradient_accumulation_steps": 3, "phases.1.train.gradient_accumulation_steps": 3},
    ),
    "gradient_checkpointing": (("gradient_checkpointing=true",), {"engine.gradient_checkpointing": True}),
    "warmup_ratio": (("warmup_ratio=0.5",), {"train.schedule.warmup_ratio": 0.5}),
    "warmup_steps": (
        ("warmup_steps=7",),
        {"train.schedule.warmup_steps": 7, "phases.0.train.schedule.warmup_steps": 7},
    ),
    "lr_scheduler_type": (("lr_scheduler_type=cosine",), {"phases.2.train.schedule.kind": "cosine"}),
    "weight_decay": (("weight_decay=0.5",), {"phases.2.train.optimizer.weight_decay": 0.5}),
    "max_grad_norm": (("max_grad_norm=3",), {"train.gradient_clipping": 3}),
    "deepspeed": (("deepspeed=zero2",), {"engine.zero_stage": 2}),
    "fp16": (("fp16=true",), {"engine.precision": "fp16"}),
    "bf16": (("bf16=true",), {"engine.precision": "bf16"}),
    "save_steps": (("save_steps=9",), {"checkpoint.every_steps": 9, "checkpoint.every_minutes": 0}),
    "save_total_limit": (("save_total_limit=9",), {"checkpoint.keep_last": 9}),
    "eval_steps": (("eval_steps=9",), {"train.evaluate_every_steps": 9, "phases.1.train.evaluate_every_steps": 9}),
    "logging_steps": (("logging_steps=9",), {"tracking.log_every_steps": 9}),
    "model": (("model.query_max_length=33",), {"model.query_max_length": 33}),
    "data": (("data.limit=33",), {"data.limit": 33}),
}


def test_every_key_is_here() -> None:
    lora = set(LoraAddOn.model_fields) - {"use_lora", "lora_r", "lora_target_modules"}  # other names of the same
    assert set(ARRIVES) == set(QwenRecipe.model_fields) | lora


@pytest.mark.parametrize("name", ARRIVES)
def test_the_key_arrives(registry: Any, name: str) -> None:
    settings, places = ARRIVES[name]
    config, default = run(registry, *settings, world_size=2), run(registry, world_size=2)
    for place, value in places.items():
        assert at(config, place) == value, place
    assert config != default


def test_the_embedded_default_is_a_curriculum_that_mines(registry: Any) -> None:
    config = run(registry)
    assert (config.model.kind, at(config, "model.name_or_path")) == ("qwen3-embedding", "from-scratch")
    assert (config.data.kind, config.loss.kind, config.checkpoint.kind) == (
        "pydocs",
        "qwen3-infonce",
        "qwen3-embedding",
    )
    assert at(config, "loss.temperature") == 0.05
    assert at(config, "loss.mask.margin") is None
    phases = [config.in_phase(number) for number in range(3)]
    assert [one.data.waits() for one in phases] == [False, True, True]
    assert [one.train.epochs for one in phases] == pytest.approx([1.0, 0.3, 0.3])
    assert [one.train.optimizer.learning_rate for one in phases] == pytest.approx([1e-3, 8e-4, 4e-4])
    assert [at(one, "loss.hard_negatives") for one in phases] == ["batch", "own", "own"]


@pytest.mark.parametrize("setting", [QWEN, "model.name_or_path=Qwen/Qwen3-Embedding-0.6B"])
def test_a_trained_model_has_its_own_defaults(registry: Any, setting: str) -> None:
    config = run(registry, setting, FILE)
    assert at(config, "model.name_or_path") == "Qwen/Qwen3-Embedding-0.6B"
    assert (config.sampler.kind, config.sampler.batch_size, config.phases) == ("no-duplicates", 8, ())
    assert (config.train.optimizer.learning_rate, config.train.epochs) == (6e-6, 10)
    assert at(config, "model.passage_max_length") == 512
    assert at(config, "loss.temperature") == 0.02
    assert at(config, "loss.mask.margin") == 0.1
    assert (config.data.kind, at(config, "data.held_out_rows")) == ("file", None)


def test_its_curriculum_is_the_paper_s(registry: Any) -> None:
    config = run(registry, QWEN, FILE, "curriculum=true")
    phases = [config.in_phase(number) for number in range(3)]
    assert [one.train.epochs for one in phases] == [3, 4, 3]
    assert [one.train.optimizer.learning_rate for one in phases] == pytest.approx([1e-5, 8e-6, 4e-6])
    assert [one.train.schedule.warmup_steps for one in phases] == [50, 0, 0]
    assert [at(one, "data.negatives") for one in phases] == [0, 20, 20]
    assert [phase.name for phase in config.phases] == ["stage-1-in-batch", "stage-2-easier", "stage-3-harder"]


def test_model_keys_go_inside_the_adapters(registry: Any) -> None:
    config = run(registry, LORA, "model.name_or_path=m", "model.revision=r")
    assert (at(config, "model.inner.name_or_path"), at(config, "model.inner.revision")) == ("m", "r")
    assert config.train.optimizer.learning_rate == 6e-6


def test_evaluation_data_leaves_all_rows_to_training(registry: Any) -> None:
    assert at(run(registry, FILE, "eval_data=[x]"), "data.held_out_rows") == 0
    assert run(registry, FILE, "held_out_rows=0").evaluation == ()
    assert run(registry, "held_out_rows=0").evaluation == ()


def test_our_loss_takes_swift_s_options_by_its_own_names(registry: Any) -> None:
    settings = ("infonce_include_qq=false", "infonce_include_dd=false", "infonce_use_batch=false")
    config = run(registry, *settings, "infonce_mask_fake_negative=false")
    names = ("query_query", "document_document", "in_batch", "mask.margin")
    assert [at(config, f"loss.{name}") for name in names] == [False, False, False, None]
    assert at(config, "loss.mask.same_text")
    assert at(run(registry, "infonce_fake_neg_margin=0.3"), "loss.mask.margin") == 0.3


NONE = "is no option of loss_type"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["infonce_hard_negatives=2"],
            f"infonce_hard_negatives: 2 {NONE} 'qwen3': leave it out, or use loss_type infonce",
        ),
        (
            [SWIFT, "hard_negatives=own"],
            f"hard_negatives: 'own' {NONE} 'infonce': leave it out, or use loss_type qwen3",
        ),
        (["loss_type=contrastive", "temperature=0.1"], f"temperature: 0.1 {NONE} 'contrastive': leave it out"),
        (
            ["loss_type=contrastive", "infonce_include_qq=true"],
            f"infonce_include_qq: True {NONE} 'contrastive': leave it out, or use loss_type infonce or qwen3",
        ),
        (
            ["labels=scores"],
            f"labels: 'scores' {NONE} 'qwen3': leave it out, or use loss_type cosine_similarity, contrastive or "
            "online_contrastive",
        ),
        (["lora_rank=4"], "lora_rank is of no use with tuner_type full: set tuner_type: lora, or leave it out"),
        (["negatives=4"], "negatives: stages have their own number of negatives: set it in `stages`"),
        (["curriculum=true", "stages=[{}]"], "curriculum: true and stages both say what the stages are: give one"),
        (["fp16=true", "bf16=true"], "fp16 and bf16 are both true: choose one of them"),
        (["dataset_paths=[]"], "dataset_paths is empty: name a file, or 'pydocs'"),
        (
            ["deepspeed=zero2_offload"],
            "deepspeed: input should be 'zero0', 'zero1', 'zero2' or 'zero3', got 'zero2_off",
        ),
    ],
)
def test_what_is_refused(registry: Any, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(registry, *settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sanity_is_small(registry: Any) -> None:
    config = run(registry, sanity=True)
    assert at(config, "model.from_scratch.hidden") == 32
    assert at(config, "data.limit") == 128
    assert {config.in_phase(number).train.max_steps for number in range(3)} == {4}
    assert {config.in_phase(number).sampler.batch_size for number in range(3)} == {8}
    assert at(config, "evaluation.0.query_limit") == 32
    lora = run(registry, LORA, "model.from_scratch.layers=2", "data.limit=9", sanity=True)
    assert (at(lora, "model.inner.from_scratch.layers"), at(lora, "model.inner.from_scratch.hidden")) == (2, 32)
    assert at(lora, "data.limit") == 9


def test_compiling_imports_no_torch() -> None:
    code = (
        "import sys; from embed_core.plugin.manager import activate; r = activate(['qwen'])[1]; "
        "r.recipe('qwen')().compile(1); assert not {'torch', 'transformers', 'swift'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
