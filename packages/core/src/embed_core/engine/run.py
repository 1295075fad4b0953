"""One run from a validated config to an exported model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import pluggy
import yaml
from torch import Tensor, nn

from embed_core.card import RunCard
from embed_core.config.load import default_output_dir, plain
from embed_core.config.run import RunConfig
from embed_core.datasets.wrappers import check_loss
from embed_core.engine import choose, sharding
from embed_core.engine.building import build_context, seed_everything
from embed_core.engine.outputs import EXPORT, OutputDir, replace_directory, write_text
from embed_core.engine.phases import Phases, Weights, load, release
from embed_core.engine.ranks import RankLostError, Ranks, is_lost_rank, join
from embed_core.engine.resume import CheckpointStore, TrainState, check_same_run
from embed_core.engine.trainer import Components, Pace, Trainer
from embed_core.errors import CheckpointError, ConfigError, EmbedError
from embed_core.events import RunEvent
from embed_core.protocols import Announce, Checkpointer, Dataset, Evaluator, ExportsOtherwise, Model
from embed_core.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what."""

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
    """What a finished run leaves."""

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
    config = replace_output(config, ranks)
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


def replace_output(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The config with its output directory decided, the same on all ranks."""
    path = config.output_dir or default_output_dir(config.name, time.strftime("%Y%m%d-%H%M%S"))
    return config.model_copy(update={"output_dir": Path(ranks.broadcast(str(path)))})


class _Session:
    """The steps of :func:`run`, in the order of the file."""

    def __init__(
        self, config: RunConfig, manager: pluggy.PluginManager, registry: Registry, options: Options, ranks: Ranks
    ) -> None:
        assert config.output_dir is not None
        self.given = config
        """As the user has it: what is written down. ``config`` has what `auto` means here."""
        self.config = config.model_copy(update={"engine": choose.chosen(config.engine, ranks, options.announce)})
        self.manager, self.registry = manager, registry
        self.options, self.ranks, self.announce = options, ranks, options.announce
        self.outputs = OutputDir(config.output_dir)
        self.store = CheckpointStore(self.outputs.checkpoints, config.checkpoint.keep_last, ranks)
        self.state = TrainState()
        self._started = False
        """Whether the output directory is this run's, on rank 0."""
        self._started_here = False
        """The same, on every rank."""
        self._observers: list[Any] = []

    def run(self) -> RunResult:
        self._on_rank_0(lambda: self.outputs.check(resume=self.options.resume, overwrite=self.options.overwrite))
        self._check_trackers()
        saved = self._newest_state() if self.options.resume else None
        first = saved.phase if saved is not None else 0
        context = build_context(self.config, self.registry, self.ranks, self.announce, self.options.dataset)
        self.phases = Phases(self.config, context, self.outputs)
        self.phases.check(self.ranks.world_size)
        # Data first: a missing file shows before a large model has loaded, and a from-scratch one needs it.
        seed_everything(self.config.seed)
        held_out = context.dataset()
        evaluators = tuple(e.build(context, held_out) for e in self.config.evaluation)
        self.phases.build_ahead(first)
        self.models = Weights(self.phases.configs, self.options.model)
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
        self._on_rank_0(lambda: self._write_status("finished"))
        return RunResult(self.outputs.path, export, self.state.step, self.state.evaluations, trainer.parts.model)

    def _build(
        self, number: int, evaluators: tuple[Evaluator, ...], weights: Mapping[str, Tensor] | None
    ) -> Components:
        """The parts of a phase, with the ``weights`` that the one before left."""
        dataset, sampler = self.phases.data(number)
        context = self.phases.context_of(number)
        # What building it says was said at the first phase; of a new start nothing is left once weights are passed on.
        model = self.models.build(context if weights is None else replace(context, announce=lambda line: None), number)
        module: Any = model
        if weights is not None:
            load(module, weights, self.ranks)
        loss = self.phases.configs[number].loss.build(replace(context, model=model))
        check_loss(loss, dataset)
        return Components(model, dataset, sampler, loss, evaluators)

    def _train(self, number: int, parts: Components, saved: TrainState | None) -> Trainer:
        """One phase, all of it or what is left of it after ``saved``."""
        config = self.phases.configs[number]
        self.state = self._state(config, parts, number)
        if self.options.resume and not self._started_here:
            self._check_resumed(saved, number, Pace.of(config, parts.sampler))
        module = sharding.Trainable(parts.model, parts.loss)
        engine = sharding.initialize(module, config.engine, config.train, self.ranks, self.announce)
        if saved is not None:
            self.store.load(engine, saved.step)
            # What is saved from here on is by these ranks.
            self.state = replace(saved, world_size=self.state.world_size, zero_stage=self.state.zero_stage)
        if not self._started_here:
            self._start(saved)
        total = self.phases.total_steps(self.state.phase_start, number)
        name = self.phases.names[number]
        trainer = Trainer(
            config, parts, engine, self.ranks, self.state, self.store, self._notify, self.announce, name, total
        )
        if name:
            self.announce(f"phase {number + 1} of {len(self.phases)}, {name}: {trainer.pace.total_steps:,} steps")
        engine.train()
        trainer.train()
        self._restore_best(trainer)
        self._on_rank_0(lambda: self.store.note(self.state))
        return trainer

    def _pass_on(self, number: int, trainer: Trainer, checkpointer: Checkpointer) -> Mapping[str, Tensor]:
        """Export what a phase leaves, make the next one's rows with it if they are, and free its engine."""
        self._export(trainer, checkpointer, self.outputs.phase(self.phases.names[number]) / EXPORT)
        folder = self.outputs.phase(self.phases.names[number + 1])
        self._on_rank_0(lambda: folder.mkdir(parents=True, exist_ok=True))
        self.phases.context.encoder = trainer.encoder
        self.phases.data(number + 1)
        self.phases.context.encoder = None
        model: Any = trainer.parts.model
        weights = sharding.full_state(trainer.engine, model, self.ranks)
        release(trainer.engine.destroy)
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
            zero_stage=sharding.effective_stage(run.engine),
            identity=identity,
        )

    def _check_trackers(self) -> None:
        """One that is not installed shows before a long build, and before ``--overwrite`` removes anything."""
        from embed_core.tracking import make_trackers

        # Ranks other than 0 have no trackers: asked as such a rank, it checks and starts none.
        make_trackers(self.config.tracking, name=self.config.name, output_dir=self.outputs.path, parameters={}, rank=1)

    def _newest_state(self) -> TrainState | None:
        """The newest state on disk; ``None`` when the run died before its first one."""

        def newest() -> TrainState | None:
            steps = self.store.steps()
            return self.store.read_state(steps[-1]) if steps else None

        saved: TrainState | None = self._on_rank_0(newest)
        count = max(1, len(self.config.phases))
        if saved is not None and saved.phase >= count:
            raise CheckpointError(
                f"--resume: this is not the run that was saved (phase {saved.phase + 1} of it, this one has {count}): "
                "use its settings, or a new run"
            )
        return saved

    def _check_resumed(self, saved: TrainState | None, number: int, pace: Pace) -> None:
        """Raises CheckpointError, on every rank, where ``saved`` is not of this run or it has nothing left to do."""
        if saved is None:
            self.announce("no checkpoint was written before the run stopped: starting from step 0")
            return

        def check() -> None:
            check_same_run(saved, self.state)
            self._check_something_is_left(saved, number, saved.phase_start + pace.total_steps)

        self._on_rank_0(check)
        self.announce(f"resuming after step {saved.step}")

    def _check_something_is_left(self, saved: TrainState, number: int, end: int) -> None:
        """A run that was stopped between its last step and its export still has that to do."""
        finished = (self.outputs.status() or {}).get("status") == "finished"
        if saved.step > end or (finished and saved.step == end and number == len(self.phases) - 1):
            raise CheckpointError(
                f"--resume: the run in {str(self.outputs.path)!r} has done {saved.step} steps and {end} "
                "were asked for: raise --max-steps to train on, or start a new run"
            )

    def _start(self, resumed: TrainState | None) -> None:
        """From here on the output directory is this run's."""

        def start() -> None:
            self.outputs.prepare(overwrite=self.options.overwrite)
            self.store.clear_leftovers()
            text = yaml.safe_dump(plain(self.given), sort_keys=False, allow_unicode=True)
            write_text(self.outputs.path / "config.yaml", text)
            self._started = True
            self._write_status("running")
            self._observe(resumed)

        self._on_rank_0(start)
        self._started_here = True

    def _observe(self, resumed: TrainState | None) -> None:
        from embed_core.metrics_log import MetricsLog
        from embed_core.tracking import make_trackers

        step, settings = (resumed.step if resumed else None), self.config.tracking
        trackers = make_trackers(
            settings,
            name=self.config.name,
            output_dir=self.outputs.path,
            parameters=plain(self.config),
            announce=self.announce,
            resumed_step=step,
        )
        for observer in (MetricsLog(self.outputs.metrics, settings.log_every_steps, step), *trackers):
            self.manager.register(observer)
            self._observers.append(observer)

    def _notify(self, event: Any) -> None:
        self.manager.hook.embed_step_ended(event=event)

    def _restore_best(self, trainer: Trainer) -> None:
        """Export the best model seen, not the last, where evaluations during the run found a better one."""
        last = self.state.evaluations.get(self.state.step, {})
        if self.state.best_step is None or not last or trainer.remember_best(last):
            return
        if self.state.best_step != self.state.step and self.state.best_step in self.store.steps():
            self.announce(f"exporting the best model, of step {self.state.best_step}")
            self.store.load(trainer.engine, self.state.best_step)

    def _export(self, trainer: Trainer, checkpointer: Checkpointer, target: Path) -> Path:
        model: Any = trainer.parts.model
        loss: Any = trainer.parts.loss
        state = sharding.full_state(trainer.engine, model, self.ranks)
        of_loss = sharding.full_state(trainer.engine, loss, self.ranks) if isinstance(loss, nn.Module) else {}

        def write() -> Path:
            temporary = target.with_name(f".{target.name}.tmp")
            if temporary.exists():
                import shutil

                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            card = self._card(trainer, of_loss)
            if isinstance(model, ExportsOtherwise):
                model.export_with(checkpointer, state, temporary, card)
            else:
                checkpointer.export(model, state, temporary, card)
            replace_directory(temporary, target)
            return target

        return self._on_rank_0(write)

    def _card(self, trainer: Trainer, loss_state: Mapping[str, Tensor]) -> RunCard:
        config = plain(self.config)
        dataset = trainer.parts.dataset
        return RunCard(
            name=self.config.name,
            base_model=str(config["model"].get("name_or_path", config["model"]["kind"])),
            config=config,
            data={"name": dataset.name, "rows": len(dataset), "fingerprint": dataset.fingerprint()},
            evaluations=self.state.evaluations,
            command=self.options.command,
            steps=self.state.step,
            versions=_versions(),
            loss_state=loss_state,
        )

    def _write_status(self, status: str, **more: Any) -> None:
        facts = {"status": status, "name": self.config.name, "steps": self.state.step, "command": self.options.command}
        best = {"best_step": self.state.best_step, "best_value": self.state.best_value}
        self.outputs.write_status(**facts, **best, versions=_versions(), evaluations=self.state.evaluations, **more)

    def failed(self, error: BaseException) -> None:
        """Note the failure where the directory is already this run's; ``_started`` is set on rank 0 only."""
        if self._started and self.outputs.path.is_dir():
            with suppress(OSError):  # a full disk is perhaps why the run failed
                self._write_status("failed", error=f"{type(error).__name__}: {error}")

    def ended(self, error: BaseException | None) -> None:
        """Tell the observers, then unregister this run's own: the manager may serve another run of the process."""
        export = self.outputs.export if error is None else None
        event = RunEvent(self.ranks.rank, self.outputs.path, self.state.step, error, export, self.state.evaluations)
        try:
            self.manager.hook.embed_run_ended(event=event)
        finally:
            for observer in self._observers:
                self.manager.unregister(observer)
            self._observers.clear()

    def _on_rank_0(self, function: Callable[[], T]) -> T:
        """Run on rank 0; every rank gets the result, or raises the same EmbedError."""
        answer: tuple[T | None, str, str] = (None, "", "")
        if self.ranks.rank == 0:
            try:
                answer = (function(), "", "")
            except (EmbedError, OSError) as error:
                answer = (None, type(error).__name__, str(error))
        result: Any
        result, kind, message = self.ranks.broadcast(answer)
        if kind:
            classes: Sequence[type[EmbedError]] = EmbedError.__subclasses__()
            raise next((c for c in classes if c.__name__ == kind), CheckpointError)(message)
        answered: T = result
        return answered


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("embed-core", "torch", "transformers", "deepspeed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
