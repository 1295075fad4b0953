"""Evaluates a run's model on schedule, and remembers which step was the best."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from embed_core.config.run import TrainConfig
from embed_core.errors import ConfigError, did_you_mean
from embed_core.protocols import Encoder, Evaluator
from embed_core.train.checkpoint import TrainState


class Evaluation:
    """The evaluators of a run. Results are kept in ``state``, so that a resume knows them."""

    def __init__(
        self, evaluators: Sequence[Evaluator], encoder: Encoder, train: TrainConfig, state: TrainState
    ) -> None:
        self._evaluators, self._encoder, self._train, self._state = evaluators, encoder, train, state

    def run(self) -> tuple[Mapping[str, float], float]:
        """Run all evaluators on all ranks: their metrics, noted under the current step, and the seconds they took.

        Raises ConfigError where ``train.best_metric`` is none of them. That is asked at every evaluation, the one
        before the first step included, rather than after hours of training.
        """
        started, metrics = time.perf_counter(), {}
        for evaluator in self._evaluators:
            for name, value in evaluator.evaluate(self._encoder).items():
                metrics[f"{evaluator.name}/{name}"] = float(value)
        self._state.evaluations[self._state.step] = metrics
        best = self._train.best_metric
        if best is not None and best not in metrics:
            raise ConfigError(f"train.best_metric: {best!r} is no metric of this run: {did_you_mean(best, metrics)}")
        return metrics, time.perf_counter() - started

    @property
    def is_due(self) -> bool:
        """Whether ``train.evaluate_every_steps`` asks for an evaluation after the current step."""
        every = self._train.evaluate_every_steps
        return bool(every) and self._state.step % every == 0 and bool(self._evaluators)

    @property
    def is_done(self) -> bool:
        """Whether the model of the current step was evaluated."""
        return self._state.step in self._state.evaluations

    def remember_best(self, metrics: Mapping[str, float]) -> bool:
        """Note the current step as the best where its metric is the highest so far; whether it is."""
        name = self._train.best_metric or next(iter(metrics), None)
        if name is None:
            return False
        if self._state.best_value is not None and metrics[name] <= self._state.best_value:
            return False
        self._state.best_step, self._state.best_value = self._state.step, metrics[name]
        return True
