"""FLOPs by weights and lengths, against the matrix products that torch counts in real forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from embed_core.profiling.flops import cost_of, count, recomputes
from embed_core.testing.tiny import TinyModel

torch.set_num_threads(1)


class Encoder(nn.Module):
    """A tiny encoder and a head on every token, as BGE-M3 has."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 16)

    def forward(self, ids_NL: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids=ids_NL).last_hidden_state)


def xlm_roberta(**options: Any) -> Any:
    """Attention as matrix products: torch's counter does not know the fused one of CPUs."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = XLMRobertaConfig(**shape, intermediate_size=96, max_position_embeddings=300, **options)
    model = XLMRobertaModel._from_config(config, attn_implementation="eager")
    model.pooler.requires_grad_(False)  # as every embedding model here: nothing reads it
    return model


def qwen() -> Any:
    """Heads wider in sum than the states, and fewer keys than queries."""
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
    )
    return Qwen3Model._from_config(config, attn_implementation="eager")


def lower_layers_frozen(model: Encoder) -> None:
    model.encoder.embeddings.requires_grad_(False)
    model.encoder.encoder.layer[0].requires_grad_(False)


def biases_only(model: Encoder) -> None:
    """All matrices frozen, gradients through all of them: what LoRA does to its base."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") and "pooler" not in name)


def all_but_the_head_frozen(model: Encoder) -> None:
    model.encoder.requires_grad_(False)


@pytest.mark.parametrize("make", [xlm_roberta, qwen])
@pytest.mark.parametrize("length", [16, 128, 256])
def test_forward_and_backward(make: Callable[[], Any], length: int) -> None:
    model = Encoder(make())
    assert_like_torch(model, length)


@pytest.mark.parametrize("freeze", [lower_layers_frozen, biases_only, all_but_the_head_frozen])
def test_frozen_weights_have_no_gradient_of_their_own(freeze: Callable[[Encoder], None]) -> None:
    model = Encoder(xlm_roberta())
    full = cost_of(model)
    freeze(model)
    partial = cost_of(model)
    assert full is not None
    assert partial is not None
    assert partial.backward(1, 0) < 0.9 * full.backward(1, 0)
    assert_like_torch(model, 64)


def assert_like_torch(model: Encoder, length: int) -> None:
    cost = cost_of(model)
    assert cost is not None
    ids_NL = torch.randint(3, 300, (2, length))
    with FlopCounterMode(display=False) as forward:
        result = model(ids_NL)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    squares = 2 * length**2
    assert cost.forward(2 * length, squares) == pytest.approx(forward.get_total_flops(), rel=0.02)
    assert cost.backward(2 * length, squares) == pytest.approx(backward.get_total_flops(), rel=0.1)
    assert cost.training(2 * length, squares) == pytest.approx(
        forward.get_total_flops() + backward.get_total_flops(), rel=0.1
    )


def test_the_cost_model_in_closed_form() -> None:
    """6·N per token and 12 · layers · width · length of attention, for a whole encoder that is trained."""
    model = xlm_roberta()
    cost = cost_of(model)
    assert cost is not None
    matrices = 3 * (4 * 32 * 32 + 2 * 32 * 96)
    assert cost.training(100, 0) == 6 * matrices * 100
    assert cost.training(0, 50**2) == 12 * 3 * 32 * 50 * 50


def test_parameters_once_each() -> None:
    model = Encoder(xlm_roberta())
    model.encoder.embeddings.requires_grad_(False)
    model.again = model.head  # shared modules and tied weights are the same parameters
    model.tied = nn.Linear(32, 300, bias=False)
    model.tied.weight = model.encoder.embeddings.word_embeddings.weight
    found = count(model)
    every = {id(p): p for p in model.parameters()}.values()
    assert found.total == sum(p.numel() for p in every)
    assert found.trainable == sum(p.numel() for p in every if p.requires_grad)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    assert found.embedding == sum(table.weight.numel() for table in tables) == 32 * (300 + 300 + 2)
    assert found.non_embedding == found.total - found.embedding
    cost, plain = cost_of(model), cost_of(Encoder(xlm_roberta()))
    assert cost is not None
    assert plain is not None
    assert cost.weights == plain.weights, "a table that is tied to a projection is still a table"


def test_weights_that_zero_3_has_taken_away() -> None:
    model = Encoder(xlm_roberta())
    before, parameters = cost_of(model), count(model)
    for parameter in model.parameters():
        parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
        parameter.data = torch.empty(0)
    assert cost_of(model) == before
    assert count(model) == parameters


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = xlm_roberta(), xlm_roberta()


def test_models_whose_cost_is_not_known() -> None:
    assert cost_of(TinyModel()) is None, "no transformers model"
    assert cost_of(Towers()) is None, "a text meets one of the towers"
    mixture = xlm_roberta()
    mixture.config.num_local_experts = 8
    assert cost_of(mixture) is None, "a token meets some of the experts"


def test_recomputation_is_seen() -> None:
    model = Encoder(xlm_roberta())
    assert not recomputes(model)
    model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    assert recomputes(model)
    assert not recomputes(nn.ModuleList([nn.Linear(2, 2)]))
