"""Plans a run before it starts: the memory and time that it needs, on this machine's device or on another one.

The run's own data, sampler, model and loss are built, and chunks and losses are measured on them
(:mod:`embed_core.profiling.activation_memory`, :mod:`embed_core.profiling.loss_memory`). The state around them follows
from DeepSpeed's layout. Nothing is trained or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from embed_core.config.registry import Registry
from embed_core.config.run import EngineConfig, RunConfig
from embed_core.hardware import specs
from embed_core.inspection.parts import Parts
from embed_core.inspection.plan.data_profile import DataProfile, profile_data
from embed_core.inspection.plan.report import DataView, DeviceView, MemoryPart, Plan, Strategy, StrategyView
from embed_core.inspection.plan.speed import speed_of
from embed_core.inspection.plan.target import PlanRequest, Target, ranks_of, target_of
from embed_core.profiling import flops, throughput
from embed_core.profiling.activation_memory import ActivationFit, ChunkProbe
from embed_core.profiling.loss_memory import LossCost, LossProbe
from embed_core.profiling.model_state_memory import StateMemory, state_memory
from embed_core.profiling.throughput import LargestChunk
from embed_core.protocols import Announce, Dataset
from embed_core.train.trainer import Pace
from embed_core.types import Encoded
from embed_core.zero.engine import Trainable, deepspeed_config


def plan(
    config: RunConfig,
    registry: Registry,
    request: PlanRequest,
    *,
    dataset: Dataset | None = None,
    announce: Announce = lambda line: None,
) -> Plan:
    """The plan of ``config`` on ``request.ranks`` devices; ``dataset`` takes the place of ``config.data``'s.

    Raises ConfigError for an unknown device, a precision that it lacks, or batches that the ranks cannot share.
    """
    target, engine = target_of(config.engine, request)
    config = config.model_copy(update={"engine": engine})
    parts = Parts(config, registry, target.ranks, dataset=dataset, announce=announce)
    config = parts.config
    model, loss = parts.model(), parts.loss()
    parameters, cost = flops.count(Trainable(model, loss)), flops.cost_of(model)
    probe = throughput.ready(model, engine, target.ranks, here=target.here)
    found = profile_data(parts, model, request.batches, request.ranks)
    meant = ranks_of(request.ranks, on_gpu=target.on_gpu)
    zero = deepspeed_config(engine, config.train, meant, parameters.trainable)["zero_optimization"]
    state = state_memory(
        parameters.total, parameters.trainable, engine.precision, request.ranks, zero, on_gpu=target.on_gpu
    )
    encoded = [one for host in found.hosts for one in host.encoded]
    fitted = throughput.activations(probe, encoded, engine.chunk_tokens)
    loss_cost = _loss_cost(parts, loss, probe, encoded, request.ranks)
    strategies = _strategies(found, fitted, state, loss_cost, target.device.usable)
    strategy = _strategy(engine, strategies)
    longest = max(encoded, key=lambda one: one.length)
    room = target.device.usable - state.held - state.buckets - loss_cost.embeddings
    return Plan(
        name=config.name,
        device=_device_view(target, engine),
        ranks=request.ranks,
        precision=engine.precision,
        zero_stage=engine.effective_stage,
        token_budget=engine.chunk_tokens,
        checkpointing=flops.recomputes(model),
        parameters=parameters,
        memory=_memory(state, loss_cost),
        strategies=strategies,
        strategy=strategy,
        largest_chunk=_largest(fitted, longest, found, room, probe),
        data=_data_view(found),
        speed=speed_of(found, cost, probe, target, config, strategy, loss_cost, Pace.of(config, parts.sampler)),
        notes=_notes(loss_cost, parts.config.sampler.batch_size, longest, probe, config),
    )


def _device_view(target: Target, engine: EngineConfig) -> DeviceView:
    device = target.device
    listed = any(one.name == device.name for one in specs.TABLE)
    return DeviceView(
        device.name, target.here, device.memory, device.usable, device.peak(engine.precision), peak_measured=not listed
    )


def _loss_cost(parts: Parts, loss: Any, probe: ChunkProbe, encoded: Sequence[Encoded], ranks: int) -> LossCost:
    by_length = sorted(encoded, key=lambda one: one.length)
    few = by_length[: max(1, len(by_length) // 2)][-2:]
    with torch.no_grad():
        inputs = {name: value.to(probe.device) for name, value in probe.model.collate(few).items()}
        sample = probe.module(**inputs)
    tokens = sum(one.length for one in few)
    examples = parts.batches.examples(0)
    measured = LossProbe(loss, probe.model, sample, tokens, ranks, probe.device)
    return measured.measure(examples, deduplicate=parts.config.engine.deduplicate)


def _memory(state: StateMemory, loss: LossCost) -> tuple[MemoryPart, ...]:
    return (
        MemoryPart("weights", state.weights),
        MemoryPart("gradients", state.gradients),
        MemoryPart("master weights", state.master),
        MemoryPart("Adam moments", state.moments),
        MemoryPart("communication buffers", state.buckets),
        MemoryPart("embeddings of the batch", loss.embeddings),
        MemoryPart("loss", loss.peak),
    )


def _strategies(
    found: DataProfile, fitted: ActivationFit, state: StateMemory, loss: LossCost, usable: float
) -> tuple[StrategyView, ...]:
    """Over the largest share of any rank and batch; what comes after another in a step can take its place."""
    direct = cached = 0.0
    for share in found.shares:
        traces = [fitted.trace(shape.texts, shape.length) for shape in share]
        own = sum(trace.kept - fitted.kept_once for trace in traces)
        passing = max(trace.peak - trace.kept for trace in traces)
        direct = max(direct, own + fitted.kept_once + max(loss.peak, passing))
        cached = max(cached, loss.peak, *(trace.peak for trace in traces))

    def view(name: Strategy, most: float) -> StrategyView:
        step = state.buckets + loss.embeddings + most
        total = state.held + max(step, state.optimizer_step)
        return StrategyView(name, most, total, total <= usable)

    return view("direct", direct), view("cached", cached)


def _strategy(engine: EngineConfig, strategies: Sequence[StrategyView]) -> Strategy:
    if engine.strategy != "auto":
        return engine.strategy
    return "direct" if strategies[0].fits else "cached"


def _largest(
    fitted: ActivationFit, longest: Encoded, found: DataProfile, room: float, probe: ChunkProbe
) -> LargestChunk:
    share = max(found.shares, key=lambda shapes: sum(shape.padded_tokens for shape in shapes))
    parameters = list(probe.module.parameters())
    held = sum(p.nbytes + (0 if p.grad is None else p.grad.nbytes) for p in parameters)
    return throughput.largest_chunk(fitted, longest, share, room, probe, held)


def _data_view(found: DataProfile) -> DataView:
    return DataView(
        batches=found.batches,
        rows=found.rows / found.batches,
        texts=found.texts / found.batches,
        tokens=found.tokens / found.batches,
        padding_share=found.padding_share,
        repeated_share=found.repeated_share,
        columns=found.columns,
    )


def _notes(loss: LossCost, rows: int, longest: Encoded, probe: ChunkProbe, config: RunConfig) -> tuple[str, ...]:
    notes = []
    if loss.measured_rows < rows:
        notes.append(f"the loss was measured up to {loss.measured_rows:,} rows and extrapolated to {rows:,}")
    if probe.device == "cpu" and longest.length > throughput.WATCHED_TOKENS:
        notes.append(f"activations were measured on texts of up to {throughput.WATCHED_TOKENS} tokens and extrapolated")
    if config.engine.compile:
        notes.append("engine.compile is not part of the plan: compiled runs are faster and keep less")
    return tuple(notes)
