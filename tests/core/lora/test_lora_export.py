"""A trained model leaves merged or as an adapter: both embed as it does, in the clients that read them."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embed_bge.checkpoint import BGEM3Checkpointer
from embed_core.config.component import ModelConfig
from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError
from embed_core.export.transformers import TransformersCheckpointer
from embed_core.models.lora.structure import state_of
from embed_core.testing.checkpoints import sample_card
from embed_core.testing.models import assert_same_text, encode, text_vectors
from embed_core.types import Embeddings

TEXTS = [
    "Where does the lynx live?",
    "Worms and beetles.",
    "After dusk, and in winter hardly at all: the mole is awake.",
]
KINDS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "alpha": 5},
    {"use_dora": True},
    {"modules_to_save": ("LayerNorm", "word_embeddings"), "target_modules": ("query", "dense")},
]
Adapt = Callable[..., Any]


def assert_alike(one: Any, other: Any) -> None:
    first, second = encode(one, TEXTS), encode(other, TEXTS)
    for index in range(len(TEXTS)):
        assert_same_text(text_vectors(first, index), text_vectors(second, index), 1e-5, f"text {index}")


def export(model: Any, directory: Path) -> Path:
    """As the loop does it: the weights come as a state, and those in the model are gone."""
    state = {name: value.clone() for name, value in state_of(model).items()}
    kept = {name: value.clone() for name, value in state.items()}
    hollow = hollowed(model)
    directory.mkdir()
    card = sample_card()
    card.config["model"].update(kind="lora", inner={"kind": "bge-m3", "name_or_path": "the/base"})  # type: ignore[attr-defined]
    hollow.export_with(BGEM3Checkpointer(), state, directory, card)
    assert all(torch.equal(value, kept[name]) for name, value in state.items()), "the state was changed"
    return directory


def hollowed(model: Any) -> Any:
    """As under ZeRO-3."""
    hollow = copy.deepcopy(model)
    for parameter in hollow.inner.parameters():
        parameter.data = torch.empty(0)
    return hollow


@pytest.mark.parametrize("options", KINDS)
def test_merged_is_the_trained_model_in_the_inner_model_s_layout(
    adapt: Adapt, bge: Callable[..., Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = adapt(**options)
    directory = export(model, tmp_path / "out")
    names = set(load_file(directory / "model.safetensors"))
    assert names == set(load_file(Path(bge().name_or_path) / "model.safetensors"))
    loaded = adapt(inner=bge().model_copy(update={"name_or_path": str(directory)}), fresh=True)
    assert_alike(model, loaded)
    base = encode(adapt(fresh=True), TEXTS).dense_ND
    assert float((encode(model, TEXTS).dense_ND - base).abs().max()) > 1e-3, "nothing was trained"
    assert "Started from `the/base`" in (directory / "README.md").read_text()
    assert "peft_config" not in (directory / "config.json").read_text()


@pytest.mark.parametrize("options", KINDS)
def test_an_adapter_loads_in_peft_and_trains_on(
    adapt: Adapt, bge: Callable[..., Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    model = adapt(export="adapter", **options)
    directory = export(model, tmp_path / "out")
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(bge().name_or_path), directory).eval()
    inputs = model.collate(model.tokenize(TEXTS, "query", [None] * len(TEXTS)))
    with torch.no_grad():
        theirs = loaded(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(
        torch.nn.functional.normalize(theirs, dim=-1), encode(model, TEXTS).dense_ND, atol=1e-5, rtol=0
    )
    assert json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"] == bge().name_or_path
    assert_alike(model, adapt(adapter=directory, fresh=True, **options))


def test_both_load_in_sentence_transformers(adapt: Adapt, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = adapt(export="adapter")
    adapter = export(model, tmp_path / "adapter")
    merged = export(adapt(), tmp_path / "merged")
    wanted = encode(model, TEXTS).dense_ND.numpy()
    for directory in (adapter, merged):
        got = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
        assert got == pytest.approx(wanted, abs=1e-5)


def test_the_adapter_s_card_names_its_base_and_its_parts(adapt: Adapt, tmp_path: Path) -> None:
    with_heads = (export(adapt(export="adapter"), tmp_path / "a") / "README.md").read_text()
    assert "A LoRA adapter: it needs its base model, `the/base`." in with_heads
    assert "`heads.safetensors` holds what was trained outside the encoder" in with_heads
    without = export(adapt(export="adapter", train_heads=False), tmp_path / "b")
    assert "heads.safetensors" not in (without / "README.md").read_text()
    assert not (without / "heads.safetensors").exists()


def test_a_base_that_is_saved_nowhere_can_only_be_merged(adapt: Adapt, bge: Callable[..., Any]) -> None:
    class Drawn(ModelConfig):
        kind: Literal["drawn"] = "drawn"

        def build(self, context: BuildContext) -> Any:
            model = bge().build(context)
            model.encoder.name_or_path = model.encoder.config.name_or_path = ""
            return model

    with pytest.raises(ConfigError) as caught:
        adapt(inner=Drawn(), export="adapter")
    assert str(caught.value) == (
        "model.export: 'adapter' needs a base that others can load, and the XLMRobertaModel of model.inner ('drawn') "
        "was drawn at random: use 'merged'"
    )


def test_weights_that_are_missing_or_not_finite_are_not_exported(adapt: Adapt, tmp_path: Path) -> None:
    model = adapt()
    state = state_of(model)
    name = next(n for n in state if "lora_B" in n)
    with pytest.raises(CheckpointError, match=r"^the adapters cannot be merged: NaNs detected"):
        model.merged({**state, name: torch.full_like(state[name], torch.nan)})
    del state[name]
    with pytest.raises(CheckpointError) as caught:
        model.merged(state)
    assert str(caught.value) == (
        f"the weights to export lack {name.removeprefix('inner.')!r}: the training state is incomplete"
    )


def test_a_layout_that_the_inner_model_does_not_fit_says_so(adapt: Adapt, tmp_path: Path) -> None:
    """The message is of the inner model, whose checkpoint kind it is about."""
    model = adapt()
    merged, state = model.merged(state_of(model))
    del merged.pooling
    with pytest.raises(CheckpointError, match="pooling, which BGEM3Model lacks"):
        TransformersCheckpointer().export(merged, state, tmp_path, sample_card())


@pytest.fixture
def saved(adapt: Adapt, tmp_path: Path) -> Path:
    return export(adapt(export="adapter"), tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"r": 8}, "set model.r to 4"),
        ({"alpha": 8, "use_dora": True}, "set model.alpha to 32, model.use_dora to false"),
        ({"modules_to_save": ["LayerNorm"]}, "set model.modules_to_save to []"),
        ({"target_modules": ["query"]}, "set model.target_modules to [encoder.layer.0.attention.output.dense, "),
    ],
)
def test_an_adapter_of_other_settings_is_refused(
    adapt: Adapt, saved: Path, options: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        adapt(adapter=saved, **options)
    assert str(caught.value).startswith(f"model.adapter: {str(saved)!r} was made with other settings: {wanted}")
    assert "\n" not in str(caught.value)


def test_an_adapter_s_dropout_is_the_config_s(adapt: Adapt, saved: Path) -> None:
    model = adapt(adapter=saved, dropout=0.25)
    assert {m.p for n, m in model.named_modules() if n.endswith("lora_dropout.default")} == {0.25}


def damage(saved: Path, how: str) -> None:
    settings = saved / "adapter_config.json"
    weights = saved / "adapter_model.safetensors"
    if how == "elsewhere":
        shutil.move(saved, saved.with_name("saved-2"))
    elif how == "no json":
        settings.write_text("{")
    elif how == "other type":
        settings.write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": None}))
    elif how == "other base":
        tensors = {name: value[..., :-1].contiguous() for name, value in load_file(weights).items()}
        save_file(tensors, weights)
    elif how == "a weight less":
        tensors = load_file(weights)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, weights)
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif how == "other heads":
        save_file({"colbert_linear.weight": torch.zeros(3, 16)}, saved / "heads.safetensors")
    elif how == "unknown heads":
        save_file({"head.weight": torch.zeros(3)}, saved / "heads.safetensors")
    else:
        (saved / "heads.safetensors").write_text("nothing")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "elsewhere",
            "saved' holds no adapter_config.json: give a directory that `export: adapter` or peft wrote (did",
        ),
        ("no json", "adapter_config.json: cannot be read ("),
        ("other type", "adapter_config.json: an adapter of type IA3, not LORA: give a LoRA adapter"),
        ("other base", "' does not fit model.inner ("),
        ("a weight less", "' does not fit model.inner (1 weights are missing or too many, base_model.model."),
        ("cut weights", "' does not fit model.inner ("),
        (
            "other heads",
            "heads.safetensors: colbert_linear.weight of shape [3, 16] does not fit the inner model, which has one of "
            "shape [16, 16]: use the model.inner that it was trained with",
        ),
        ("unknown heads", "head.weight of shape [3] does not fit the inner model, which has no such weight"),
        ("unreadable heads", "heads.safetensors: cannot be read (SafetensorError"),
    ],
)
def test_a_damaged_adapter_is_one_line(adapt: Adapt, saved: Path, how: str, message: str) -> None:
    damage(saved, how)
    with pytest.raises(CheckpointError) as caught:
        adapt(adapter=saved)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_without_heads_leaves_them_and_says_so(adapt: Adapt, saved: Path) -> None:
    (saved / "heads.safetensors").unlink()
    lines: list[str] = []
    fresh = adapt(fresh=True)
    model = adapt(adapter=saved, fresh=True, lines=lines)
    assert torch.equal(model.colbert_linear.weight, fresh.colbert_linear.weight)
    assert (
        f"adapter {str(saved)!r} has no heads.safetensors: colbert_linear.bias, colbert_linear.weight, "
        "sparse_linear.bias, sparse_linear.weight stay as the inner model has them"
    ) in lines


def test_several_encoders_have_an_adapter_each(adapt: Adapt, bge: Callable[..., Any], tmp_path: Path) -> None:
    """A model of two towers: each adapter in a folder of its tower's name, and back."""

    class Towers(torch.nn.Module):
        def __init__(self, context: BuildContext) -> None:
            super().__init__()
            self.left, self.right = bge().build(context), bge().build(context)
            self.scores = {"dense": {"dense": 1.0}}
            self.tokenize, self.collate = self.left.tokenize, self.left.collate

        def forward(self, **inputs: Tensor) -> Embeddings:
            return Embeddings(self.left(**inputs).dense_ND + self.right(**inputs).dense_ND)

    class TowersConfig(ModelConfig):
        kind: Literal["towers"] = "towers"

        def build(self, context: BuildContext) -> Any:
            return Towers(context)

    model = adapt(inner=TowersConfig(), export="adapter")
    directory = export(model, tmp_path / "out")
    for tower in ("left.encoder", "right.encoder"):
        assert (directory / tower / "adapter_model.safetensors").is_file()
    assert not (directory / "modules.json").exists()
    assert 'from_pretrained(encoder, "path/to/this/directory/left.encoder")' in (directory / "README.md").read_text()
    assert_alike(model, adapt(inner=TowersConfig(), adapter=directory, fresh=True))
    assert_alike(model, model.merged(state_of(model))[0])
