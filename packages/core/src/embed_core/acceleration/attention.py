"""Chooses the attention implementation of transformers models, and adds one for CPUs.

PyTorch's fused attention on CPUs computes bf16 with vector units; plain matrix products use AMX and are 2 to 10 times
faster, forward and backward, at the lengths retrieval models train with. With dropout there is none on CPUs.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.acceleration.dropout import keep_mask
from embed_core.acceleration.varlen_check import can_pack
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.protocols import Announce

PRODUCTS = "embed_products"
"""Name of :func:`products` among transformers' attention implementations."""
FLASH = "flash_attention_2"
AMPERE = 8
"""The lowest compute capability for which flash-attention has kernels."""


def products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """softmax(q·kᵀ·scaling + mask)·v as batched matrix products: [N,H,L,d] each → [N,L,H,d].

    ``attention_mask`` is :func:`additive_mask`'s. The softmax sums in fp32 and rounds once, as it does the logits.
    """
    # Norms and rotary positions may leave queries and keys in fp32 where autocast multiplies in half precision.
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    query, key, value = query.to(half), key.to(half), value.to(half)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # grouped-query attention
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        attention_mask = _causal(query, key)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if half == torch.float32 and not dropout:  # PyTorch's own is as fast, and keeps no [L,L] matrix
        fused: Tensor = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scale)
        return fused.transpose(1, 2).contiguous(), None
    attended: Tensor = _Products.apply(query, key, value, attention_mask, scale, dropout)
    return attended.transpose(1, 2).contiguous(), None


class _Products(torch.autograd.Function):
    """Attention with its own backward: autograd would copy every [L,L] matrix for the mask, and keep the logits."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
    ) -> Tensor:
        texts, heads, length, width = query.shape
        flat = [part.reshape(texts * heads, part.shape[2], width) for part in (query, key, value)]
        logits = _product(flat[0], flat[1].transpose(1, 2), scale)
        if mask is not None:
            logits.view(texts, heads, length, -1).add_(mask.to(logits.dtype))
        weights = torch.softmax(logits, dim=-1)
        used, ctx.kept, ctx.scale, ctx.dropped = weights, 1.0, scale, bool(dropout)
        if dropout:
            keep, ctx.kept = keep_mask(weights, dropout)
            # Without a graph nobody needs the weights as they were.
            used = weights * keep if any(ctx.needs_input_grad) else weights.mul_(keep)
        ctx.save_for_backward(*flat, weights, used)
        return _product(used, flat[2], ctx.kept).view(texts, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, used = ctx.saved_tensors
        shape = gradients[0].shape
        upstream = gradients[0].reshape(query.shape)
        value_gradient = _product(used.transpose(1, 2), upstream, ctx.kept)
        inner = _product(upstream, value.transpose(1, 2), ctx.kept)
        if ctx.dropped:  # the gradients of softmax and dropout together, which saves two passes
            inner.mul_(used)
            inner.addcmul_(weights, inner.sum(-1, keepdim=True), value=-1)
        else:
            inner = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
        query_gradient = _product(inner, key, ctx.scale)
        key_gradient = _product(inner.transpose(1, 2), query, ctx.scale)
        back = [
            part.view(*shape[:2], part.shape[1], shape[3]) for part in (query_gradient, key_gradient, value_gradient)
        ]
        return (*back, None, None, None)


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """``factor · left · right``, the factor at no cost: [N,A,B] × [N,B,C] → [N,A,C]."""
    return torch.baddbmm(left.new_empty(1), left, right, beta=0, alpha=factor)


def additive_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """Turn transformers' boolean sdpa mask (``None`` where none is needed) into an additive one, once per forward."""
    from transformers.masking_utils import sdpa_mask

    mask = sdpa_mask(*arguments, **options)
    if mask is None:
        return None
    dtype = options.get("dtype", torch.float32)
    # Keys that all queries of a text leave out are its padding: one row serves them all.
    rows = mask[..., :1, :] if bool((mask == mask[..., :1, :]).all()) else mask
    # Half of the smallest number: with a logit added it stays finite, and a row without any key is no NaN.
    return torch.zeros(rows.shape, dtype=dtype, device=rows.device).masked_fill_(~rows, torch.finfo(dtype).min / 2)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    mask = torch.full((queries, keys), torch.finfo(query.dtype).min / 2, dtype=query.dtype, device=query.device)
    return mask.triu_(keys - queries + 1)


def set_attention(model: nn.Module, engine: EngineConfig, ranks: Ranks, announce: Announce = lambda line: None) -> None:
    """Set the implementation of every transformers model in ``model`` as ``engine.attention`` says.

    With flash-attention throughout, and where :func:`embed_core.acceleration.varlen_check.can_pack` finds no objection,
    chunks are packed from here on. Raises ConfigError where the implementation that was asked for cannot run.
    """
    from transformers import PreTrainedModel

    register()
    flash = _flash_is_wanted(engine, ranks)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    packs = flash and can_pack(model)
    for part in parts:
        if part._can_set_attn_implementation():
            _set(part, engine, _choice(part, engine, ranks, packs=packs))
    if packs and parts and all("flash" in part.config._attn_implementation for part in parts):
        packing: Any = model
        packing.packed = True
        announce("attention by flash-attention, chunks without padding")


def _flash_is_wanted(engine: EngineConfig, ranks: Ranks) -> bool:
    """Whether flash-attention is asked for, or `auto` takes it. Raises ConfigError where it cannot run as asked."""
    if engine.attention == FLASH and not ranks.on_cuda:
        raise ConfigError(f"engine.attention: {FLASH!r} needs CUDA, this run is on {ranks.device}: use auto or sdpa")
    if engine.attention == FLASH and engine.precision == "fp32":
        raise ConfigError(
            f"engine.attention: {FLASH!r} needs half precision, engine.precision is 'fp32': use bf16, or attention sdpa"
        )
    if engine.attention != "auto":
        return engine.attention == FLASH
    from transformers.utils import is_flash_attn_2_available

    if not ranks.on_cuda or engine.precision == "fp32" or not is_flash_attn_2_available():
        return False
    major, _ = torch.cuda.get_device_capability(ranks.device)
    return int(major) >= AMPERE


def _choice(part: Any, engine: EngineConfig, ranks: Ranks, *, packs: bool) -> str | None:
    """The implementation of one transformers model; ``None`` leaves it as it is."""
    if engine.attention != "auto":
        return engine.attention
    if part.config._attn_implementation != "sdpa":
        return None
    # With padding flash-attention would unpad in every layer, which sdpa does not.
    if packs and part._supports_flash_attn:
        return FLASH
    # With dropout PyTorch has no fused attention on CPUs.
    return PRODUCTS if not ranks.on_cuda and (engine.precision.startswith("bf16") or _drops(part.config)) else None


def _drops(config: Any) -> bool:
    """Whether attention weights are dropped in training, by the names that transformers' configs have for the rate."""
    return any(getattr(config, name, 0) for name in ("attention_probs_dropout_prob", "attention_dropout"))


def _set(part: Any, engine: EngineConfig, wanted: str | None) -> None:
    before = part.config._attn_implementation
    if wanted is None or wanted == before:
        return
    try:
        part.set_attn_implementation(wanted)
    except (ImportError, ValueError) as error:
        if engine.attention == "auto":
            part.set_attn_implementation(before)
            return
        raise ConfigError(
            f"engine.attention: {wanted!r} does not run here ({str(error).splitlines()[0]}): use auto or sdpa"
        ) from None


def register() -> None:
    """Make :func:`products` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PRODUCTS, products)
    AttentionMaskInterface.register(PRODUCTS, additive_mask)
    for module in ("modeling_utils", "modeling_flash_attention_utils"):
        logging.getLogger(f"transformers.{module}").addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Suppress warnings of transformers, which cannot know that the model moves to CUDA and runs under autocast."""
    heard = ("You are attempting to use Flash Attention", "Casting fp32 inputs back to")
    return not str(record.msg).startswith(heard)
