"""The flat keys, and the run they compile to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embed_core.config import document
from embed_core.config.resolve import Request
from embed_core.config.resolve import resolve as resolve_run
from embed_core.config.run import RunConfig
from embed_core.errors import ConfigError
from embed_core.plugin.manager import activate
from embed_core.testing.components import check_plugin
from embed_vision.recipe.defaults import tokens_per_picture

SEED = """\
model_name: openai/clip-vit-base-patch32
encoder_mode: auto
epochs: 3
batch_size: 256
lr: 5e-5
weight_decay: 0.01
scheduler_type: cosine
warmup_ratio: 0.1
max_grad_norm: 1.0
save_steps: 500
logging_steps: 10
gradient_checkpointing: false
use_gradient_cache: false
use_lora: false
lora_r: 16
data_path: data/train.jsonl
val_data_path: data/val.jsonl
image_root: data/images
retrieval_mode: t2i
output_dir: ./checkpoints
report_to: none
"""
"""The keys of the training module's own documentation, with its values."""


@pytest.fixture(scope="module")
def registry() -> Any:
    return activate(["vision"])[1]


def compiled(registry: Any, *settings: str, text: str = "", world_size: int = 1, sanity: bool = False) -> RunConfig:
    file = document.parse(text, "train.yaml") if text else document.Document()
    request = Request(
        registry.recipe("vision"),
        file,
        overrides=document.overrides(list(settings)),
        world_size=world_size,
        sanity=sanity,
    )
    return resolve_run(registry, request)


def plain(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = config.model_dump(mode="json", serialize_as_any=True)
    return found


def test_the_plugin() -> None:
    check_plugin("vision")


def test_the_documented_keys(registry: Any) -> None:
    config = compiled(registry, text=SEED, world_size=2)
    model = plain(config.model)
    assert (model["kind"], model["name_or_path"]) == ("vision", "openai/clip-vit-base-patch32")
    assert (config.train.epochs, config.sampler.batch_size) == (3, 512)
    assert (config.train.optimizer.learning_rate, config.train.optimizer.weight_decay) == (5e-5, 0.01)
    assert (config.train.schedule.kind, config.train.schedule.warmup_ratio) == ("cosine", 0.1)
    assert config.train.gradient_clipping == 1.0
    assert (config.checkpoint.every_steps, config.checkpoint.every_minutes) == (500, 0)
    assert (config.tracking.log_every_steps, config.tracking.report_to) == (10, ())
    assert (config.engine.strategy, config.engine.gradient_checkpointing) == ("direct", False)
    assert plain(config.loss)["kind"] == "clip"
    data = plain(config.data)
    assert (data["kind"], data["path"], data["image_root"]) == ("image-text", "data/train.jsonl", "data/images")
    assert (data["retrieval_mode"], data["held_out_rows"]) == ("t2i", 0)
    evaluations = [plain(one) for one in config.evaluation]
    assert [(one["kind"], one["name"]) for one in evaluations] == [
        ("image-text-retrieval", "t2i"), ("image-text-retrieval", "i2t"), ("validation-loss", "validation"),
    ]  # fmt: skip
    assert {one["data"]["path"] for one in evaluations} == {"data/val.jsonl"}
    assert [one.get("direction") for one in evaluations] == ["forward", "reverse", None]
    assert str(config.output_dir) == "checkpoints"


def test_set_in_place_of_config_override(registry: Any) -> None:
    config = compiled(registry, "epochs=5", "batch_size=8", "lr=1e-4", text=SEED)
    assert (config.train.epochs, config.sampler.batch_size, config.train.optimizer.learning_rate) == (5, 8, 1e-4)


def test_without_any_key(registry: Any) -> None:
    config = compiled(registry)
    assert plain(config.data)["kind"] == "pictures"
    model = plain(config.model)
    assert (model["kind"], model["name_or_path"]) == ("clip", "from-scratch")
    assert (config.sampler.batch_size, config.train.epochs, config.train.optimizer.learning_rate) == (64, 10, 1e-3)
    assert [plain(one)["name"] for one in config.evaluation] == ["t2i", "i2t", "validation"]


def at(config: RunConfig, path: str) -> Any:
    value: Any = plain(config)
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


OWN = ("data_path=rows.jsonl",)
CASES: tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...] = (
    (("model_name_or_path=a/b", "learning_rate=0.1"), {"model.name_or_path": "a/b",
     "train.optimizer.learning_rate": 0.1}),
    (("model_name=a/b",), {"sampler.batch_size": 32, "train.epochs": 3, "train.optimizer.learning_rate": 2e-5}),
    (("encoder_mode=clip_like", "model_name=a/b"), {"model.kind": "clip"}),
    (("encoder_mode=vlm_generic", "model_name=a/b"), {"model.kind": "vlm"}),
    (
        ("encoder_mode=composed", "text_model_name=t", "image_model_name=i", "projection_dim=96",
         "pooling_method=mean"),
        {
            "model.kind": "composed", "model.text_name_or_path": "t", "model.image_name_or_path": "i",
             "model.width": 96,
            "model.text_pooling": "mean", "model.image_pooling": "mean",
        },
    ),
    (("encoder_mode=composed", "model_name=saved"), {"model.kind": "composed", "model.name_or_path": "saved"}),
    (("max_seq_length=20", "num_workers=3"), {"model.max_length": 20, "model.image_workers": 3}),
    (("trust_remote_code=true", "model_name=a/b"), {"model.trust_remote_code": True}),
    (
        ("use_lora=true", "lora_r=4", "lora_alpha=8", "lora_dropout=0.1", "lora_target_modules=[q_proj]",
         "model_name=a/b"),
        {
            "model.kind": "lora", "model.r": 4, "model.alpha": 8, "model.dropout": 0.1,
            "model.target_modules": ["q_proj"], "model.inner.name_or_path": "a/b",
        },
    ),
    (("use_lora=true", "model.max_length=9"), {"model.inner.max_length": 9, "model.target_modules": "all-linear"}),
    (("projection_dim=32",), {"model.from_scratch.width": 32}),
    (("mrl_dims=[48,24]",), {"model.from_scratch.width": 48, "loss.kind": "matryoshka", "loss.dims": [48, 24],
                             "loss.inner.kind": "clip", "checkpoint.kind": "matryoshka",
                              "checkpoint.inner.kind": "vision"}),
    (("use_mrl=true",), {"loss.kind": "matryoshka", "loss.dims": None}),
    (("mrl_dims=[48,24]", "mrl_weights=[1,0.5]"), {"loss.weights": [1.0, 0.5]}),
    (("loss_type=infonce",), {"loss.kind": "infonce", "loss.temperature": 0.05, "loss.symmetric": True}),
    (("loss_type=infonce", "temperature=0.1"), {"loss.temperature": 0.1}),
    (("loss_type=sigmoid",), {"loss.kind": "siglip", "loss.scale": None}),
    (("loss_type=siglip", "temperature=0.1"), {"loss.scale": 10.0}),
    (("loss_type=triplet", "triplet_margin=0.2"), {"loss.kind": "triplet", "loss.margin": 0.2}),
    (("loss_type=cosent", "temperature=0.1"), {"loss.kind": "cosent", "loss.scale": 10.0}),
    (("loss_type=cosent",), {"loss.scale": 20.0}),
    (("temperature=0.1",), {"loss.kind": "clip", "loss.temperature": 0.1, "evaluation.2.loss.temperature": 0.1}),
    (("retrieval_mode=i2t",), {"data.retrieval_mode": "i2t", "evaluation.0.name": "i2t", "evaluation.1.name": "t2i"}),
    (("retrieval_mode=m2i",), {"data.retrieval_mode": "m2i", "evaluation.0.name": "m2i",
     "evaluation.1.name": "validation"}),
    ((*OWN, "column_mapping={query: q}", "on_bad_row=skip", "check_images=open", "negatives=3", "split=train"),
     {"data.columns.query": "q", "data.on_bad_row": "skip", "data.check_images": "open", "data.negatives": 3,
      "data.split": "train", "data.held_out_rows": None}),
    ((*OWN, "held_out_rows=0"), {"evaluation": [], "data.held_out_rows": 0}),
    ((*OWN, "val_data_path=v.jsonl", "split=train"), {"evaluation.0.data.split": None,
     "evaluation.0.data.path": "v.jsonl"}),
    (("data_path=a/b", "val_data_path=a/b", "val_split=test"), {"data.split": None, "evaluation.0.data.split": "test",
     "evaluation.2.data.split": "test"}),
    ((*OWN, "val_data_path=pictures"), {"evaluation.0.data.kind": "pictures"}),
    (("held_out_rows=20",), {"data.held_out_rows": 20}),
    (("data.symbols=9", "data.held_out_rows=0"), {"data.symbols": 9, "evaluation": []}),
    (("scheduler_type=constant",), {"train.schedule.kind": "constant", "train.schedule.warmup_steps": 0}),
    (("scheduler_type=constant_with_warmup",), {"train.schedule.kind": "constant", "train.schedule.warmup_ratio": 0.1}),
    (("scheduler_type=linear", "warmup_steps=7"), {"train.schedule.kind": "linear", "train.schedule.warmup_steps": 7}),
    (("max_steps=9", "gradient_accumulation_steps=2", "max_grad_norm=0"),
     {"train.max_steps": 9, "train.gradient_accumulation_steps": 2, "train.gradient_clipping": 0}),
    (("eval_steps=4", "save_total_limit=3", "save_steps=0"),
     {"train.evaluate_every_steps": 4, "checkpoint.keep_last": 3, "checkpoint.every_steps": 0}),
    (("use_gradient_cache=true", "gradient_cache_chunk_size=8"), {"engine.strategy": "cached",
     "engine.token_budget": 8 * 37}),
    (("gradient_cache_chunk_size=8", "use_lora=true", "model.from_scratch.image_size=96"),
     {"engine.token_budget": 8 * 145}),
    (("use_gradient_cache=true", "gradient_cache_chunk_size=8", "model_name=a/b"), {"engine.token_budget": 8 * 257}),
    (("gradient_cache_chunk_size=8", "model_name=openai/clip-vit-base-patch32"), {"engine.token_budget": 8 * 50}),
    (("gradient_cache_chunk_size=2", "encoder_mode=composed", "text_model_name=t", "image_model_name=vit-patch16-384"),
     {"engine.token_budget": 2 * 577}),
    (("gradient_checkpointing=true", "bf16=true"), {"engine.gradient_checkpointing": True, "engine.precision": "bf16"}),
    (("fp16=true",), {"engine.precision": "fp16"}),
    (("bf16=false",), {"engine.precision": "fp32", "engine.strategy": "auto"}),
    (("report_to=all",), {"tracking.report_to": ["tensorboard", "wandb", "swanlab", "mlflow"]}),
    (("report_to=[wandb]",), {"tracking.report_to": ["wandb"]}),
    (("report_to=swanlab", "run_name=mine", "logging_steps=5"),
     {"tracking.report_to": ["swanlab"], "name": "mine", "tracking.log_every_steps": 5}),
    (("gallery=0", "seed=7"), {"evaluation.0.gallery": 0, "seed": 7}),
    (("ddp_find_unused_parameters=false",), {"seed": 42}),
    (("engine.zero_stage=2",), {"engine.zero_stage": 2}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"), CASES, ids=lambda value: value[0] if isinstance(value, tuple) else ""
)
def test_every_key_arrives(registry: Any, settings: tuple[str, ...], expected: Mapping[str, Any]) -> None:
    config = compiled(registry, *settings)
    assert {path: at(config, path) for path in expected} == expected


def test_every_key_is_tried_above(registry: Any) -> None:
    """A key that the recipe takes and no test looks at may be one that it ignores."""
    tried = {setting.split("=")[0].split(".")[0] for settings, _ in CASES for setting in settings}
    tried |= set(document.parse(SEED, "seed").data)
    assert set(registry.recipe("vision").model_fields) - tried == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model_name=a", "model_name_or_path=b"),
         "model_name is 'a' and model_name_or_path is 'b': they mean the same"),
        (("lr=1", "learning_rate=2"), "lr is 1.0 and learning_rate is 2.0: they mean the same; set one"),
        (("fp16=true", "bf16=true"), "fp16 and bf16 are both true: choose one of them"),
        (("ddp_find_unused_parameters=true",),
         "ddp_find_unused_parameters: true is not needed: every gradient is reduced"),
        (("mrl_dims=[8,8]",), r"mrl_dims \[8, 8\]: different positive dimensions are needed"),
        (("mrl_dims=[8]", "mrl_weights=[1,2]"), "mrl_weights: 2 of them for 1 mrl_dims: give one for each"),
        (("text_model_name=a",), "text_model_name is about composed models: set encoder_mode: composed"),
        (("pooling_method=cls",), "pooling_method is about composed models"),
        (("projection_dim=8", "model_name=a"), "projection_dim: 'a' has its own width"),
        (("encoder_mode=composed", "text_model_name=a"),
         "encoder_mode: composed needs text_model_name and image_model_name"),
        (("image_root=x",), "image_root is about data of your own, and data_path is 'pictures': set data_path"),
        (("column_mapping={query: a}",), "column_mapping is about data of your own"),
        ((*OWN, "val_split=test"), "val_split is about val_data_path, which is not set"),
        ((*OWN, "val_data_path=rows.jsonl"), "val_data_path is data_path, 'rows.jsonl': the model would be"),
        (("val_data_path=pictures",), "val_data_path is data_path, 'pictures'"),
        (("report_to=[none,wandb]",), "report_to: 'none' stands alone: a list names one of tensorboard"),
        (("report_to=wandbb",), "report_to"),
        (("batchsize=3",), "'batchsize' is no key of recipe 'vision' or of a run: did you mean 'batch_size'"),
        (("retrieval_mode=i2v",), "retrieval_mode"),
    ],
)  # fmt: skip
def test_what_is_refused(registry: Any, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compiled(registry, *settings)


def test_a_teacher_sees_pictures(registry: Any) -> None:
    taught: Any = compiled(registry, "teacher_model_name=big").data
    assert [(one.model.kind, one.model.name_or_path) for one in taught.teachers] == [("vision", "big")]
    assert compiled(registry).data.kind == "pictures"


def test_adapters_and_dimensions_and_a_teacher_in_one_run(registry: Any) -> None:
    run: Any = compiled(registry, "use_lora=true", "mrl_dims=[8]", "teacher_model_name=big")
    assert (run.model.kind, run.model.inner.kind) == ("lora", "clip")
    assert (run.loss.kind, run.loss.inner.kind, run.loss.inner.inner.kind) == ("distilled", "matryoshka", "clip")
    assert (run.checkpoint.kind, run.checkpoint.inner.kind, run.data.inner.kind) == ("matryoshka", "vision", "pictures")


def test_in_miniature(registry: Any) -> None:
    config = compiled(registry, sanity=True)
    assert (at(config, "model.from_scratch.hidden"), at(config, "data.symbols"), at(config, "data.limit")) == (
        16,
        16,
        64,
    )
    assert at(compiled(registry, "data.symbols=5", sanity=True), "data.symbols") == 5
    assert at(compiled(registry, "use_lora=true", sanity=True), "model.inner.from_scratch.hidden") == 16
    assert at(compiled(registry, "mrl_dims=[32]", sanity=True), "model.from_scratch.width") == 32
    own = compiled(registry, *OWN, sanity=True)
    assert (at(own, "data.limit"), at(own, "evaluation.0.query_limit"), at(own, "evaluation.2.limit")) == (64, 16, 16)


def test_tokens_of_a_picture_are_read_from_the_model(tmp_path: Path) -> None:
    config = {"vision_config": {"image_size": 224, "patch_size": 32}, "text_config": {"max_position_embeddings": 77}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert tokens_per_picture(str(tmp_path), {}) == 50
    (tmp_path / "config.json").write_text("{}")
    assert tokens_per_picture(str(tmp_path), {}) == 257
    assert tokens_per_picture("from-scratch", {"image_size": 96, "patch_size": 8}) == 145


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("openai/clip-vit-large-patch14-336", 577), ("google/siglip-base-patch16-224", 197), ("laion/CLIP-ViT-L", 257)],
)
def test_tokens_of_a_picture_are_read_from_a_name(name: str, tokens: int) -> None:
    assert tokens_per_picture(name, {}) == tokens
