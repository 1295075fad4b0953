"""The recipe `data`: its keys as a run, and whole runs, small."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from embed_core.config import document
from embed_core.config.registry import Registry
from embed_core.config.resolve import Request
from embed_core.config.resolve import plain as plain_run
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate, discover
from embed_core.testing import check_plugin
from embed_data.plugin import EMBED_USES
from embed_data.recipe import DataRecipe
from processes import run

TRAIN_YAML = """\
model_name_or_path: from-scratch
output_dir: out
max_length: 48
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
learning_rate: 1e-3
num_train_epochs: 1
dataset_config: dataset.yaml
"""
DATASET_YAML = """\
use_all: False
num_total_data: 40
allow_duplicate: True
datasets:
  name: [a, b]
  data_path: [./a.json, ./b.json]
  data_ratio: [0.7, 0.3]
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return activate(["data"])[1]


def resolved(registry: Registry, text: str, *overrides: str, world_size: int = 1, sanity: bool = False) -> RunConfig:
    request = Request(
        registry.recipe("data"),
        document.parse(text, "train.yaml"),
        sanity=sanity,
        overrides=document.overrides(overrides),
        world_size=world_size,
    )
    return resolve_run(registry, request)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", 20), ("b", 30)):
        lines = [
            {"query": f"where is {name} {n}?", "pos": [f"{name} {n} is here"], "neg": [f"no {n}"]} for n in range(rows)
        ]
        (tmp_path / f"{name}.json").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "dataset.yaml").write_text(DATASET_YAML)
    (tmp_path / "train.yaml").write_text(TRAIN_YAML)
    return tmp_path


def test_the_training_keys(registry: Registry, folder: Path) -> None:
    run: Any = resolved(registry, TRAIN_YAML, world_size=3)
    assert run.output_dir == Path("out")
    assert (run.model.kind, run.model.passage_max_length, run.model.query_max_length) == (
        "transformers-encoder",
        48,
        48,
    )
    assert (run.sampler.kind, run.sampler.batch_size) == ("by-source", 12)
    assert (run.train.gradient_accumulation_steps, run.train.optimizer.learning_rate, run.train.epochs) == (
        2,
        1e-3,
        1.0,
    )
    assert run.data.num_total_data == 40
    assert [(one.name, one.data_path, one.data_ratio) for one in run.data.datasets] == [
        ("a", "./a.json", 0.7),
        ("b", "./b.json", 0.3),
    ]
    assert (run.data.held_out_rows, run.evaluation[0].kind) == (None, "retrieval")
    assert (run.loss.inner.in_batch, run.loss.own_only.in_batch) == (True, False)
    again = resolved(registry, json.dumps(plain_run(run)), world_size=3)
    assert again == run


def test_every_key_does_something(registry: Registry, folder: Path) -> None:
    """Each, set to another value than its default, changes the compiled run."""
    plain = DataRecipe().compile(2)
    values: dict[str, Any] = {
        "model_name_or_path": "x/y", "dataset_config": "d", "train_data": "t", "eval_data": ("e",), "held_out_rows": 3,
        "output_dir": Path("o"), "seed": 1, "sanity_test": True, "max_length": 9, "query_max_length": 9,
        "query_prompt": "q", "passage_prompt": "p", "pooling": "cls", "normalize_embeddings": False,
        "trust_remote_code": True, "negatives": 2, "batching": "homogeneous", "temperature": 0.5,
        "learning_rate": 0.1, "num_train_epochs": 9, "max_steps": 9, "per_device_train_batch_size": 9,
        "gradient_accumulation_steps": 9, "gradient_checkpointing": True, "warmup_ratio": 0.5, "warmup_steps": 9,
        "lr_scheduler_type": "cosine", "weight_decay": 0.5, "max_grad_norm": 0.5, "fp16": True, "bf16": True,
        "save_steps": 9, "save_total_limit": 9, "eval_steps": 9, "logging_steps": 9, "model": {"pooling": "cls"},
        "data": {"limit": 9},
    }  # fmt: skip
    assert set(values) == set(DataRecipe.model_fields)
    for key, value in values.items():
        assert DataRecipe(**{key: value}).compile(2) != plain, key


@pytest.mark.parametrize(("text", "sampler"), [("", "no-duplicates"), ("batching: homogeneous", "by-source")])
def test_one_file_or_the_embedded_corpus(text: str, sampler: str, registry: Registry) -> None:
    run: Any = resolved(registry, f"train_data: rows.parquet\n{text}")
    assert (run.data.kind, run.data.path, run.sampler.kind, run.loss.kind) == (
        "file",
        "rows.parquet",
        sampler,
        "infonce",
    )
    run = resolved(registry, text or "{}")
    assert (run.data.kind, run.data.path) == ("auto", "pydocs")


def test_a_mix_may_be_written_into_the_training_config(registry: Registry) -> None:
    text = "data: {kind: mix, use_all: true, datasets: [{data_path: a.jsonl}]}"
    run: Any = resolved(registry, text)
    assert (run.data.use_all, run.sampler.kind, run.loss.kind) == (True, "by-source", "by-source")
    assert resolved(registry, f"batching: mixed\n{text}").sampler.kind == "no-duplicates"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("weight: 0.5", "weight 0.5"),
        ("negative_strategy: own-only", "negative_strategy own-only"),
        ("weight: 2, negative_strategy: own-only", "weight 2.0 and negative_strategy own-only"),
    ],
)
def test_what_only_by_source_sees_needs_it(keys: str, said: str, registry: Registry) -> None:
    text = f"data: {{kind: mix, use_all: true, datasets: [{{data_path: a.jsonl}}, {{data_path: b.jsonl, {keys}}}]}}\n"
    run: Any = resolved(registry, text)
    assert run.loss.kind == "by-source"
    matryoshka = {"kind": "matryoshka", "dims": [8], "inner": plain_run(run)["loss"]}
    assert resolved(registry, f"{text}loss: {json.dumps(matryoshka)}").loss.kind == "matryoshka"
    with pytest.raises(ConfigError) as caught:
        resolved(registry, f"{text}loss: {{kind: infonce}}")
    assert str(caught.value).endswith(
        f"data: source 'b' has {said}, which the loss `infonce` does not see: put the loss kind `by-source` around it, "
        "`loss: {kind: by-source, inner: …, own_only: …}`"
    )
    assert "\n" not in str(caught.value)
    # A phase with a loss of its own is looked at for itself.
    phases = "phases: [{name: first}, {name: last, loss: {kind: infonce}}]\n"
    with pytest.raises(ConfigError, match=r"source 'b' has .* which the loss `infonce` does not see"):
        resolved(registry, text + phases)
    plain = text.replace(f", {keys}", "")
    assert resolved(registry, f"{plain}loss: {{kind: infonce}}").loss.kind == "infonce"


def test_a_loaded_model_has_other_defaults_and_counts_tokens(registry: Registry, folder: Path) -> None:
    run: Any = resolved(registry, "model_name_or_path: BAAI/x\ndataset_config: dataset.yaml\neval_data: [beir]")
    assert (run.train.optimizer.learning_rate, run.sampler.batch_size, run.model.passage_max_length) == (2e-5, 32, 256)
    assert (run.data.tokenizer, run.data.max_length, run.data.held_out_rows) == ("BAAI/x", 256, 0)
    assert run.evaluation[0].path == "beir"


def test_sanity_test_is_the_run_that_the_option_gives(registry: Registry, folder: Path) -> None:
    by_key: Any = resolved(registry, TRAIN_YAML + "sanity_test: true\n")
    by_option: Any = resolved(registry, TRAIN_YAML, sanity=True)
    assert by_key == by_option
    assert (by_key.train.max_steps, by_key.train.gradient_accumulation_steps, by_key.sampler.batch_size) == (4, 1, 8)
    assert (by_key.checkpoint.every_steps, by_key.data.limit, by_key.model.from_scratch.hidden) == (2, 128, 32)
    assert resolved(registry, TRAIN_YAML + "sanity_test: true\ndata: {limit: 16}\n").data.limit == 16


def test_mrl_dims_without_embed_mrl_says_so() -> None:
    from embed_core.plugin import builtins
    from embed_data.config import AutoConfig

    bare = Registry()
    for config in (*builtins.embed_register_models(), *builtins.embed_register_losses()):
        bare.add(config.slot, config, "core")
    bare.add("dataset", AutoConfig, "data")
    bare.add_recipe(DataRecipe, "data")
    with pytest.raises(ConfigError) as caught:
        resolved(bare, "mrl_dims: [64, 32]")
    assert str(caught.value) == (
        "train.yaml:1: 'mrl_dims' is a key of plugin 'mrl', which is installed and not active: add --plugin mrl, or "
        "leave the key out"
    )


def test_mrl_dims_wrap_the_loss(registry: Registry) -> None:
    run: Any = resolved(registry, "mrl_dims: [64, 32]")
    assert (run.loss.kind, run.loss.dims, run.loss.inner.kind) == ("matryoshka", (64, 32), "infonce")
    assert (run.checkpoint.kind, run.checkpoint.dims, run.checkpoint.inner.kind) == (
        "matryoshka",
        (64, 32),
        "transformers",
    )
    assert run.model.from_scratch.hidden == 64
    mix: Any = resolved(
        registry, "mrl_dims: [64, 32]\ndata: {kind: mix, use_all: true, datasets: [{data_path: a.jsonl}]}"
    )
    assert (mix.loss.kind, mix.loss.inner.kind, mix.loss.own_only.inner.in_batch) == ("by-source", "matryoshka", False)
    assert resolved(registry, "mrl_dims: [64, 32]\nsanity_test: true").model.from_scratch.hidden == 64
    assert resolved(registry, "mrl_dims: []").loss.kind == "infonce"


def test_precision_means_what_it_means_everywhere(registry: Registry) -> None:
    for text, precision in (("{}", "auto"), ("bf16: true", "bf16"), ("bf16: false", "fp32")):
        assert resolved(registry, text).engine.precision == precision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp16: true\nbf16: true", "fp16 and bf16 are both true"),
        ("train_data: x\ndataset_config: y", "dataset_config and train_data both say what to train on"),
        ("mrl_dims: [8, 8]", "mrl_dims [8, 8]: different positive dimensions are needed"),
        ("mrl_dims: [8, 0]", "mrl_dims [8, 0]: different positive dimensions are needed"),
        ("dataset_config: none.yaml", "config file 'none.yaml' does not exist"),
        (
            "max_lenght: 8",
            "train.yaml:1: 'max_lenght' is no key of recipe 'data' or of a run: did you mean 'max_length'?",
        ),
    ],
)
def test_faults(text: str, message: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        resolved(registry, text)
    assert message in str(caught.value)


def test_the_plugin_is_light_documented_and_compiles() -> None:
    check_plugin("data")


def test_it_activates_embed_mrl_where_that_is_installed() -> None:
    assert EMBED_USES == ("mrl", "distill")
    assert ("mrl" in discover()) == ("matryoshka" in activate(["data"])[1].kinds("loss"))


def embed(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "EMBED_CACHE": "cache"}
    command = [sys.executable, "-m", "embed_cli", *arguments]
    answer = run(command, capture_output=True, timeout=200, env=environment)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    return answer.stdout


def test_a_sanity_run_goes_through_everything(folder: Path) -> None:
    """As the training module documents it: keys in a file, sanity_test, an export that AutoModel loads."""
    text = DATASET_YAML + "  negative_strategy: [own-only, in-batch]\n  weight: [1, 0.5]\n  prompt: ['A: ', null]\n"
    (folder / "dataset.yaml").write_text(text)
    (folder / "train.yaml").write_text(TRAIN_YAML + "sanity_test: true\n")
    said = embed("run", "--plugin", "data", "--config", "train.yaml", "--set", "tracking.report_to=[]")
    assert "mix: 40 rows from 2 sources" in said
    assert "finished 4 steps" in said
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    vectors = SentenceTransformer("out/model", device="cpu").encode(["where is a 1?", "b"])
    assert vectors.shape == (2, 32)
    assert AutoModel.from_pretrained("out/model").config.hidden_size == 32
    assert json.loads((folder / "out" / "run.json").read_text())["status"] == "finished"
