"""Builds the DeepSpeed engine of a run, for every ZeRO stage and precision, and its JSON config."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.acceleration import auto
from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.acceleration.attention import set_attention
from embed_core.acceleration.compile import compile_encoders
from embed_core.acceleration.dropout import set_dropout
from embed_core.acceleration.embedding_gradient import SharedTables
from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import to_float32
from embed_core.errors import ConfigError
from embed_core.protocols import Announce, PadsToMultiple, provides
from embed_core.types import Embeddings
from embed_core.zero import frozen
from embed_core.zero.optimizer import count_parameters, parameter_groups

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default of ``reduce_bucket_size``; a run that trains fewer parameters asks for less."""


class Trainable(nn.Module):
    """The module that the engine owns: the model, and the loss where it has parameters of its own."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss if isinstance(loss, nn.Module) else None

        self.mixed = False
        """Whether matrix products are bf16 while weights, gradients and sums stay fp32."""
        self.tables: SharedTables | None = None

    @contextmanager
    def together(self, *, hold: bool = False) -> Iterator[None]:
        """Wrap the forwards of one backward: each weight is cast once, each embedding table's gradient is summed once.

        ``hold`` as in :meth:`SharedTables.shared`.
        """
        with self._autocast(), self.tables.shared(hold=hold) if self.tables else nullcontext():
            yield

    def _autocast(self) -> Any:
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.mixed else nullcontext()

    def forward(self, **inputs: Tensor) -> Embeddings:
        """Encode one chunk. Embeddings are fp32 or wider, since gathering and losses never see half precision."""
        with self._autocast():
            result: Embeddings = to_float32(self.model(**inputs))
        return result


def deepspeed_config(engine: EngineConfig, train: TrainConfig, ranks: Ranks, trainable: int) -> dict[str, Any]:
    """DeepSpeed's JSON for this run of ``trainable`` parameters. The loop draws its own batches, so the micro-batch
    size is nominal."""
    # A GPU reserves a buffer as large as it is said to be, two of them where communication overlaps the backward:
    # 2 to 4 GB by default, for a model or for adapters of some millions. DeepSpeed wants an even number.
    bucket = 2 * max(1, min(BUCKET_ELEMENTS, trainable + 1) // 2)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train_batch_size": train.gradient_accumulation_steps * ranks.world_size,
        "gradient_clipping": train.gradient_clipping,
        "zero_optimization": {
            "stage": engine.effective_stage,
            "overlap_comm": ranks.on_cuda,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": engine.precision == "bf16-weights"},
        "fp16": {"enabled": engine.precision == "fp16"},
        "steps_per_print": 2**31 - 1,
    }


def initialize(
    module: Trainable, engine: EngineConfig, train: TrainConfig, ranks: Ranks, announce: Announce = print
) -> Any:
    """The DeepSpeed engine around ``module``, AdamW inside. Raises ConfigError for fp16 without CUDA."""
    import deepspeed

    if engine.precision == "fp16" and not ranks.on_cuda:
        raise ConfigError("engine.precision: 'fp16' needs CUDA: use bf16 or fp32 on this machine")
    if engine.effective_stage != engine.zero_stage:
        announce(f"zero_stage 0 with {engine.precision} runs as stage 1, which keeps fp32 master weights")
    apply_engine_options(module, engine, ranks, announce)
    frozen.keep_exact(module, engine, ranks)
    module.to(ranks.device)
    settings = train.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(module, settings),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    trainable = count_parameters(p for p in module.parameters() if p.requires_grad)
    config = deepspeed_config(engine, train, ranks, trainable)
    built = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if ranks.world_size == 1 and engine.effective_stage == 0:
        built[0].enable_backward_allreduce = False  # alone, it would only copy every gradient there and back
    return built[0]


def apply_engine_options(
    module: Trainable, engine: EngineConfig, ranks: Ranks, announce: Announce = lambda line: None
) -> None:
    """Apply the options of the engine that change the model itself: attention, checkpointing, compile, padding."""
    set_attention(module.model, engine, ranks, announce)
    if engine.gradient_checkpointing:
        enable_activation_checkpointing(module.model)
    if engine.compile:
        compile_encoders(module.model)
    elif not ranks.on_cuda:
        set_dropout(module.model)
        # Under ZeRO-3 a weight exists only while its module runs. A compiled graph has dropout and lookups of its own.
        if engine.zero_stage < 3:
            module.tables = SharedTables(module.model)
    module.mixed = engine.precision == "bf16"
    model: Any = module.model
    if provides(model, PadsToMultiple):
        model.pad_to_multiple_of = math.lcm(model.pad_to_multiple_of, auto.length_multiple(engine, ranks))
