"""The recipe's keys, the configs' errors, and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from embed_core.config import document
from embed_core.config.resolve import Request, plain
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.testing import check_plugin

ROOT = Path(__file__).resolve().parents[2]


def resolve(*settings: str, text: str = "", tmp_path: Path | None = None, **options: Any) -> RunConfig:
    _, registry = activate(["mrl"])
    given = document.Document()
    if text:
        assert tmp_path is not None
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        given = document.read(path)
    request = Request(
        registry.recipe("mrl"),
        given,
        overrides=document.overrides(list(settings)),
        flags={"plugins": ["mrl"]},
        **options,
    )
    return resolve_run(registry, request)


def dump(config: RunConfig) -> dict[str, Any]:
    return plain(config)


def test_the_plugin_keeps_its_promises() -> None:
    check_plugin("mrl")


def test_the_keys_of_other_training_code(tmp_path: Path) -> None:
    """A config of the keys that Matryoshka training code has, as it is written there."""
    text = """
model_name_or_path: models/base
output_dir: out
max_length: 128
per_device_train_batch_size: 16
gradient_accumulation_steps: 2
learning_rate: 2.0e-05
num_train_epochs: 3
mrl_dims: [768, 512, 256]
"""
    run = dump(resolve(text=text, tmp_path=tmp_path, world_size=2))
    assert run["model"]["name_or_path"] == "models/base"
    assert run["model"]["query_max_length"] == run["model"]["passage_max_length"] == 128
    assert run["output_dir"] == "out"
    assert run["sampler"]["batch_size"] == 32
    assert run["train"]["gradient_accumulation_steps"] == 2
    assert (run["train"]["epochs"], run["train"]["optimizer"]["learning_rate"]) == (3, 2e-5)
    assert run["loss"]["dims"] == run["evaluation"][0]["dims"] == run["checkpoint"]["dims"] == [768, 512, 256]


def test_every_key_arrives() -> None:
    run = dump(
        resolve(
            "mrl_dims=[64,16]", "mrl_weights=[1,0.5]", "n_dims_per_step=2", "truncate_dim=16", "temperature=0.1",
            "train_data=rows.jsonl", "held_out_rows=7", "seed=3", "query_max_length=20", "query_prompt='q: '",
            "passage_prompt='p: '", "pooling=cls", "trust_remote_code=true", "negatives=2", "max_steps=5",
            "gradient_checkpointing=true", "warmup_ratio=0.2", "warmup_steps=3", "lr_scheduler_type=cosine",
            "weight_decay=0.5", "max_grad_norm=0", "bf16=true", "save_steps=9", "save_total_limit=4", "eval_steps=6",
            "logging_steps=8",
        )
    )  # fmt: skip
    assert run["loss"] | {"inner": None} == {
        "kind": "matryoshka", "inner": None, "dims": [64, 16], "weights": [1, 0.5], "n_dims_per_step": 2,
    }  # fmt: skip
    assert run["loss"]["inner"]["temperature"] == 0.1
    assert (run["checkpoint"]["truncate_dim"], run["checkpoint"]["every_steps"], run["checkpoint"]["keep_last"]) == (
        16,
        9,
        4,
    )
    assert run["checkpoint"]["every_minutes"] == 0
    data = run["data"]
    assert (data["path"], data["held_out_rows"], data["negatives"], run["seed"]) == ("rows.jsonl", 7, 2, 3)
    model = run["model"]
    assert (model["query_max_length"], model["query_prompt"], model["passage_prompt"]) == (20, "q: ", "p: ")
    assert (model["pooling"], model["trust_remote_code"], model["from_scratch"]["hidden"]) == ("cls", True, 64)
    train = run["train"]
    assert (train["max_steps"], train["gradient_clipping"], train["evaluate_every_steps"]) == (5, 0, 6)
    assert train["schedule"] == {"kind": "cosine", "warmup_ratio": 0.2, "warmup_steps": 3}
    assert train["optimizer"]["weight_decay"] == 0.5
    assert (run["engine"]["precision"], run["engine"]["gradient_checkpointing"]) == ("bf16", True)
    assert run["tracking"]["log_every_steps"] == 8
    assert dump(resolve("fp16=true"))["engine"]["precision"] == "fp16"
    assert dump(resolve("bf16=false"))["engine"]["precision"] == "fp32"


def test_what_a_run_writes_down_is_the_same_run() -> None:
    """``config.yaml`` has every default written out, those of the inner parts too."""
    _, registry = activate(["mrl"])
    config = resolve("mrl_dims=[64,16]", "truncate_dim=16", "save_steps=3")
    again = resolve_run(registry, Request(None, document.Document(data=dump(config))))
    assert dump(again) == dump(config)


def test_what_is_evaluated() -> None:
    assert [one["path"] for one in dump(resolve("eval_data=[a,b]"))["evaluation"]] == ["a", "b"]
    assert dump(resolve("eval_data=[a]", "train_data=x.jsonl"))["data"]["held_out_rows"] == 0
    assert dump(resolve("held_out_rows=0"))["evaluation"] == []
    assert dump(resolve("data.held_out_rows=0"))["evaluation"] == []
    assert [one["kind"] for one in dump(resolve())["evaluation"]] == ["dimensions"]


def test_defaults_suit_the_model() -> None:
    scratch, loaded = dump(resolve()), dump(resolve("model.name_or_path=models/base"))
    assert (scratch["sampler"]["batch_size"], loaded["sampler"]["batch_size"]) == (64, 32)
    assert (scratch["train"]["optimizer"]["learning_rate"], loaded["train"]["optimizer"]["learning_rate"]) == (
        1e-3,
        2e-5,
    )
    assert (scratch["model"]["passage_max_length"], loaded["model"]["passage_max_length"]) == (192, 256)
    assert scratch["loss"]["dims"] is None


def test_sanity_keeps_what_the_user_set() -> None:
    small = dump(resolve("data.limit=50", sanity=True))
    assert (small["data"]["limit"], small["model"]["from_scratch"]["hidden"], small["sampler"]["batch_size"]) == (
        50,
        32,
        8,
    )
    assert (small["evaluation"][0]["query_limit"], small["train"]["max_steps"]) == (32, 4)
    assert dump(resolve("mrl_dims=[64,8]", sanity=True))["model"]["from_scratch"]["hidden"] == 64


ERRORS = {
    "mrl_dims=[64,64]": "mrl_dims [64, 64]: different positive dimensions are needed, for instance [128, 64, 32]; "
    "without the key they are made by halving",
    "mrl_dims=[]": "mrl_dims []: different positive",
    "mrl_dims=[64,0]": "mrl_dims [64, 0]: different positive",
    "loss.dims=[-8]": "dims [-8]: different positive",
    "evaluation=[{kind: dimensions, dims: [4, 4]}]": "dims [4, 4]: different positive",
    "checkpoint.dims=[0]": "dims [0]: different positive",
    "mrl_weights=[1,1]": "mrl_weights: 2 of them for 0 mrl_dims: give one for each of `mrl_dims`",
    "loss.weights=[1]": "weights: 1 of them for 0 dims: give one for each of `dims`",
    "loss={dims: [8, 4], weights: [1, 0]}": "weights [1.0, 0.0]: all must be above 0; leave a dimension out of `dims`",
    "n_dims_per_step=0": "n_dims_per_step 0 trains nothing: use -1 for all dimensions, or 1 and more",
    "loss.n_dims_per_step=0": "n_dims_per_step 0 trains nothing: use -1 for all dimensions, or 1 and more",
    "n_dims_per_step=-2": "n_dims_per_step: input should be greater than or equal to -1, got -2",
    "loss.inner={kind: matryoshka, inner: {kind: infonce}}": "kind 'matryoshka' inside kind 'matryoshka': give all",
    "checkpoint.inner={kind: matryoshka}": "kind 'matryoshka' inside kind 'matryoshka': one of them is enough",
    "checkpoint.inner={kind: transformers, every_steps: 3}": "every_steps has no effect here: say when to save beside",
    "checkpoint={dims: [8, 4], truncate_dim: 6}": "truncate_dim 6 is none of dims [8, 4]: choose one of them",
    "evaluation=[{kind: dimensions, ways: [dense]}]": "ways: kind 'dimensions' ranks by dense vectors alone",
    "evaluation=[{kind: dimensions, precisions: [fp8]}]": "input should be 'fp32', 'int8' or 'binary', got 'fp8'",
    "evaluation=[{kind: dimensions, precisions: []}]": "precisions []: name at least one of fp32, int8, binary",
}


@pytest.mark.parametrize("setting", ERRORS)
def test_errors_are_one_line_with_the_way_out(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(setting)
    assert ERRORS[setting] in str(error.value)
    assert str(error.value).count("\n") == 0
    assert "--set" in str(error.value), "says where it was written"


def test_keys_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"truncate_dim 6 is none of mrl_dims \[8, 4\]: choose one of them"):
        resolve("mrl_dims=[8,4]", "truncate_dim=6")
    with pytest.raises(ConfigError, match="fp16 and bf16 are both true: choose one of them"):
        resolve("fp16=true", "bf16=true")


def test_the_page_s_configs_load(tmp_path: Path) -> None:
    """The blocks of YAML, each laid over the recipe; the commands' overrides."""
    page = (ROOT / "docs/recipes/mrl.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    _, registry = activate(["mrl", "bge"])
    for block in blocks:
        path = tmp_path / "block.yaml"
        path.write_text(block, encoding="utf-8")
        recipe = registry.recipe("bge" if "bge" in block else "mrl")
        config = resolve_run(registry, Request(recipe, document.read(path)))
        assert "matryoshka" in yaml.safe_dump(dump(config))
    commands = re.findall(r"^ *embed run --plugin mrl (--set .*)$", page, flags=re.MULTILINE)
    for command in commands:
        resolve(*[quoted or bare for quoted, bare in re.findall(r"--set (?:'([^']*)'|(\S+))", command)])
    assert commands
