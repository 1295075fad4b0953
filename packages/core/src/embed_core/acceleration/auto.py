"""Resolves `auto` for this machine. Every choice is made here, is announced, and another can be set in the config."""

from __future__ import annotations

from typing import Literal

from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.protocols import Announce

CUDA_TOKENS, CPU_TOKENS, CPU_BF16_TOKENS = 16_384, 1_024, 2_048
CPU_BF16_MULTIPLE, CUDA_HALF_MULTIPLE = 32, 8


def resolve_auto(engine: EngineConfig, ranks: Ranks, announce: Announce = lambda line: None) -> EngineConfig:
    """Decide the precision and the token budget of ``engine``; attention and strategy are decided later."""
    precision = engine.precision
    if precision == "auto":
        precision = native_precision(ranks)
        announce(f"precision {precision}, chosen for {ranks.device} (engine.precision sets another)")
    budget = engine.token_budget
    if budget == "auto":
        on_cpu = CPU_BF16_TOKENS if precision.startswith("bf16") else CPU_TOKENS
        budget = CUDA_TOKENS if ranks.on_cuda else on_cpu
    return engine.model_copy(update={"precision": precision, "token_budget": budget})


def native_precision(ranks: Ranks) -> Literal["fp32", "bf16"]:
    """``bf16`` where matrix units multiply it (Ampere and later, AMX), else ``fp32``."""
    import torch

    if ranks.on_cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def length_multiple(engine: EngineConfig, ranks: Ranks) -> int:
    """The multiple that the length of a chunk in tokens is rounded up to.

    Tensor cores want multiples of 8. A CPU compiles a bf16 product for every new shape, in 2 ms where the product
    takes 0.2: lengths of 32, 64, 96, … keep the shapes few.
    """
    if ranks.on_cuda:
        return 1 if engine.precision == "fp32" else CUDA_HALF_MULTIPLE
    return CPU_BF16_MULTIPLE if engine.precision.startswith("bf16") else 1
