"""The model with adapters computes what LoRA says, trains what it should, and otherwise is the inner model."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.config.component import ModelConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError
from embed_core.models.lora.targets import roots_of
from embed_core.protocols import ExportsOtherwise, Model, provides
from embed_core.testing.models import check_model, encode
from embed_core.testing.tiny import TinyModel

TEXTS = [
    "Where does the lynx live?",
    "Worms and beetles.",
    "After dusk, and in winter hardly at all: the mole is awake.",
]
Adapt = Callable[..., Any]


def total(model: Any, texts: Sequence[str] = TEXTS) -> Tensor:
    """A scalar of all three kinds of embeddings, in evaluation mode, with gradient."""
    model.eval()
    found = model(**model.collate(model.tokenize(texts, "query", [None] * len(texts))))
    values = (found.dense_ND, found.sparse.weights_K, found.multi.vectors_TC)
    return torch.stack([(v * torch.linspace(-1, 1, v.numel()).view_as(v)).sum() for v in values]).sum()


def by_hand(model: Any, scale: float) -> tuple[Any, list[str]]:
    """The inner model without peft, in double precision, W + scale · B A written into it, and the layers' names."""
    plain = model.config.build(BuildContext(registry=Registry(), announce=lambda line: None)).double()
    state = dict(model.inner.named_parameters())
    layers = [name.removesuffix(".lora_A.default.weight") for name in state if ".lora_A." in name]
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            layer, _, kind = name.rpartition(".")
            parameter.copy_(state[f"{layer}.base_layer.{kind}" if layer in layers else name])
            if layer in layers and kind == "weight":
                parameter += scale * state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
    return plain, layers


@pytest.mark.parametrize(("options", "scale"), [({}, 32 / 4), ({"alpha": 6, "use_rslora": True}, 6 / math.sqrt(4))])
def test_value_and_gradient_are_those_of_the_sum(adapt: Adapt, options: dict[str, Any], scale: float) -> None:
    """Against the inner model with W + s·B·A as its weight: dA = s·Bᵀ dW and dB = s·dW Aᵀ."""
    model = adapt(**options).double()
    plain, layers = by_hand(model, scale)
    value, wanted = total(model), total(plain)
    assert value.item() == pytest.approx(wanted.item(), abs=1e-10)
    value.backward()
    wanted.backward()
    own, theirs = dict(model.inner.named_parameters()), dict(plain.named_parameters())
    assert len(layers) == 12
    for layer in layers:
        a, b, dw = (
            own[f"{layer}.lora_A.default.weight"],
            own[f"{layer}.lora_B.default.weight"],
            theirs[f"{layer}.weight"],
        )
        torch.testing.assert_close(a.grad, scale * b.T @ dw.grad, atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(b.grad, scale * dw.grad @ a.T, atol=1e-10, rtol=1e-8)
        assert float(a.grad.abs().max()) > 1e-6
    for head in ("colbert_linear.weight", "sparse_linear.weight"):
        torch.testing.assert_close(own[head].grad, theirs[head].grad, atol=1e-10, rtol=1e-8)


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(adapt: Adapt, bge: Callable[..., Any]) -> None:
    torch.manual_seed(1)
    one = adapt(fresh=True)
    drawn = torch.rand(())
    torch.manual_seed(1)
    plain = bge().build(BuildContext(registry=Registry(), announce=lambda line: None))
    assert torch.equal(drawn, torch.rand(())), "the global random state moved"
    assert torch.equal(encode(one, TEXTS).dense_ND, encode(plain, TEXTS).dense_ND)
    torch.manual_seed(2)
    for (name, value), other in zip(one.named_parameters(), adapt(fresh=True).parameters(), strict=True):
        assert torch.equal(value, other), name


def test_it_keeps_the_promises_of_a_model(adapt: Adapt) -> None:
    model = adapt()
    assert isinstance(model, Model)
    assert provides(model, ExportsOtherwise)
    check_model(model, TEXTS)
    check_model(adapt(use_dora=True, target_modules=["query"]), TEXTS)


def test_what_it_lacks_is_the_inner_model_s(adapt: Adapt) -> None:
    model = adapt()
    assert model.encoder is model.inner.encoder
    assert model.colbert_dim == 16
    assert model.scores is model.inner.scores
    model.normalize = False
    assert model.inner.normalize is False
    assert float(encode(model, TEXTS).dense_ND.norm(dim=1).min()) > 1.1
    model.inner.ds_note = 1
    assert not hasattr(model, "ds_note"), "what others note on the inner module is not on this one"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = model.nothing_like_it
    model.eval()
    assert not model.inner.training
    twin = copy.deepcopy(model)
    assert torch.equal(encode(twin, TEXTS).dense_ND, encode(model, TEXTS).dense_ND)


def test_the_encoder_is_frozen_the_heads_are_not_and_the_share_is_said(adapt: Adapt) -> None:
    lines: list[str] = []
    model = adapt(lines=lines)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora_" not in n} == {
        f"inner.{head}_linear.{kind}" for head in ("colbert", "sparse") for kind in ("weight", "bias")
    }
    # 2 layers of q, k, v, o (16 → 16) and 16 → 64, 64 → 16, rank 4; heads 16 → 16 and 16 → 1 with their biases.
    count = 2 * (4 * 4 * 32 + 2 * 4 * 80) + 16 * 16 + 16 + 16 + 1
    everything = sum(p.numel() for p in model.parameters())
    share = f"{100 * count / everything:.2g}"
    assert lines[-1] == f"LoRA r 4, alpha 32: trainable {count:,} of {everything:,} parameters ({share} %)"
    assert not any(p.requires_grad for n, p in adapt(train_heads=False).named_parameters() if "lora_" not in n)


def test_millions_are_said_as_such(monkeypatch: pytest.MonkeyPatch, adapt: Adapt) -> None:
    from embed_core.models.lora.build import summary
    from embed_core.zero import optimizer

    model, counts = adapt(), iter([420_000, 24_100_000])
    monkeypatch.setattr(optimizer, "count_parameters", lambda parameters: next(counts))
    line = summary(model, model.config_of_lora)
    assert line == "LoRA r 4, alpha 32: trainable 0.42 M of 24.1 M parameters (1.7 %)"


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 12),
        (["query", "value"], 4),
        (["attention.output.dense"], 2),
        (r"encoder\.layer\.1\..*\.(query|key)", 2),
        (["encoder.layer.0.intermediate.dense"], 1),
        (["dense"], 6),
    ],
)
def test_targets(adapt: Adapt, targets: Any, count: int) -> None:
    """``dense`` is also the name of the pooler's layer, which BGE-M3 freezes since no embedding reads it."""
    names = [n for n, _ in adapt(target_modules=targets).named_modules() if n.endswith(".lora_A.default")]
    assert len(names) == count
    assert not any("pooler" in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["query", "q_proj"]},
            "model.target_modules: no linear layer that is trained is named 'q_proj': one of: dense, key, query, value",
        ),
        (
            {"target_modules": ["quary"]},
            "model.target_modules: no linear layer that is trained is named 'quary': did you mean 'query'?",
        ),
        ({"target_modules": ["pooler.dense"]}, "is named 'pooler.dense': one of: dense, key, query, value"),
        ({"target_modules": ["LayerNorm"]}, "no linear layer that is trained is named 'LayerNorm': one of: dense, key"),
        (
            {"target_modules": "query"},
            "model.target_modules: the expression 'query' matches no linear layer; it has to match a whole name such "
            "as 'encoder.layer.0.attention.self.query' (a list, [query], matches the ends of names): did you mean",
        ),
        (
            {"modules_to_save": ["layernorm"]},
            "model.modules_to_save: no module of the encoder is named 'layernorm': did you mean 'LayerNorm'?",
        ),
        (
            {"modules_to_save": ["embeddings"]},
            "model.modules_to_save: 'embeddings' ends the names of a module and of one inside it, "
            "'embeddings.word_embeddings', and peft would take both: name the parts, such as 'word_embeddings'",
        ),
    ],
)
def test_layers_that_are_not_there(adapt: Adapt, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adapt(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_the_inner_model_freezes_has_nothing_to_adapt(adapt: Adapt, bge: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        adapt(inner=bge(fix_encoder=True))
    assert str(caught.value) == (
        "model.inner: XLMRobertaModel has no linear layer that is trained, so there is nothing to adapt: train the "
        "encoder (`fix_encoder: false`), or use the inner model without `kind: lora`"
    )


def test_saved_modules_are_trained_in_full_and_get_no_adapter(adapt: Adapt) -> None:
    model = adapt(modules_to_save=["word_embeddings", "layer.1.output"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "_linear" not in name}
    kept = {name for name in trained if "modules_to_save" in name}
    assert {name.split(".modules_to_save")[0].rsplit("encoder.", 1)[-1] for name in kept} == {
        "embeddings.word_embeddings",
        "layer.1.output",
    }
    assert not any("lora_" in name for name in kept)
    total(model).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n in trained)


class TinyConfig(ModelConfig):
    """A model of no transformers class."""

    kind: Literal["tiny"] = "tiny"
    lock: bool = False

    def build(self, context: BuildContext) -> Any:
        model = TinyModel()
        if self.lock:
            model.lock = threading.Lock()
        return model


def test_a_model_without_transformers_is_adapted_as_a_whole(adapt: Adapt) -> None:
    """Its attention's output layer is read, not called: no adapter there, and none that evaluation would pass over."""
    model = adapt(inner=TinyConfig(), fresh=True)
    assert list(roots_of(TinyModel())) == [""]
    layers = {n.removesuffix(".lora_A.default") for n, _ in model.named_modules() if n.endswith(".lora_A.default")}
    assert layers == {f"inner.{n}" for n in ("layer.linear1", "layer.linear2", "sparse_head", "multi_head")}
    before = encode(model, TEXTS).dense_ND
    dict(model.named_parameters())["inner.layer.linear1.lora_B.default.weight"].data.fill_(0.5)
    after = encode(model, TEXTS).dense_ND
    assert float((before - after).abs().max()) > 1e-3, "evaluation passes over the adapter"
    check_model(model, TEXTS)


def test_a_model_that_cannot_be_copied_is_refused(adapt: Adapt) -> None:
    with pytest.raises(ConfigError) as caught:
        adapt(inner=TinyConfig(lock=True))
    assert str(caught.value) == (
        "model.inner: TinyModel cannot be adapted, because copy.deepcopy fails on it (TypeError: cannot pickle "
        "'_thread.lock' object): keep locks, files and processes out of the model's attributes"
    )


def test_gradient_checkpointing_reaches_through(adapt: Adapt) -> None:
    model = adapt()
    enable_activation_checkpointing(model)
    assert model.encoder.is_gradient_checkpointing
    assert isinstance(model.encoder, nn.Module)
