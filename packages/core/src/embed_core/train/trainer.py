"""The loop: read it top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embed_core.batch.collate import HostBatch
from embed_core.batch.loader import Batches, prefetch
from embed_core.config.run import RunConfig
from embed_core.context import cache_root
from embed_core.distributed.process_group import Ranks
from embed_core.distributed.seeds import seed_of
from embed_core.errors import ConfigError, EmbedError, did_you_mean
from embed_core.events import StepEvent
from embed_core.hardware.oom import OutOfMemoryError, first_line, is_out_of_memory
from embed_core.profiling.mfu import Meter
from embed_core.protocols import Announce, Dataset, Evaluator, Loss, Model, Sampler
from embed_core.text.token_cache import CachedTokens, cached_tokens
from embed_core.train import lr_schedule
from embed_core.train.checkpoint import CheckpointStore, TrainState
from embed_core.train.encoder import EngineEncoder
from embed_core.train.non_finite import FiniteGuard, first_bad
from embed_core.train.step import Step, StepOutput
from embed_core.zero import reset
from embed_core.zero.optimizer import set_learning_rate
from embed_core.zero.state import gradient_norm as full_gradient_norm


@dataclass(frozen=True)
class Components:
    """A run's parts, built."""

    model: Model
    dataset: Dataset
    sampler: Sampler
    loss: Loss
    evaluators: tuple[Evaluator, ...]


@dataclass(frozen=True)
class Pace:
    """How many steps there are."""

    total_steps: int
    draws_per_step: int
    draws_per_epoch: int

    @classmethod
    def of(cls, config: RunConfig, sampler: Sampler) -> Pace:
        """``max_steps`` where set, else ``epochs`` in whole optimizer steps, at least one."""
        accumulation, per_epoch = config.train.gradient_accumulation_steps, sampler.draws_per_epoch
        steps = config.train.max_steps or max(1, math.floor(config.train.epochs * per_epoch / accumulation))
        return cls(steps, accumulation, per_epoch)


class Trainer:
    """Steps from ``state.step`` to the end, evaluating, saving and telling the observers."""

    def __init__(
        self,
        config: RunConfig,
        parts: Components,
        engine: Any,
        ranks: Ranks,
        state: TrainState,
        store: CheckpointStore,
        notify: Callable[[StepEvent], None],
        announce: Announce,
        phase: str = "",
        total_steps: int = 0,
    ) -> None:
        """``state.phase_start`` steps were done in phases before this one, ``phase``; ``config`` is as this one has it.
        ``total_steps`` are the run's, for the display."""
        self.config, self.parts, self.engine, self.ranks = config, parts, engine, ranks
        self.state, self.store, self.notify, self.announce = state, store, notify, announce
        self.pace, self.phase = Pace.of(config, parts.sampler), phase
        self.end = state.phase_start + self.pace.total_steps
        """The step this phase ends with."""
        self.total_steps = max(self.end, total_steps)
        self.batches = Batches(config, parts.dataset, parts.sampler)
        self.step = Step(engine, parts.model, parts.loss, config.engine, ranks, announce)
        self.meter = Meter(parts.model, config.engine.precision, ranks, announce)
        self.guard = FiniteGuard(config.train.non_finite, state, announce)
        total = self.pace.total_steps * self.pace.draws_per_step
        repeats = total > self.pace.draws_per_epoch
        self.tokens = cached_tokens(parts.model, config.engine.token_cache, cache_root(), announce, repeats=repeats)
        self.encoder = EngineEncoder(engine, parts.model, config.engine, ranks, self.tokens)
        self._saved_at, self._saved_step = time.monotonic(), state.step
        self._save_is_due = False
        """Whether the minutes between two states were over when this step began."""

    @property
    def steps_done(self) -> int:
        """Of this phase."""
        return self.state.step - self.state.phase_start

    def train(self) -> TrainState:
        """All remaining steps. Raises EmbedError where a loss or gradient is no number, or memory does not suffice."""
        pace, state = self.pace, self.state
        if state.step == 0 and not state.evaluations:
            self.evaluate()
        first, last = self.steps_done * pace.draws_per_step, pace.total_steps * pace.draws_per_step
        batches = prefetch(self._batch, first, last, self.config.engine.prefetch)
        try:
            while state.step < self.end:
                event = self._optimizer_step([next(batches) for _ in range(pace.draws_per_step)])
                state.step += 1
                self.notify(event)
                improved = self._evaluate_if_due()
                self._save_if_due(force=improved)
        finally:
            batches.close()
        self._save_last()
        skipped = self.guard.summary()
        if skipped is not None:
            self.announce(skipped)
        if state.step not in state.evaluations:
            self.evaluate()
        if isinstance(self.tokens, CachedTokens):
            self.tokens.close()
        return state

    def _batch(self, number: int) -> HostBatch:
        """This rank's part of the ``number``-th global batch, ready for the device."""
        return self.batches.host(self.tokens, number, self.ranks.rank, self.ranks.world_size)

    def _optimizer_step(self, batches: list[HostBatch]) -> StepEvent:
        started, settings = time.perf_counter(), self.config.train
        factor = lr_schedule.factor(settings.schedule, self.steps_done, self.pace.total_steps)
        rate = settings.optimizer.learning_rate * factor
        set_learning_rate(self.engine, rate)
        outputs = self._accumulate(batches)
        bad = first_bad(output.loss for output in outputs)
        if bad is not None:
            # The other ranks have the same loss, and do the same.
            reset.drop_gradients(self.engine)
            self.guard.failed("loss", bad, outputs[-1:])
            return self._event(outputs, rate, None, time.perf_counter() - started)
        norm, taken = self._step_weights()
        if taken:
            self.guard.passed()
        else:
            self.guard.failed("gradient norm", math.nan if norm is None else norm, outputs)
        return self._event(outputs, rate, norm, time.perf_counter() - started)

    def _accumulate(self, batches: list[HostBatch]) -> list[StepOutput]:
        """The gradients of one optimizer step, up to a loss that is no number. All of them again where memory ran out:
        the stages hold what came before in forms that cannot be told from what the failed attempt left."""
        while True:
            try:
                return self._attempt(batches)
            except OutOfMemoryError:
                pass
            reset.drop_gradients(self.engine)
            self.step.shrink()

    def _attempt(self, batches: list[HostBatch]) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        due = int(self._minutes_are_over())
        for micro, host in enumerate(batches):
            # Dropout is a function of (seed, step, rank): a resume repeats it without saved states.
            seed = seed_of(self.config.seed, self.state.step, micro, self.ranks.rank)
            last = micro == len(batches) - 1
            outputs.append(self.step.forward_backward(host, self.state.step, seed=seed, last=last, word=due))
            if first_bad([outputs[-1].loss]) is not None:
                break
        self._save_is_due = bool(outputs[0].word)
        return outputs

    def _step_weights(self) -> tuple[float | None, bool]:
        """Clip and step, unless the gradient is not finite. The norm before clipping, and whether there was a step."""
        unsharded = self.engine.zero_optimization_stage() == 0
        norm = full_gradient_norm(self.engine) if unsharded else None
        if norm is not None and not math.isfinite(norm):
            reset.drop_gradients(self.engine)
            return norm, False
        try:
            self.engine.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Part of the weights may have moved already: nothing can be taken back.
            raise EmbedError(
                f"out of memory in the optimizer's step ({first_line(error)}): share its states among ranks "
                "with engine.zero_stage: 1 to 3, use engine.precision: bf16, or a smaller model"
            ) from None
        if not unsharded:
            norm = full_gradient_norm(self.engine)
        return norm, not reset.gradients_were_refused(self.engine)

    def _event(self, outputs: list[StepOutput], rate: float, norm: float | None, seconds: float) -> StepEvent:
        count = len(outputs)
        step = self.state.step + 1
        return StepEvent(
            rank=self.ranks.rank,
            step=step,
            total_steps=self.total_steps,
            epoch=self._epoch(step),
            phase=self.phase,
            loss=sum(float(o.loss) for o in outputs) / count,
            metrics={name: sum(float(o.metrics[name]) for o in outputs) / count for name in outputs[0].metrics}
            | self.guard.metrics,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=seconds,
            rows=sum(o.rows for o in outputs),
            tokens=sum(o.tokens for o in outputs),
            padded_tokens=sum(o.padded_tokens for o in outputs),
            flops=self.meter.flops(sum(o.tokens for o in outputs), sum(o.squares for o in outputs)),
            peak_flops=self.meter.peak,
        )

    def evaluate(self) -> Mapping[str, float]:
        """All evaluators, on all ranks; remembered under the current step and told to the observers."""
        started, metrics = time.perf_counter(), {}
        for evaluator in self.parts.evaluators:
            for name, value in evaluator.evaluate(self.encoder).items():
                metrics[f"{evaluator.name}/{name}"] = float(value)
        self.state.evaluations[self.state.step] = metrics
        self._check_best_metric(metrics)
        if metrics:
            self.notify(self._evaluation_event(metrics, time.perf_counter() - started))
        return metrics

    def _check_best_metric(self, metrics: Mapping[str, float]) -> None:
        """Asked at every evaluation, the one before the first step included: not after hours of training."""
        name = self.config.train.best_metric
        if name is not None and name not in metrics:
            raise ConfigError(f"train.best_metric: {name!r} is no metric of this run: {did_you_mean(name, metrics)}")

    def _evaluation_event(self, metrics: Mapping[str, float], seconds: float) -> StepEvent:
        return StepEvent(
            rank=self.ranks.rank,
            step=self.state.step,
            total_steps=self.total_steps,
            epoch=self._epoch(self.state.step),
            phase=self.phase,
            loss=math.nan,
            metrics={},
            learning_rate=math.nan,
            gradient_norm=None,
            seconds=seconds,
            rows=0,
            tokens=0,
            padded_tokens=0,
            evaluation=metrics,
        )

    def _epoch(self, step: int) -> float:
        """Passes over the phase's data."""
        return (step - self.state.phase_start) * self.pace.draws_per_step / self.pace.draws_per_epoch

    def _evaluate_if_due(self) -> bool:
        """Evaluate on schedule; whether this is the best model so far and its state has to be kept."""
        every = self.config.train.evaluate_every_steps
        if not every or self.state.step % every or not self.parts.evaluators:
            return False
        return self.remember_best(self.evaluate())

    def remember_best(self, metrics: Mapping[str, float]) -> bool:
        """Note the current step as the best where its metric is the highest."""
        name = self.config.train.best_metric or next(iter(metrics), None)
        if name is None:
            return False
        if self.state.best_value is not None and metrics[name] <= self.state.best_value:
            return False
        self.state.best_step, self.state.best_value = self.state.step, metrics[name]
        return True

    def _save_if_due(self, *, force: bool) -> None:
        every = self.config.checkpoint.every_steps
        if force or self._save_is_due or (every and self.state.step % every == 0):
            self._save()

    def _minutes_are_over(self) -> bool:
        """Asked before a step, which tells rank 0's answer to all: clocks differ, and saving is a collective."""
        minutes = self.config.checkpoint.every_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes

    def _save_last(self) -> None:
        """The end is worth keeping where anything is: the last evaluation may fail, and a run may be trained on."""
        settings = self.config.checkpoint
        if (settings.every_steps or settings.every_minutes) and self._saved_step != self.state.step:
            self._save()

    def _save(self) -> None:
        self.store.save(self.engine, self.state)
        self._saved_at, self._saved_step = time.monotonic(), self.state.step
