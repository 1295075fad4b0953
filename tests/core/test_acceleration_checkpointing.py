"""Gradient checkpointing: the same gradient, dropout included, for less memory; and a clear word where it cannot be."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import join, leave
from embed_core.errors import ConfigError
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta
from embed_core.testing.tiny import TinyModel
from embed_core.zero.engine import Trainable, initialize

torch.set_num_threads(1)
SHAPE = EncoderShape(vocab_size=50, hidden=16, layers=3, heads=2, dropout=0.3)


class Wrapped(nn.Module):
    """A transformers model some levels down."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"encoder": xlm_roberta(50, SHAPE, max_length=64, seed=3).train()})

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.parts["encoder"](input_ids=input_ids).last_hidden_state
        return states


class OwnWay(nn.Module):
    """A model that defines its own."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        self.asked.append(options)


def gradients(model: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Of a fixed function of the states, dropout on; and the bytes that were kept for the backward."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    ids = torch.arange(3, 3 + 2 * 20).view(2, 20) % 50
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        states = model(ids)
    torch.rand(7)  # what is drawn in between must not change the second computation
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_is_the_same_and_less_is_kept(frozen: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Also with frozen embeddings, below which nothing asks for a gradient."""
    plain = Wrapped()
    plain.parts["encoder"].embeddings.requires_grad_(not frozen)
    saving = copy.deepcopy(plain)
    with caplog.at_level(logging.WARNING):
        enable_activation_checkpointing(saving)
        wanted, much = gradients(plain)
        found, little = gradients(saving)
    assert found.keys() == wanted.keys()
    assert any("layer.0" in name for name in found)
    assert any("embeddings" in name for name in found) != frozen
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)
    assert little < 0.5 * much
    assert not caplog.records, "transformers' note on caches came through"


def test_dropout_is_at_work_in_that_comparison() -> None:
    model = Wrapped()
    ids = torch.arange(3, 23).view(1, 20)
    assert not torch.equal(model(ids), model(ids))


def test_a_model_s_own_method_is_asked_once_for_the_form_that_frozen_inputs_need() -> None:
    model = nn.ModuleList([OwnWay(), nn.Linear(2, 2), OwnWay()])
    enable_activation_checkpointing(model)
    assert [part.asked for part in (model[0], model[2])] == [[{"use_reentrant": False}]] * 2


def test_the_engine_switches_it_on() -> None:
    ranks = join("cpu")
    try:
        for wanted in (False, True):
            model = Wrapped()
            config = EngineConfig(precision="fp32", gradient_checkpointing=wanted)
            initialize(Trainable(model, None), config, TrainConfig(), ranks, lambda line: None)
            assert model.parts["encoder"].is_gradient_checkpointing is wanted
    finally:
        leave()


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        enable_activation_checkpointing(TinyModel())
    assert str(caught.value) == (
        "engine.gradient_checkpointing: TinyModel has no part that can compute its layers again: set it to false, and "
        "engine.strategy to 'cached' to save memory"
    )


def test_a_transformers_model_that_says_it_cannot_is_believed() -> None:
    model = Wrapped()
    model.parts["encoder"].supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="Wrapped has no part"):
        enable_activation_checkpointing(model)
