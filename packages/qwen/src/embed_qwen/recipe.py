"""The keys that ms-swift's users know, compiled into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.document import lay_over
from embed_core.config.recipe import Recipe
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_qwen.curriculum_config import StageConfig
from embed_qwen.recipe_stages import (
    CURRICULUM_LEARNING_RATE,
    FINE_TUNING,
    SCRATCH,
    SCRATCH_LOSS,
    Defaults,
    LossType,
    ark_stages,
    loss_of,
    short_stages,
)

PYDOCS = "pydocs"
_LOSS_OPTIONS = (
    "infonce_use_batch",
    "infonce_hard_negatives",
    "infonce_mask_fake_negative",
    "infonce_fake_neg_margin",
    "infonce_include_qq",
    "infonce_include_dd",
    "hard_negatives",
    "labels",
)


class QwenRecipe(Recipe):
    """Qwen3-Embedding, full or LoRA, with ms-swift's losses or the paper's own, in one piece or as a curriculum.

    A key left at None takes a default that suits the model: one set for ``from-scratch``, and one for a model that is
    loaded (see :mod:`embed_qwen.recipe_stages`).
    """

    name: ClassVar[str] = "qwen"

    model_name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub (``Qwen/Qwen3-Embedding-0.6B``), or ``from-scratch``."""
    dataset_paths: tuple[str, ...] = (PYDOCS,)
    """Files of ms-swift's rows (``messages``, ``positive_messages``, ``negative_messages``), of FlagEmbedding's, or of
    any that kind ``file`` reads; with and without negatives; ``pydocs`` is the documentation of installed packages."""
    eval_data: tuple[str, ...] = ()
    """BEIR folders to evaluate on, before, between the stages and after; none = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Training rows held out to evaluate on; None = 400 of ``pydocs``, a tenth of other data (at most
    200) unless ``eval_data`` is given."""
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/qwen-DATE-TIME``."""
    seed: int = Field(default=42, ge=0)
    """Of the data order, the random weights and dropout."""

    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text, query or passage, instruction and end of text included; None = 512, from scratch 128."""
    query_max_length: int | None = Field(default=None, ge=3)
    """Tokens of a query; None = ``max_length``."""
    instruction: str | None = None
    """The task that is put before every query; None = as saved with the model, else Qwen's own; empty = none."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    tuner_type: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters."""
    lora_rank: int = Field(default=8, gt=0)
    """Rank of the adapters."""
    lora_alpha: int = Field(default=32, gt=0)
    """Their update is scaled by alpha / rank."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of a layer's inputs that its adapter does not see in training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers with adapters: ``all-linear``, names, or a regular expression."""
    lora_export: Literal["merged", "adapter"] = "merged"
    """Write the model with the adapters added to its weights, or the adapters alone."""

    loss_type: LossType = "qwen3"
    """``qwen3``: the paper's InfoNCE, in fp32, with its masks; the others are ms-swift's own."""
    temperature: float | None = Field(default=None, gt=0)
    """Similarities are divided by it (``INFONCE_TEMPERATURE``); None = 0.05 from scratch, else the loss's: 0.02 of
    qwen3, 0.1 of infonce."""
    infonce_use_batch: bool | None = None
    """Other rows' passages are negatives too; None = true."""
    infonce_hard_negatives: int | None = Field(default=None, gt=0)
    """Of infonce: hard negatives of each row, more are left out, fewer drawn again; None = as many as it has."""
    infonce_mask_fake_negative: bool | None = None
    """Leave out what scores above the positive by more than the margin; None = true of qwen3 and a trained model, else
    false: a random decoder has most to learn from that."""
    infonce_fake_neg_margin: float | None = None
    """That margin, in units of similarity; None = 0.1."""
    infonce_include_qq: bool | None = None
    """Other queries are negatives of a query; None = false of infonce, true of qwen3."""
    infonce_include_dd: bool | None = None
    """Other passages are negatives of a positive; None = false of infonce, true of qwen3."""
    hard_negatives: Literal["own", "batch"] | None = None
    """Of qwen3: whether a query has its own hard negatives or all of the batch's; None = the batch's, and its own in
    the stages of the curriculum that have any."""
    labels: Literal["relevance", "scores"] | None = None
    """Of cosine_similarity, contrastive and online_contrastive: what a pair is, 1 or 0 by its place in the row
    (`relevance`), or what the data says (`scores`: ms-swift's `label`, a teacher's scores); None = by its place."""
    negatives: int | None = Field(default=None, ge=0)
    """Hard negatives drawn per row without a curriculum; None = 7."""

    curriculum: bool | None = None
    """Three stages instead of one, of rising difficulty: no hard negatives, the easier half of those of a row, the
    harder half; 0.3, 0.4 and 0.3 of the epochs at 1, 0.8 and 0.4 of the learning rate. None = for ``from-scratch`` on
    ``pydocs``, which has no negatives: stages 2 and 3 mine them with the model as it is then."""
    stages: tuple[StageConfig, ...] | None = Field(default=None, min_length=1)
    """Stages of your own, as of the sampler ``curriculum``; what one leaves out is the run's."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate, of stage 1 where there are stages; None = 1e-3 from scratch, else 6e-6, with a curriculum
    1e-5."""
    num_train_epochs: float | None = Field(default=None, gt=0)
    """Passes over the data, of all stages together; None = 1.6 from scratch, else 10."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, whatever the epochs; of each stage where there are any."""
    per_device_train_batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch; None = 64 from scratch, else 8."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Batches per optimizer step. Each has its own in-batch negatives; a larger batch in chunks is the larger
    ``per_device_train_batch_size``, which needs no more memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, with less memory."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps spent warming up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps spent warming up, whatever the ratio; in a curriculum those of stage 1."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW; none on biases and normalisation weights."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    deepspeed: Literal["zero0", "zero1", "zero2", "zero3"] | None = None
    """ZeRO stage; None = ``engine.zero_stage``."""
    fp16: bool = False
    """Train in fp16 (CUDA only)."""
    bf16: bool | None = None
    """Multiply in bf16, over fp32 weights; None = where the hardware does so natively, false = fp32."""

    save_steps: int | None = Field(default=None, gt=0)
    """Save the training state every so many steps; None = every 10 minutes."""
    save_total_limit: int = Field(default=2, ge=1)
    """Training states kept, besides the best one."""
    eval_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before, between the stages and after; 0 = only those."""
    logging_steps: int = Field(default=1, gt=0)
    """Log every so many steps."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled model (the one inside the adapters). A key of the recipe, so that ``model.name_or_path``
    chooses the defaults too."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``data``; ``data.path`` is ``dataset_paths``."""

    @field_validator("dataset_paths", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("dataset_paths")
    @classmethod
    def _some_path(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError(f"dataset_paths is empty: name a file, or {PYDOCS!r}")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are both true: choose one of them")
        if self.stages is not None and self.curriculum is not None:
            raise ValueError(
                f"curriculum: {str(self.curriculum).lower()} and stages both say what the stages are: give one"
            )
        lora = [key for key in self.model_fields_set if key.startswith("lora_") or key == "target_modules"]
        if lora and self.tuner_type == "full":
            raise ValueError(
                f"{sorted(lora)[0]} is of no use with tuner_type full: set tuner_type: lora, or leave it out"
            )
        if self.negatives is not None and self._has_stages():
            raise ValueError("negatives: stages have their own number of negatives: set it in `stages`")
        self._loss()
        return self

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        defaults = self._defaults()
        rows = self.per_device_train_batch_size or defaults.per_device_train_batch_size
        output = {} if self.output_dir is None else {"output_dir": str(self.output_dir)}
        stage = {} if self.deepspeed is None else {"zero_stage": int(self.deepspeed[-1])}
        return {
            "name": self.name,
            "seed": self.seed,
            **output,
            "model": self._model(defaults),
            "data": lay_over(self._data(), self.data),
            "sampler": {**self._sampler(), "batch_size": rows * world_size},
            "loss": self._loss(),
            "checkpoint": self._checkpoint(),
            "evaluation": self._evaluation(),
            "train": self._train(defaults),
            "engine": {
                "precision": "fp16" if self.fp16 else {None: "auto", True: "bf16", False: "fp32"}[self.bf16],
                "gradient_checkpointing": self.gradient_checkpointing,
                **stage,
            },
            "tracking": {"log_every_steps": self.logging_steps},
        }

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        tiny = {"vocab_size": 500, "hidden": 32, "layers": 1, "heads": 2, "key_value_heads": 1}
        shape: Any = {"from_scratch": {**tiny, **self.model.get("from_scratch", {})}}
        limits = {"query_limit": 32, "corpus_limit": 64}
        return {
            "model": {"inner": shape} if self.tuner_type == "lora" else shape,
            "data": {"limit": self.data.get("limit", 128)},
            "evaluation": [one | limits for one in self._evaluation()],
        }

    def _model_name(self) -> str:
        return str(self.model.get("name_or_path", self.model_name_or_path))

    def _defaults(self) -> Defaults:
        return SCRATCH if self._model_name() == FROM_SCRATCH else FINE_TUNING

    def _paths(self) -> tuple[str, ...]:
        return (str(self.data["path"]),) if "path" in self.data else self.dataset_paths

    def _model(self, defaults: Defaults) -> dict[str, Any]:
        given = {} if self.instruction is None else {"instruction": self.instruction}
        inner = {
            "kind": "qwen3-embedding",
            "name_or_path": self.model_name_or_path,
            "query_max_length": self.query_max_length or self.max_length or defaults.query_max_length,
            "passage_max_length": self.max_length or defaults.passage_max_length,
            "trust_remote_code": self.trust_remote_code,
            **given,
        }
        inner = dict(lay_over(inner, self.model))
        if self.tuner_type == "full":
            return inner
        return {
            "kind": "lora",
            "inner": inner,
            "r": self.lora_rank,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "target_modules": self.target_modules,
            "export": self.lora_export,
        }

    def _data(self) -> dict[str, Any]:
        drawn = {} if self.negatives is None else {"negatives": self.negatives}
        if self._paths() == (PYDOCS,):
            held = {} if self.held_out_rows is None else {"held_out_queries": self.held_out_rows}
            return {"kind": PYDOCS, **held}
        held_out = self.held_out_rows if self.held_out_rows is not None or not self.eval_data else 0
        if len(self._paths()) == 1:
            return {"kind": "file", "path": self._paths()[0], "held_out_rows": held_out, **drawn}
        sources = [
            {"data": {"kind": PYDOCS, "held_out_queries": 0}} if path == PYDOCS else {"data_path": path}
            for path in self._paths()
        ]
        return {"kind": "mix", "use_all": True, "datasets": sources, "held_out_rows": held_out, **drawn}

    def _has_stages(self) -> bool:
        if self.stages is not None:
            return True
        return self._short() if self.curriculum is None else self.curriculum

    def _short(self) -> bool:
        """Whether this is the embedded default: a random decoder, and rows without negatives."""
        return self._model_name() == FROM_SCRATCH and self._paths() == (PYDOCS,)

    def _sampler(self) -> dict[str, Any]:
        if not self._has_stages():
            return {"kind": "no-duplicates"}
        return {"kind": "curriculum", "stages": self._stages()}

    def _stages(self) -> list[dict[str, Any]]:
        if self.stages is not None:
            return [stage.model_dump(mode="json", exclude_unset=True, serialize_as_any=True) for stage in self.stages]
        defaults = self._defaults()
        epochs = self.num_train_epochs or defaults.num_train_epochs
        rate = self.learning_rate or (CURRICULUM_LEARNING_RATE if defaults is FINE_TUNING else defaults.learning_rate)
        whose = {"hard_negatives": "own"} if self.loss_type == "qwen3" and self.hard_negatives is None else {}
        stages = (short_stages if self._short() else ark_stages)(epochs, rate, whose)
        if self.warmup_steps is not None:
            stages[0]["warmup_steps"] = self.warmup_steps
        return stages

    def _loss(self) -> dict[str, Any]:
        temperature = self.temperature
        if temperature is None and self.loss_type in ("qwen3", "infonce"):
            temperature = self._defaults().temperature
        options = {key: getattr(self, key) for key in _LOSS_OPTIONS}
        if self.loss_type == "qwen3" and self._defaults() is SCRATCH:
            options = {**SCRATCH_LOSS, **{key: value for key, value in options.items() if value is not None}}
            if options.get("infonce_fake_neg_margin") is not None and self.infonce_mask_fake_negative is None:
                del options["infonce_mask_fake_negative"]
        return loss_of(self.loss_type, temperature, options)

    def _checkpoint(self) -> dict[str, Any]:
        by_steps = {} if self.save_steps is None else {"every_steps": self.save_steps, "every_minutes": 0}
        return {"kind": "qwen3-embedding", "keep_last": self.save_total_limit, **by_steps}

    def _evaluation(self) -> list[dict[str, Any]]:
        if self.eval_data:
            return [{"kind": "retrieval", "path": path} for path in self.eval_data]
        none = 0 in (self.held_out_rows, self.data.get("held_out_rows"), self.data.get("held_out_queries"))
        return [] if none else [{"kind": "retrieval"}]

    def _train(self, defaults: Defaults) -> dict[str, Any]:
        return {
            "epochs": self.num_train_epochs or defaults.num_train_epochs,
            "max_steps": self.max_steps,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_clipping": self.max_grad_norm,
            "evaluate_every_steps": self.eval_steps,
            "optimizer": {
                "learning_rate": self.learning_rate or defaults.learning_rate,
                "weight_decay": self.weight_decay,
            },
            "schedule": {
                "kind": self.lr_scheduler_type,
                "warmup_ratio": self.warmup_ratio,
                "warmup_steps": self.warmup_steps,
            },
        }
