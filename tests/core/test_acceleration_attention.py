"""Attention by matrix products: value and gradients, against the formula in float64 and transformers' eager one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.acceleration import attention
from embed_core.acceleration.dropout import keep_mask
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import xlm_roberta

CPU = Ranks(0, 1, 0, "cpu")


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    logits = torch.einsum("nhld,nhsd->nhls", query, key) * scale
    logits = logits if mask is None else logits + mask
    return torch.einsum("nhls,nhsd->nlhd", logits.softmax(-1), value)


def parts(dtype: torch.dtype, heads: int = 4, key_heads: int = 4, length: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, heads, length, 8), (2, key_heads, length, 8), (2, key_heads, length, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def padding_mask(dtype: torch.dtype, length: int = 9) -> Tensor:
    mask = torch.zeros(2, 1, 1, length, dtype=dtype)
    mask[1, ..., 5:] = torch.finfo(torch.float32).min / 2
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_products_are_attention_value_and_gradient(masked: bool, dtype: torch.dtype, tolerance: float) -> None:
    given, oracle = parts(dtype), [p.detach().double().requires_grad_() for p in parts(dtype)]
    mask = padding_mask(dtype) if masked else None
    found, weights = attention.products(nn.Module(), *given, mask, scaling=0.3, is_causal=False)
    wanted = reference(*oracle, None if mask is None else mask.double(), 0.3)
    assert weights is None
    assert found.shape == (2, 9, 4, 8)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found.backward(upstream.to(dtype))
    wanted.backward(upstream)
    for one, other in zip(given, oracle, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, atol=3 * tolerance, rtol=3 * tolerance)


def test_queries_and_keys_in_fp32_under_autocast() -> None:
    """Qwen3 normalises its heads in fp32: products are in bf16 all the same, gradients in the dtype of each."""
    query, key, value = (p.detach().to(d).requires_grad_() for p, d in zip(
        parts(torch.float32), (torch.float32, torch.float32, torch.bfloat16), strict=True))  # fmt: skip
    oracle = [p.detach().double().requires_grad_() for p in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention.products(nn.Module(), query, key, value, None, scaling=0.3, is_causal=False)
    assert found.dtype == torch.bfloat16
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found.backward(upstream.bfloat16())
    reference(*oracle, None, 0.3).backward(upstream)
    for one, other in zip((query, key, value), oracle, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == one.dtype
        torch.testing.assert_close(one.grad.double(), other.grad, atol=9e-2, rtol=9e-2)


def test_grouped_heads_and_causal_models() -> None:
    query, key, value = parts(torch.float64, key_heads=2)
    found, _ = attention.products(nn.Module(), query, key, value, None, is_causal=True)
    future = torch.full((9, 9), float("-inf"), dtype=torch.float64).triu(1)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    torch.testing.assert_close(found, reference(query, key, value, future, 8**-0.5))


def test_a_module_says_whether_it_is_causal() -> None:
    module: Any = SimpleNamespace(is_causal=False)
    query, key, value = parts(torch.float64)
    found, _ = attention.products(module, query, key, value, None)
    torch.testing.assert_close(found, reference(query, key, value, None, 8**-0.5))


def test_dropout_drops_that_share_and_its_gradient_is_of_the_same_weights() -> None:
    query, key, value = parts(torch.float64, length=40)
    torch.manual_seed(1)
    found, _ = attention.products(nn.Module(), query, key, value, None, dropout=0.25, is_causal=False)
    torch.manual_seed(1)
    mask, factor = keep_mask(torch.empty(8, 40, 40, dtype=torch.float64), 0.25)
    kept = (mask * factor).view(2, 4, 40, 40)
    weights = torch.softmax(query @ key.transpose(2, 3) * 8**-0.5, -1) * kept
    wanted = (weights @ value).transpose(1, 2)
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():  # as the first pass of gradient caching does: the same values, with a product in place
        torch.manual_seed(1)
        again, _ = attention.products(nn.Module(), query, key, value, None, dropout=0.25, is_causal=False)
    assert torch.equal(again, found)
    upstream = torch.randn_like(wanted)
    inputs = (query, key, value)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert float((kept == 0).double().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("padded", [0, 3])
def test_a_transformers_model_gives_what_its_eager_attention_gives(padded: int, dtype: torch.dtype) -> None:
    shape = EncoderShape(vocab_size=60, hidden=32, layers=2, heads=4, dropout=0.0)
    # float64: in fp32 without dropout the products leave it to PyTorch.
    model = xlm_roberta(60, shape, max_length=20, seed=2).to(dtype)
    ids, mask = torch.randint(5, 60, (3, 12)), torch.ones(3, 12, dtype=torch.int64)
    if padded:
        mask[1, -padded:], ids[1, -padded:] = 0, 1
    found = {}
    attention.register()
    for name in ("eager", attention.PRODUCTS):
        model.set_attn_implementation(name)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found[name] = states[mask.bool()]
        found[name].square().sum().backward()
        found[f"{name} gradients"] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    torch.testing.assert_close(found[attention.PRODUCTS], found["eager"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[f"{attention.PRODUCTS} gradients"], found["eager gradients"], atol=1e-4, rtol=1e-4)


def test_a_row_without_any_key_is_no_nan() -> None:
    mask = torch.full((2, 1, 9, 9), torch.finfo(torch.float32).min / 2)
    found, _ = attention.products(nn.Module(), *parts(torch.bfloat16), mask, is_causal=False)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize(
    ("precision", "dropout", "wanted"),
    [
        ("bf16", 0.0, attention.PRODUCTS),
        ("bf16-weights", 0.0, attention.PRODUCTS),
        ("fp32", 0.0, "sdpa"),
        ("fp32", 0.1, attention.PRODUCTS),
    ],
)
def test_products_are_chosen_on_cpus_for_bf16_and_for_dropout(precision: Any, dropout: float, wanted: str) -> None:
    shape = EncoderShape(vocab_size=60, hidden=32, layers=1, heads=4, dropout=dropout)
    model = xlm_roberta(60, shape, max_length=20, seed=2)
    model.set_attn_implementation("sdpa")
    attention.set_attention(model, EngineConfig(precision=precision), CPU)
    assert model.config._attn_implementation == wanted


def test_the_option_wins_and_what_is_not_installed_says_so() -> None:
    model = xlm_roberta(60, EncoderShape(vocab_size=60, hidden=32, layers=1, heads=4), max_length=20, seed=2)
    attention.set_attention(model, EngineConfig(precision="bf16", attention="eager"), CPU)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match=r"engine.attention: 'flash_attention_2' needs CUDA, this run is on cpu: use"):
        attention.set_attention(model, EngineConfig(precision="bf16", attention="flash_attention_2"), CPU)
