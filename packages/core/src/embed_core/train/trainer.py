"""The training loop. Read it from top to bottom: a run is `train`, a step is `_optimizer_step`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embed_core.batch.collate import HostBatch
from embed_core.batch.loader import Batches, prefetch
from embed_core.config.context import cache_root
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.distributed.seeds import seed_of
from embed_core.errors import EmbedError
from embed_core.events import StepEvent
from embed_core.hardware.oom import OutOfMemoryError, first_line, is_out_of_memory
from embed_core.profiling.mfu import MfuMeter
from embed_core.protocols import Announce, Dataset, Evaluator, Loss, Model, Sampler
from embed_core.text.token_cache import CachedTokens, Tokenizes, cached_tokens
from embed_core.train import lr_schedule
from embed_core.train.checkpoint import CheckpointSchedule, CheckpointStore, TrainState
from embed_core.train.encoder import EngineEncoder
from embed_core.train.evaluate import Evaluation
from embed_core.train.non_finite import NonFiniteGuard, first_non_finite
from embed_core.train.step import Step, StepOutput
from embed_core.zero import reset
from embed_core.zero.optimizer import gradient_norm, gradients_were_refused, set_learning_rate


@dataclass(frozen=True)
class Components:
    """The components that a phase of a run trains with, built from their configs."""

    model: Model
    dataset: Dataset
    sampler: Sampler
    loss: Loss
    evaluators: tuple[Evaluator, ...]


@dataclass(frozen=True)
class Pace:
    """The number of optimizer steps of a phase, and of batches drawn for each of them."""

    total_steps: int
    draws_per_step: int
    draws_per_epoch: int

    @classmethod
    def of(cls, config: RunConfig, sampler: Sampler) -> Pace:
        """``max_steps`` where set, else ``epochs`` in whole optimizer steps, at least one."""
        accumulation, per_epoch = config.train.gradient_accumulation_steps, sampler.draws_per_epoch
        steps = config.train.max_steps or max(1, math.floor(config.train.epochs * per_epoch / accumulation))
        return cls(steps, accumulation, per_epoch)


@dataclass(frozen=True)
class Runtime:
    """What the trainers of all phases share with the run around them."""

    ranks: Ranks
    store: CheckpointStore
    notify: Callable[[StepEvent], None]
    """Tells the observers about a step or an evaluation."""
    announce: Announce


class Trainer:
    """Trains one phase from ``state.step`` to its end: steps, evaluates, saves, and tells the observers."""

    def __init__(
        self,
        config: RunConfig,
        parts: Components,
        engine: Any,
        state: TrainState,
        runtime: Runtime,
        phase: str = "",
        total_steps: int = 0,
    ) -> None:
        """``config`` is the run's as it is in this ``phase``, which begins after ``state.phase_start`` steps of the
        phases before it. ``total_steps`` of the whole run are for the display."""
        self.config, self.parts, self.engine, self.state = config, parts, engine, state
        self.ranks, self.notify, self.announce = runtime.ranks, runtime.notify, runtime.announce
        self.pace, self.phase = Pace.of(config, parts.sampler), phase
        self.end = state.phase_start + self.pace.total_steps
        """The step that this phase ends with."""
        self.total_steps = max(self.end, total_steps)
        self.batches = Batches(config, parts.dataset, parts.sampler)
        self.step = Step(engine, parts.model, parts.loss, config.engine, self.ranks, self.announce)
        self.meter = MfuMeter(parts.model, config.engine.precision, self.ranks, self.announce)
        self.guard = NonFiniteGuard(config.train.non_finite, state, self.announce)
        self.tokens = self._cached_tokens()
        self.encoder = EngineEncoder(engine, parts.model, config.engine, self.ranks, self.tokens)
        self.evaluation = Evaluation(parts.evaluators, self.encoder, config.train, state)
        self.checkpoints = CheckpointSchedule(config.checkpoint, runtime.store, engine, state)

    def _cached_tokens(self) -> Tokenizes:
        """The model's tokenizer, with a cache around it where texts come more than once."""
        repeats = self.pace.total_steps * self.pace.draws_per_step > self.pace.draws_per_epoch
        choice = self.config.engine.token_cache
        return cached_tokens(self.parts.model, choice, cache_root(), self.announce, repeats=repeats)

    @property
    def steps_done(self) -> int:
        """Optimizer steps of this phase that are done."""
        return self.state.step - self.state.phase_start

    def train(self) -> TrainState:
        """Take all remaining steps of the phase.

        Raises EmbedError where a loss or gradient is not finite, or where memory does not suffice.
        """
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
                improved = self.evaluation.is_due and self.evaluation.remember_best(self.evaluate())
                self.checkpoints.save_if_due(force=improved)
        finally:
            batches.close()
        self.checkpoints.save_last()
        skipped = self.guard.summary()
        if skipped is not None:
            self.announce(skipped)
        if not self.evaluation.is_done:
            self.evaluate()
        if isinstance(self.tokens, CachedTokens):
            self.tokens.close()
        return state

    def evaluate(self) -> Mapping[str, float]:
        """Run all evaluators on all ranks, and tell the observers their metrics."""
        metrics, seconds = self.evaluation.run()
        if metrics:
            none: dict[str, Any] = {"loss": math.nan, "metrics": {}, "learning_rate": math.nan, "gradient_norm": None}
            nothing = {"rows": 0, "tokens": 0, "padded_tokens": 0}
            self.notify(self._event(self.state.step, seconds=seconds, evaluation=metrics, **none, **nothing))
        return metrics

    def _batch(self, number: int) -> HostBatch:
        """This rank's share of the ``number``-th global batch, tokenised."""
        return self.batches.host(self.tokens, number, self.ranks.rank, self.ranks.world_size)

    def _optimizer_step(self, batches: list[HostBatch]) -> StepEvent:
        started, settings = time.perf_counter(), self.config.train
        factor = lr_schedule.learning_rate_factor(settings.schedule, self.steps_done, self.pace.total_steps)
        rate = settings.optimizer.learning_rate * factor
        set_learning_rate(self.engine, rate)
        outputs = self._accumulate(batches)
        bad = first_non_finite(output.loss for output in outputs)
        if bad is not None:
            # The other ranks have the same loss, and do the same.
            reset.drop_gradients(self.engine)
            self.guard.failed("loss", bad, outputs[-1:])
            return self._step_event(outputs, rate, None, time.perf_counter() - started)
        norm, taken = self._step_weights()
        if taken:
            self.guard.passed()
        else:
            self.guard.failed("gradient norm", math.nan if norm is None else norm, outputs)
        return self._step_event(outputs, rate, norm, time.perf_counter() - started)

    def _accumulate(self, batches: list[HostBatch]) -> list[StepOutput]:
        """Accumulate the gradients of one optimizer step, up to a loss that is not finite.

        Where memory ran out the whole step is tried again: the gradients of the batches before cannot be told from what
        the failed attempt left.
        """
        while True:
            try:
                return self._attempt(batches)
            except OutOfMemoryError:
                pass
            reset.drop_gradients(self.engine)
            self.step.shrink()

    def _attempt(self, batches: list[HostBatch]) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        due = self.checkpoints.minutes_are_over()
        for micro, host in enumerate(batches):
            # Dropout is a function of (seed, step, rank): a resume repeats it without saved states.
            seed = seed_of(self.config.seed, self.state.step, micro, self.ranks.rank)
            last = micro == len(batches) - 1
            outputs.append(self.step.forward_backward(host, self.state.step, seed=seed, last=last, checkpoint_due=due))
            if first_non_finite([outputs[-1].loss]) is not None:
                break
        self.checkpoints.is_due = outputs[0].checkpoint_due
        return outputs

    def _step_weights(self) -> tuple[float | None, bool]:
        """Clip the gradient and step the optimizer, unless the gradient is not finite.

        Returns the norm before clipping, and whether the weights were updated.
        """
        unsharded = self.engine.zero_optimization_stage() == 0
        norm = gradient_norm(self.engine) if unsharded else None
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
            norm = gradient_norm(self.engine)
        return norm, not gradients_were_refused(self.engine)

    def _step_event(self, outputs: list[StepOutput], rate: float, norm: float | None, seconds: float) -> StepEvent:
        """The event of the optimizer step that ``outputs`` were accumulated for; losses and metrics are means."""
        count, tokens = len(outputs), sum(o.tokens for o in outputs)
        means = {name: sum(float(o.metrics[name]) for o in outputs) / count for name in outputs[0].metrics}
        return self._event(
            self.state.step + 1,
            loss=sum(float(o.loss) for o in outputs) / count,
            metrics=means | self.guard.metrics,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=seconds,
            rows=sum(o.rows for o in outputs),
            tokens=tokens,
            padded_tokens=sum(o.padded_tokens for o in outputs),
            flops=self.meter.flops(tokens, sum(o.squared_lengths for o in outputs)),
            peak_flops=self.meter.peak,
        )

    def _event(self, step: int, **facts: Any) -> StepEvent:
        """An event of this phase; ``epoch`` counts passes over its data."""
        epoch = (step - self.state.phase_start) * self.pace.draws_per_step / self.pace.draws_per_epoch
        rank, total = self.ranks.rank, self.total_steps
        return StepEvent(rank=rank, step=step, total_steps=total, epoch=epoch, phase=self.phase, **facts)
