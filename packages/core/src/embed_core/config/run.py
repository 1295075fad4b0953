"""The whole run as one config: what every recipe compiles to and what ``--dry-run`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from embed_core.config.component import (
    CheckpointConfig,
    DatasetConfig,
    EvaluatorConfig,
    LossConfig,
    ModelConfig,
    SamplerConfig,
    Section,
)
from embed_core.errors import ConfigError, did_you_mean

SectionT = TypeVar("SectionT", bound=Section)


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019), no weight decay on biases and normalisation weights."""

    learning_rate: float = Field(default=2e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)


class ScheduleConfig(Section):
    """Learning rate over the optimizer steps: warm-up from 0, then constant, or linear or cosine decay to 0."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps spent warming up; ignored where ``warmup_steps`` is set."""
    warmup_steps: int | None = Field(default=None, ge=0)


class TrainConfig(Section):
    """How long and how to step."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data; ignored where ``max_steps`` is set."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of the whole run, in a run with phases of each."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Global batches per optimizer step. Each has its own in-batch negatives."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is NaN or infinite does: stop the run, naming rows, or skip the step, counted."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluate_every_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before the first and after the last; 0 = only those two."""
    best_metric: str | None = None
    """``evaluator/way/measure`` (higher is better) by which the best checkpoint is kept; None = the first reported."""


class EngineConfig(Section):
    """How the loop runs on the hardware. Nothing here changes the mathematics. What is `auto` is chosen when a run
    starts (`embed_core.acceleration.auto`), announced, and written to its `config.yaml` as it was given."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 weights too."""
    precision: Literal["auto", "fp32", "bf16", "bf16-weights", "fp16"] = "auto"
    """`bf16` multiplies matrices in bf16 over fp32 weights, gradients and sums (torch.autocast); `bf16-weights` and
    `fp16` also keep weights and gradients in half precision, beside fp32 master weights: less to communicate under
    ZeRO-3. Losses are fp32 always. `auto` is bf16 where the hardware multiplies it natively, CPUs included, else fp32.
    fp16 needs CUDA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "direct", "cached"] = "auto"
    """`direct` keeps the graphs of all chunks of a batch; `cached` (GradCache) keeps one at a time and encodes twice:
    the same gradient, for batches that do not fit. `auto` measures once and takes direct where it fits."""
    token_budget: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Tokens of one chunk, padding included; `auto` is 16384 on CUDA, on CPUs 1024, and 2048 in bf16."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How transformers models attend. `auto`: flash-attention without padding where it is installed, on CPUs in bf16
    our matrix products, else sdpa."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward, compute the rest again: a third more arithmetic, less memory."""
    compile: bool = False
    """`torch.compile` the encoder."""
    deduplicate: bool = True
    """Encode identical texts of a step once. Off, each occurrence has its own dropout (SimCSE)."""
    prefetch: int = Field(default=2, ge=0)
    """Steps tokenised ahead in a background thread; 0 = none."""
    token_cache: Literal["auto", "on", "off"] = "auto"
    """Whether token lists are kept on disk (`EMBED_CACHE`, shared by ranks and runs), so that a text is tokenised once.
    `auto` keeps them where a run goes through its data more than once."""

    @field_validator("token_cache", mode="before")
    @classmethod
    def _yaml_words(cls, value: Any) -> Any:
        """YAML reads a bare on and off as true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def effective_stage(self) -> int:
        """The ZeRO stage that runs: DeepSpeed's stage 0 has no fp32 master weights in half precision; its stage 1 has,
        with the same arithmetic."""
        return 1 if self.precision in ("bf16-weights", "fp16") and self.zero_stage == 0 else self.zero_stage

    def needs_equal_chunks(self, world_size: int) -> bool:
        """Whether all ranks must run the same number of forwards and backwards.

        Under ZeRO-3 a forward is a collective, and under ZeRO-2 a backward, of which the cached strategy has one per
        chunk.
        """
        return world_size > 1 and self.effective_stage >= 2

    @property
    def chunk_tokens(self) -> int:
        """``token_budget`` of a config whose `auto` values are chosen."""
        assert self.token_budget != "auto", "acceleration.auto.resolve_auto comes first"
        return self.token_budget


class TrackingConfig(Section):
    """Where the metrics go, besides ``metrics.jsonl`` in the output directory."""

    report_to: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow"], ...] = ("tensorboard",)
    project: str = "embed"
    log_every_steps: int = Field(default=1, gt=0)


class PhaseConfig(Section):
    """A part of a run with data, batches, a loss or a pace of its own, or of texts cut elsewhere. It starts from the
    weights that the phase before left, with a new optimizer and a new schedule. What it leaves out is the run's, key by
    key in ``train``; a ``max_steps`` of the run limits each phase."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names it in the display, and its folder below ``phases/`` in the output directory."""
    model: ModelConfig | None = None
    """The run's model as it reads texts in this phase: other lengths, other prompts. Its weights must have the same
    names and shapes."""
    data: DatasetConfig | None = None
    sampler: SamplerConfig | None = None
    loss: LossConfig | None = None
    train: TrainConfig | None = None


class RunConfig(Section):
    """One run."""

    name: str = "run"
    """Names the run in trackers and the default output directory."""
    plugins: tuple[str, ...] = ()
    """Plugins this run activates; ``--plugin`` puts its names here."""
    seed: int = Field(default=42, ge=0)
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/{name}-{date}-{time}``."""
    model: ModelConfig
    data: DatasetConfig
    sampler: SamplerConfig
    loss: LossConfig
    checkpoint: CheckpointConfig
    evaluation: tuple[EvaluatorConfig, ...] = ()
    train: TrainConfig = TrainConfig()
    phases: tuple[PhaseConfig, ...] = ()
    """Parts of the run, one after another; none = the run is of one piece. ``data`` is what is evaluated on, and what
    a from-scratch tokenizer learns from, in every phase."""
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _phases_of_the_sampler(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        run = handler(value)
        given = () if run.phases else run.sampler.phases(run)
        phases = tuple(_phase_of_the_sampler(phase, run.sampler.kind, info) for phase in given)
        run = run.model_copy(update={"phases": phases}) if phases else run
        for number in range(max(1, len(run.phases))):
            phase = run.in_phase(number)
            phase.data.check(phase)
        return run

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        evaluators = [getattr(e, "name", e.kind) for e in self.evaluation]
        for what, names in (("evaluators", evaluators), ("phases", [phase.name for phase in self.phases])):
            twice = {n for n in names if names.count(n) > 1}
            if twice:
                raise ValueError(f"{what} must have different names; {sorted(twice)} occurs twice")
        return self

    def only(self, phase: str | None) -> RunConfig:
        """The run with the phase of that name alone, the first where it is ``None``. Raises ConfigError."""
        names = [one.name for one in self.phases]
        if phase is not None and phase not in names:
            raise ConfigError(f"--phase {phase!r}: {_no_phase(phase, names)}")
        chosen = tuple(one for one in self.phases if one.name == (phase or names[0]))
        return self.model_copy(update={"phases": chosen})

    def in_phase(self, number: int) -> RunConfig:
        """The run as its ``number``-th phase, from 0, has it; a run without phases is its own and only one."""
        if not self.phases:
            return self
        phase = self.phases[number]
        own = {key: value for key in ("model", "data", "sampler", "loss") if (value := getattr(phase, key)) is not None}
        train = self.train if phase.train is None else _merged(self.train, phase.train)
        steps = [one.max_steps for one in (self.train, train) if one.max_steps is not None]
        train = train.model_copy(update={"max_steps": min(steps, default=None)})
        return self.model_copy(update={"phases": (), "train": train, **own})


def _no_phase(phase: str, names: list[str]) -> str:
    return f"no phase of this run: {did_you_mean(phase, names)}" if names else "this run has no phases: leave it out"


def _merged(below: SectionT, above: SectionT) -> SectionT:
    """``below`` with what was written in ``above``."""
    written: dict[str, Any] = {}
    for key in above.model_fields_set:
        value = getattr(above, key)
        written[key] = _merged(getattr(below, key), value) if isinstance(value, Section) else value
    return below.model_copy(update=written)


def _phase_of_the_sampler(phase: Mapping[str, Any], kind: str, info: ValidationInfo) -> PhaseConfig:
    """Raises ConfigError: nobody wrote the phase, so no line of a file is to blame."""
    try:
        return PhaseConfig.model_validate(phase, context=info.context)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))
        message = str(fault["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"sampler {kind!r}, phase {phase.get('name')!r}: {key}: {message}") from None
