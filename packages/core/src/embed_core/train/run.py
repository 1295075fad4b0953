"""One run, from a validated config to an exported model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pluggy
import yaml
from torch import Tensor

from embed_core.acceleration import auto
from embed_core.config.registry import Registry
from embed_core.config.resolve import default_output_dir, plain
from embed_core.config.run import RunConfig
from embed_core.datasets.wrappers import check_loss
from embed_core.distributed.process_group import RankLostError, Ranks, is_lost_rank, join
from embed_core.errors import CheckpointError, ConfigError
from embed_core.events import RunEvent
from embed_core.observers.attached import RunObservers
from embed_core.protocols import Announce, Checkpointer, Dataset, Evaluator, Model
from embed_core.train.build import build_context, seed_everything
from embed_core.train.checkpoint import CheckpointStore, TrainState, check_same_run
from embed_core.train.export import export_model, versions
from embed_core.train.output_dir import EXPORT, OutputDir, write_text
from embed_core.train.phases import PhaseModels, Phases, free_engine, load_weights
from embed_core.train.trainer import Components, Pace, Runtime, Trainer
from embed_core.zero.engine import Trainable, initialize
from embed_core.zero.state import full_state


@dataclass(frozen=True)
class Options:
    """Options that say how to run; the config says what."""

    resume: bool = False
    overwrite: bool = False
    command: str = ""
    """The command line, for the model card."""
    announce: Announce = print
    model: Model | None = None
    """A model built by the caller, instead of ``config.model``'s."""
    dataset: Dataset | None = None
    """A dataset built by the caller, instead of ``config.data``'s."""


@dataclass(frozen=True)
class RunResult:
    """The results of a finished run."""

    output_dir: Path
    export_dir: Path
    steps: int
    evaluations: Mapping[int, Mapping[str, float]]
    model: Any
    """The trained model (its weights are sharded under ZeRO-3)."""


def run(config: RunConfig, manager: pluggy.PluginManager, registry: Registry, options: Options) -> RunResult:
    """Train, evaluate, export. Fires ``embed_run_ended`` exactly once, with the error if there was one.

    Raises EmbedError for everything a user can mend, and RankLostError where another rank stopped first.
    """
    if options.resume and options.overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them")
    ranks = join(config.engine.device)
    announce: Announce = options.announce if ranks.rank == 0 else lambda line: None
    config = with_output_dir(config, ranks)
    assert config.output_dir is not None
    session = _Session(config, manager, registry, replace(options, announce=announce), ranks)
    try:
        result = session.run()
    except BaseException as caught:
        error: BaseException = caught
        if is_lost_rank(caught):
            error = RankLostError(f"rank {ranks.rank} stopped: another rank stopped before it, whose message says why")
        session.failed(error)
        try:
            session.ended(error)
        except Exception as second:  # what ended the run matters more than an observer that cannot cope with it
            announce(f"an observer failed at the end of the run: {type(second).__name__}: {second}")
        if error is caught:
            raise
        raise error from caught
    session.ended(None)
    return result


def with_output_dir(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The config with its output directory decided, the same on all ranks."""
    path = config.output_dir or default_output_dir(config.name, time.strftime("%Y%m%d-%H%M%S"))
    return config.model_copy(update={"output_dir": Path(ranks.broadcast(str(path)))})


class _Session:
    """The stages of :func:`run`, in the order of the file."""

    def __init__(
        self, config: RunConfig, manager: pluggy.PluginManager, registry: Registry, options: Options, ranks: Ranks
    ) -> None:
        assert config.output_dir is not None
        self.given = config
        """The config as the user has it, which is written down. ``config`` has `auto` resolved for this machine."""
        self.config = config.model_copy(update={"engine": auto.resolve_auto(config.engine, ranks, options.announce)})
        self.registry, self.options, self.ranks = registry, options, ranks
        self.outputs = OutputDir(config.output_dir)
        self.observers = RunObservers(manager, self.config, config.output_dir)
        self.store = CheckpointStore(self.outputs.checkpoints, config.checkpoint.keep_last, ranks)
        self.runtime = Runtime(ranks, self.store, self.observers.step_ended, options.announce)
        self.state = TrainState()
        self.started = False
        """Whether the output directory is this run's."""

    def run(self) -> RunResult:
        """Check, build, train every phase, export."""
        options = self.options
        self.ranks.on_rank_0(lambda: self.outputs.check(resume=options.resume, overwrite=options.overwrite))
        self.observers.check()  # before a long build, and before --overwrite removes anything
        saved = self.ranks.on_rank_0(self._newest_state) if options.resume else None
        first = saved.phase if saved is not None else 0
        context = build_context(self.config, self.registry, self.ranks, options.announce, options.dataset)
        self.phases = Phases(self.config, context, self.outputs)
        self.phases.check(self.ranks.world_size)
        # Data first: a missing file shows before a large model has loaded, and a from-scratch one needs it.
        seed_everything(self.config.seed)
        held_out = context.dataset()
        evaluators = tuple(e.build(context, held_out) for e in self.config.evaluation)
        self.phases.build_ahead(first)
        self.models = PhaseModels(self.phases.configs, options.model)
        checkpointer = self.config.checkpoint.build(context)
        weights: Mapping[str, Tensor] | None = None
        last = len(self.phases) - 1
        for number in range(first, last):
            trainer = self._train(number, self._build(number, evaluators, weights), saved)
            weights = self._pass_on(number, trainer, checkpointer)
            saved = None
            del trainer  # and with it the engine's memory, before there is another
        trainer = self._train(last, self._build(last, evaluators, weights), saved)
        export = self._export(trainer, checkpointer, self.outputs.export)
        self.ranks.on_rank_0(lambda: self._write_status("finished"))
        return RunResult(self.outputs.path, export, self.state.step, self.state.evaluations, trainer.parts.model)

    def _build(
        self, number: int, evaluators: tuple[Evaluator, ...], weights: Mapping[str, Tensor] | None
    ) -> Components:
        """The components of a phase, with the ``weights`` that the phase before left."""
        dataset, sampler = self.phases.data(number)
        context = self.phases.context_of(number)
        if weights is not None:
            # The first phase said what there is to say about the model, and its new start is overwritten here.
            context = replace(context, announce=lambda line: None)
        model = self.models.build(context, number)
        module: Any = model
        if weights is not None:
            load_weights(module, weights, self.ranks)
        loss = self.phases.configs[number].loss.build(replace(context, model=model))
        check_loss(loss, dataset)
        return Components(model, dataset, sampler, loss, evaluators)

    def _train(self, number: int, parts: Components, saved: TrainState | None) -> Trainer:
        """Train one phase: all of it, or what is left of it after ``saved``."""
        config = self.phases.configs[number]
        self.state = self._state(config, parts, number)
        if self.options.resume and not self.started:
            self._check_resumed(saved, number, Pace.of(config, parts.sampler))
        module = Trainable(parts.model, parts.loss)
        engine = initialize(module, config.engine, config.train, self.ranks, self.options.announce)
        if saved is not None:
            self.store.load(engine, saved.step)
            # States saved from here on are of these ranks.
            self.state = replace(saved, world_size=self.state.world_size, zero_stage=self.state.zero_stage)
        if not self.started:
            self._start(saved)
        name = self.phases.names[number]
        total = self.phases.total_steps(self.state.phase_start, number)
        trainer = Trainer(config, parts, engine, self.state, self.runtime, name, total)
        if name:
            self.options.announce(
                f"phase {number + 1} of {len(self.phases)}, {name}: {trainer.pace.total_steps:,} steps"
            )
        engine.train()
        trainer.train()
        self._restore_best(trainer)
        self.ranks.on_rank_0(lambda: self.store.note(self.state))
        return trainer

    def _pass_on(self, number: int, trainer: Trainer, checkpointer: Checkpointer) -> Mapping[str, Tensor]:
        """Export the model of a phase, make the next phase's rows with it where they need it, and free its engine."""
        self._export(trainer, checkpointer, self.outputs.phase(self.phases.names[number]) / EXPORT)
        folder = self.outputs.phase(self.phases.names[number + 1])
        self.ranks.on_rank_0(lambda: folder.mkdir(parents=True, exist_ok=True))
        self.phases.context.encoder = trainer.encoder
        self.phases.data(number + 1)
        self.phases.context.encoder = None
        model: Any = trainer.parts.model
        weights = full_state(trainer.engine, model, self.ranks)
        free_engine(trainer.engine.destroy)
        return weights

    def _state(self, run: RunConfig, parts: Components, number: int) -> TrainState:
        """The state at the beginning of a phase, after the one before."""
        config = plain(run)
        identity = {key: config[key] for key in ("seed", "model", "sampler", "loss")}
        identity["data"] = parts.dataset.fingerprint()
        identity["precision"] = run.engine.precision
        identity["gradient_accumulation_steps"] = run.train.gradient_accumulation_steps
        return replace(
            self.state,
            phase=number,
            phase_start=self.state.step,
            best_step=None,
            best_value=None,
            world_size=self.ranks.world_size,
            zero_stage=run.engine.effective_stage,
            identity=identity,
        )

    def _newest_state(self) -> TrainState | None:
        """The newest state on disk; ``None`` where the run ended before its first one."""
        steps = self.store.steps()
        saved = self.store.read_state(steps[-1]) if steps else None
        count = max(1, len(self.config.phases))
        if saved is not None and saved.phase >= count:
            raise CheckpointError(
                f"--resume: this is not the run that was saved (phase {saved.phase + 1} of it, this one has {count}): "
                "use its settings, or a new run"
            )
        return saved

    def _check_resumed(self, saved: TrainState | None, number: int, pace: Pace) -> None:
        """Raises CheckpointError, on every rank, where ``saved`` is of another run, or nothing is left to do."""
        if saved is None:
            self.options.announce("no checkpoint was written before the run stopped: starting from step 0")
            return

        def check() -> None:
            check_same_run(saved, self.state)
            # A run that was stopped between its last step and its export still has that to do.
            is_last = number == len(self.phases) - 1
            finished = is_last and (self.outputs.status() or {}).get("status") == "finished"
            end = saved.phase_start + pace.total_steps
            if saved.step > end or (finished and saved.step == end):
                raise CheckpointError(
                    f"--resume: the run in {str(self.outputs.path)!r} has done {saved.step} steps and {end} "
                    "were asked for: raise --max-steps to train on, or start a new run"
                )

        self.ranks.on_rank_0(check)
        self.options.announce(f"resuming after step {saved.step}")

    def _start(self, resumed: TrainState | None) -> None:
        """Take over the output directory: from here on it is this run's."""

        def start() -> None:
            self.outputs.create(overwrite=self.options.overwrite)
            self.store.clear_leftovers()
            text = yaml.safe_dump(plain(self.given), sort_keys=False, allow_unicode=True)
            write_text(self.outputs.path / "config.yaml", text)
            self.started = True
            self._write_status("running")
            self.observers.start(resumed.step if resumed else None, self.options.announce)

        self.ranks.on_rank_0(start)
        self.started = True

    def _restore_best(self, trainer: Trainer) -> None:
        """Load the best model seen instead of the last, where evaluations during the run found a better one."""
        last = self.state.evaluations.get(self.state.step, {})
        if self.state.best_step is None or not last or trainer.evaluation.remember_best(last):
            return
        if self.state.best_step != self.state.step and self.state.best_step in self.store.steps():
            self.options.announce(f"exporting the best model, of step {self.state.best_step}")
            self.store.load(trainer.engine, self.state.best_step)

    def _export(self, trainer: Trainer, checkpointer: Checkpointer, target: Path) -> Path:
        return export_model(trainer, checkpointer, self.config, self.options.command, self.ranks, target)

    def _write_status(self, status: str, **more: Any) -> None:
        facts = {"status": status, "name": self.config.name, "steps": self.state.step, "command": self.options.command}
        best = {"best_step": self.state.best_step, "best_value": self.state.best_value}
        self.outputs.write_status(**facts, **best, versions=versions(), evaluations=self.state.evaluations, **more)

    def failed(self, error: BaseException) -> None:
        """Note the failure, on rank 0, where the directory is already this run's."""
        if self.ranks.rank == 0 and self.started and self.outputs.path.is_dir():
            with suppress(OSError):  # a full disk is perhaps why the run failed
                self._write_status("failed", error=f"{type(error).__name__}: {error}")

    def ended(self, error: BaseException | None) -> None:
        """Tell the observers that the run has ended, with the error if there was one."""
        export = self.outputs.export if error is None else None
        evaluations = self.state.evaluations
        self.observers.run_ended(
            RunEvent(self.ranks.rank, self.outputs.path, self.state.step, error, export, evaluations)
        )
