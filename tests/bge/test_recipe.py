"""The recipe's keys reach the run, every one of them, and its defaults suit the model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from embed_bge.recipe import BGERecipe
from embed_core.config.document import overrides
from embed_core.config.resolve import Request, resolve
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate


@pytest.fixture(scope="module")
def registry():
    return activate(["data", "bge"])[1]


def run(registry, *pairs: str, world_size: int = 1, sanity: bool = False) -> Any:
    return resolve(registry, Request(BGERecipe, overrides=overrides(pairs), world_size=world_size, sanity=sanity))


def at(config: RunConfig, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value


# Every field of the recipe: a value that is not the default, and where it must arrive as what.
ARRIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "model_name_or_path": ("BAAI/bge-m3", {"model.name_or_path": "BAAI/bge-m3"}),
    "train_data": ("a.jsonl", {"data.path": "a.jsonl", "data.held_out_rows": None}),
    "eval_data": ("[x/one, two]", {"evaluation.0.path": "x/one", "evaluation.1.path": "two"}),
    "held_out_rows": ("7", {"data.held_out_rows": 7}),
    "output_dir": ("o", {"output_dir": __import__("pathlib").Path("o")}),
    "seed": ("7", {"seed": 7}),
    "train_group_size": ("4", {"data.negatives": 3}),
    "same_dataset_within_batch": ("true", {"sampler.kind": "by-source"}),
    "query_max_len": ("17", {"model.query_max_len": 17}),
    "passage_max_len": ("18", {"model.passage_max_len": 18}),
    "pad_to_multiple_of": ("8", {"model.pad_to_multiple_of": 8}),
    "query_instruction_for_retrieval": ("Q", {"model.query_instruction_for_retrieval": "Q"}),
    "query_instruction_format": ("'{}: {}'", {"model.query_instruction_format": "{}: {}"}),
    "passage_instruction_for_retrieval": ("P", {"model.passage_instruction_for_retrieval": "P"}),
    "passage_instruction_format": ("'{}; {}'", {"model.passage_instruction_format": "{}; {}"}),
    "unified_finetuning": ("false", {"model.unified_finetuning": False, "loss.unified_finetuning": False}),
    "sentence_pooling_method": ("last_token", {"model.sentence_pooling_method": "last_token"}),
    "normalize_embeddings": ("false", {"model.normalize_embeddings": False}),
    "colbert_dim": ("12", {"model.colbert_dim": 12}),
    "fix_encoder": ("true", {"model.fix_encoder": True}),
    "trust_remote_code": ("true", {"model.trust_remote_code": True}),
    "temperature": ("0.5", {"loss.temperature": 0.5}),
    "use_self_distill": ("true", {"loss.use_self_distill": True}),
    "self_distill_start_step": ("9", {"loss.self_distill_start_step": 9}),
    "knowledge_distillation": ("true", {"loss.knowledge_distillation": True}),
    "kd_loss_type": ("m3_kd_loss", {"loss.kd_loss_type": "m3_kd_loss"}),
    "teacher_temperature": ("3.0", {"loss.teacher_temperature": 3.0}),
    "learning_rate": ("3e-3", {"train.optimizer.learning_rate": 3e-3}),
    "num_train_epochs": ("5", {"train.epochs": 5.0}),
    "max_steps": ("11", {"train.max_steps": 11}),
    "per_device_train_batch_size": ("5", {"sampler.batch_size": 10}),
    "gradient_accumulation_steps": ("6", {"train.gradient_accumulation_steps": 6}),
    "gradient_checkpointing": ("true", {"engine.gradient_checkpointing": True}),
    "warmup_ratio": ("0.3", {"train.schedule.warmup_ratio": 0.3}),
    "warmup_steps": ("13", {"train.schedule.warmup_steps": 13}),
    "lr_scheduler_type": ("cosine", {"train.schedule.kind": "cosine"}),
    "weight_decay": ("0.2", {"train.optimizer.weight_decay": 0.2}),
    "max_grad_norm": ("0.4", {"train.gradient_clipping": 0.4}),
    "fp16": ("true", {"engine.precision": "fp16"}),
    "bf16": ("true", {"engine.precision": "bf16"}),
    "save_steps": ("21", {"checkpoint.every_steps": 21, "checkpoint.every_minutes": 0}),
    "save_total_limit": ("5", {"checkpoint.keep_last": 5}),
    "eval_steps": ("22", {"train.evaluate_every_steps": 22}),
    "logging_steps": ("23", {"tracking.log_every_steps": 23}),
    "model.from_scratch.layers": ("9", {"model.from_scratch.layers": 9, "model.from_scratch.hidden": 128}),
    "data.limit": ("99", {"data.limit": 99}),
}


def test_the_table_has_every_field():
    refused = {"negatives_cross_device", "small_threshold", "drop_threshold"}
    known = {key.split(".")[0] for key in ARRIVES} | refused
    assert known == set(BGERecipe.model_fields)


@pytest.mark.parametrize("key", ARRIVES)
def test_every_key_arrives(registry, key):
    value, expected = ARRIVES[key]
    default, config = run(registry, world_size=2), run(registry, f"{key}={value}", world_size=2)
    changed = False
    for path, wanted in expected.items():
        assert at(config, path) == wanted, path
        try:
            changed |= at(default, path) != wanted
        except (IndexError, AttributeError):
            changed = True
    assert changed, "the value tested is the default"


def test_defaults_from_scratch(registry):
    config = run(registry)
    assert (config.model.kind, config.loss.kind, config.checkpoint.kind) == ("bge-m3", "bge-unified", "bge-m3")
    assert (config.data.kind, config.data.path) == ("auto", "pydocs")
    assert [e.kind for e in config.evaluation] == ["retrieval"]
    assert config.model.name_or_path == "from-scratch"
    assert config.train.optimizer.learning_rate == 1e-3
    assert (config.sampler.kind, config.sampler.batch_size) == ("no-duplicates", 64)
    assert (config.model.query_max_len, config.model.passage_max_len) == (64, 192)


@pytest.mark.parametrize("key", ["model_name_or_path", "model.name_or_path"])
def test_a_named_model_gets_the_reference_s_defaults_by_either_key(registry, key):
    config = run(registry, f"{key}=BAAI/bge-m3", world_size=4)
    assert config.model.name_or_path == "BAAI/bge-m3"
    assert config.train.optimizer.learning_rate == 1e-5
    assert config.train.epochs == 3
    assert config.sampler.batch_size == 32
    assert config.data.negatives == 7
    assert (config.model.query_max_len, config.model.passage_max_len) == (32, 128)
    assert config.loss.temperature == 0.02
    assert run(registry, f"{key}=x", "learning_rate=1e-3").train.optimizer.learning_rate == 1e-3


@pytest.mark.parametrize("key", ["train_data", "data.path"])
def test_own_data_is_evaluated_on_rows_held_out_or_on_folders_or_not(registry, key):
    config = run(registry, f"{key}=my.jsonl")
    assert (config.data.path, config.data.held_out_rows, len(config.evaluation)) == ("my.jsonl", None, 1)
    config = run(registry, f"{key}=my.jsonl", "eval_data=[d]")
    assert (config.data.held_out_rows, config.evaluation[0].path) == (0, "d")
    for held_out in ("held_out_rows", "data.held_out_rows"):
        config = run(registry, f"{key}=my.jsonl", f"{held_out}=0")
        assert (config.data.held_out_rows, config.evaluation) == (0, ())


def test_another_kind_of_data_or_model_stands_alone(registry):
    config = run(registry, "data={kind: pydocs, max_rows: 5}")
    assert (config.data.kind, config.data.max_rows) == ("pydocs", 5)


def test_sanity_is_tiny_but_keeps_what_the_user_set(registry):
    config = run(registry, sanity=True)
    shape = config.model.from_scratch
    assert (shape.vocab_size, shape.hidden, shape.layers) == (500, 32, 1)
    assert config.data.limit == 128
    assert config.evaluation[0].query_limit == 32
    config = run(registry, "model.from_scratch.layers=3", "data.limit=50", "eval_data=[d]", sanity=True)
    assert (config.model.from_scratch.layers, config.model.from_scratch.hidden) == (3, 32)
    assert config.data.limit == 50
    assert (config.evaluation[0].path, config.evaluation[0].corpus_limit) == ("d", 64)


def fails(registry, *pairs: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(registry, *pairs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_errors(registry):
    assert fails(registry, "negatives_cross_device=false").endswith(
        "negatives_cross_device: false is not offered: the loss sees the batch of all ranks, so that it does not "
        "depend on their number; leave the key out"
    )
    assert run(registry, "negatives_cross_device=true")
    assert fails(registry, "fp16=true", "bf16=true").endswith("fp16 and bf16 are both true: choose one of them")
    assert "did you mean 'learning_rate'?" in fails(registry, "learning_rat=1")
    assert "instruction format 'Q: ' must have two places" in fails(registry, "query_instruction_format='Q: '")
    assert "leaves nothing to train" in fails(registry, "fix_encoder=true", "unified_finetuning=false")
    assert "did you mean 'name_or_path'?" in fails(registry, "model.name_or_pat=x")
    assert "do not divide hidden size 128" in fails(registry, "model.from_scratch.heads=5")


def test_the_names_users_know_and_no_torch_before_they_are_used():
    code = (
        "import json, sys, embed_bge, embed_bge.plugin, embed_bge.config, embed_bge.recipe; "
        "from embed_bge import BGETrainerConfig; BGETrainerConfig(learning_rate=1e-5).compile(1); "
        "heavy = [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]; "
        "from embed_bge import BGEM3Model; print(json.dumps([heavy, BGETrainerConfig.__name__, BGEM3Model.__name__]))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert json.loads(out) == [[], "BGERecipe", "BGEM3Model"]
    import embed_bge

    with pytest.raises(AttributeError, match="has no attribute 'BGEM4Model'"):
        embed_bge.BGEM4Model  # noqa: B018
