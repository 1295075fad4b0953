"""DeepSpeed: one engine for every ZeRO stage and precision, and the few questions the loop asks of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.config.run import EngineConfig, OptimizerConfig, TrainConfig
from embed_core.embeddings import to_float32
from embed_core.engine import choose, frozen
from embed_core.engine.attention import set_attention
from embed_core.engine.compiling import compile_encoders
from embed_core.engine.dropout import set_dropout
from embed_core.engine.embedding import SharedTables
from embed_core.engine.ranks import Ranks
from embed_core.engine.recompute import enable_checkpointing
from embed_core.engine.state_memory import BUCKET_ELEMENTS
from embed_core.errors import ConfigError
from embed_core.protocols import Announce
from embed_core.types import Embeddings


class Trainable(nn.Module):
    """What the engine owns: the model, and the loss where that has parameters of its own."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss if isinstance(loss, nn.Module) else None

        self.mixed = False
        """Whether matrix products are bf16 while weights, gradients and sums stay fp32."""
        self.tables: SharedTables | None = None

    @contextmanager
    def together(self, *, hold: bool = False) -> Iterator[None]:
        """Around the forwards of one backward: each weight is converted once, each embedding table summed up once.

        ``hold`` as in :meth:`SharedTables.shared`.
        """
        with self._autocast(), self.tables.shared(hold=hold) if self.tables else nullcontext():
            yield

    def _autocast(self) -> Any:
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.mixed else nullcontext()

    def forward(self, **inputs: Tensor) -> Embeddings:
        """One chunk → embeddings, at least in fp32: gathering and losses never see half precision."""
        with self._autocast():
            result: Embeddings = to_float32(self.model(**inputs))
        return result


def parameter_groups(module: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, biases and normalisation weights (one-dimensional) do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("the model has no trainable parameter: unfreeze some, or there is nothing to train")
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    groups = [(matrices, optimizer.weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


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
            "stage": effective_stage(engine),
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


def effective_stage(engine: EngineConfig) -> int:
    """DeepSpeed's stage 0 has no fp32 master weights in half precision; its stage 1 has, with the same arithmetic."""
    return 1 if engine.precision in ("bf16-weights", "fp16") and engine.zero_stage == 0 else engine.zero_stage


def needs_equal_chunks(engine: EngineConfig, world_size: int) -> bool:
    """Whether every rank must run as many chunks as the one that needs most.

    Under ZeRO-3 a forward is a collective, and under ZeRO-2 a backward, of which the cached strategy has one per chunk.
    """
    return world_size > 1 and effective_stage(engine) >= 2


def initialize(
    module: Trainable, engine: EngineConfig, train: TrainConfig, ranks: Ranks, announce: Announce = print
) -> Any:
    """The DeepSpeed engine around ``module``, AdamW inside. Raises ConfigError for fp16 without CUDA."""
    import deepspeed

    if engine.precision == "fp16" and not ranks.on_cuda:
        raise ConfigError("engine.precision: 'fp16' needs CUDA: use bf16 or fp32 on this machine")
    if effective_stage(engine) != engine.zero_stage:
        announce(f"zero_stage 0 with {engine.precision} runs as stage 1, which keeps fp32 master weights")
    prepare(module, engine, ranks, announce)
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
    if ranks.world_size == 1 and effective_stage(engine) == 0:
        built[0].enable_backward_allreduce = False  # alone, it would only copy every gradient there and back
    return built[0]


def prepare(module: Trainable, engine: EngineConfig, ranks: Ranks, announce: Announce = lambda line: None) -> None:
    """What the engine's options change in the model itself."""
    set_attention(module.model, engine, ranks, announce)
    if engine.gradient_checkpointing:
        enable_checkpointing(module.model)
    if engine.compile:
        compile_encoders(module.model)
    elif not ranks.on_cuda:
        set_dropout(module.model)
        # Under ZeRO-3 a weight is there only while its module runs. A compiled graph has its own of both.
        if engine.zero_stage < 3:
            module.tables = SharedTables(module.model)
    module.mixed = engine.precision == "bf16"
    if hasattr(module.model, "pad_to_multiple_of"):
        model: Any = module.model
        model.pad_to_multiple_of = math.lcm(model.pad_to_multiple_of, choose.length_multiple(engine, ranks))


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """For the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def gradient(engine: Any, parameter: nn.Parameter) -> Tensor | None:
    """The full averaged fp32 gradient of ``parameter`` between backward and step, on every rank (a collective)."""
    if engine.zero_optimization_stage() == 0:
        return parameter.grad
    from deepspeed.utils import safe_get_full_grad

    full: Tensor | None = safe_get_full_grad(parameter)
    return full


def gradient_norm(engine: Any) -> float | None:
    """Global norm before clipping. At stage 0 asked between backward and step, else after the step."""
    if engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def full_state(engine: Any, module: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """fp32 CPU weights and buffers of ``module`` (a part of the engine's) on rank 0; empty elsewhere. A collective."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        value = _full_value(engine, parameter)
        if ranks.rank == 0:
            # After the gather, in which all ranks take part.
            state[name] = frozen.exact(parameter, value).detach().to("cpu", torch.float32, copy=True)
    if ranks.rank == 0:
        persistent = module.state_dict(keep_vars=True).keys()
        for name, buffer in module.named_buffers():
            if name in persistent:
                state[name] = buffer.detach().to("cpu", copy=True)
    return state


def _full_value(engine: Any, parameter: nn.Parameter) -> Tensor:
    """Master weights where the engine keeps some; a frozen parameter has none and is read (gathered) as it is."""
    if engine.zero_optimization_stage() > 0 and parameter.requires_grad:
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor | None = safe_get_full_fp32_param(parameter)
        if value is not None:
            return value.view(getattr(parameter, "ds_shape", parameter.shape))
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Elements, sharded ones included."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in parameters)
