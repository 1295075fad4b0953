"""The keys that FlagEmbedding's users know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from embed_bge.defaults import FINE_TUNING, SCRATCH, Defaults
from embed_core.config.document import lay_over
from embed_core.config.recipe import Recipe
from embed_core.models.from_scratch import FROM_SCRATCH

PYDOCS = "pydocs"
NO_IN_BATCH = "no_in_batch_neg"
"""What FlagEmbedding's users put into the names of files and folders whose rows go without in-batch negatives."""


class BGERecipe(Recipe):
    """BGE-M3 unified fine-tuning.

    A key left at None takes a default that suits the model: one set for ``from-scratch``, which has to learn language
    from the run's own texts, and FlagEmbedding's for a model that is loaded (see :mod:`embed_bge.defaults`).
    """

    name: ClassVar[str] = "bge"

    model_name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub (``BAAI/bge-m3``), or ``from-scratch``."""
    train_data: str | tuple[str, ...] = PYDOCS
    """Rows of any format: a file, a folder of files or of such folders, a BEIR folder, a dataset of the hub, or several
    of them; or ``pydocs``: the documentation of installed Python packages. What has
    ``no_in_batch_neg`` in the name of its file or folder is trained without in-batch negatives."""
    eval_data: tuple[str, ...] = ()
    """BEIR folders to evaluate on, before and after training; none = the rows held out."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Training rows held out to evaluate on; None = 400 of ``pydocs``, a tenth of other data (at most
    200) unless ``eval_data`` is given."""
    output_dir: Path | None = None
    """Where the run writes; None = ``runs/bge-DATE-TIME``."""
    seed: int = Field(default=42, ge=0)
    """Of the data order, the random weights and dropout."""

    train_group_size: int = Field(default=8, ge=1)
    """Passages per row, the positive and its hard negatives; rows without negatives have the positive only."""
    same_dataset_within_batch: bool = False
    """Every batch comes from one source (a file). Off, no two rows of a batch share a text."""
    small_threshold: int = 0
    """Files of fewer rows are merged within their folder. Never so here: only 0 is accepted."""
    drop_threshold: int = 0
    """What was merged and has fewer rows is dropped. Never so here: only 0 is accepted."""
    negatives_cross_device: bool = True
    """Passages of all ranks are each other's negatives. Always so here: False is refused."""
    query_max_len: int | None = Field(default=None, ge=3)
    """Tokens of a query; None = 64 from scratch, else 32."""
    passage_max_len: int | None = Field(default=None, ge=3)
    """Tokens of a passage; None = 192 from scratch, else 128."""
    pad_to_multiple_of: int | None = Field(default=None, gt=0)
    """Pad to a multiple of so many tokens; None = to the longest text of a chunk."""
    query_instruction_for_retrieval: str | None = None
    """Put before every query whose row has no ``prompt``."""
    query_instruction_format: str = "{}{}"
    """How instruction and query join."""
    passage_instruction_for_retrieval: str | None = None
    """Put before every passage."""
    passage_instruction_format: str = "{}{}"
    """How instruction and passage join."""

    unified_finetuning: bool = True
    """Train the lexical and multi-vector heads besides the dense vector."""
    sentence_pooling_method: Literal["cls", "mean", "last_token"] | None = None
    """Where the dense vector comes from; None = ``cls``, as BGE-M3, and ``mean`` from scratch."""
    normalize_embeddings: bool = True
    """Whether dense and multi-vectors have unit length."""
    colbert_dim: int = -1
    """Width of the multi-vectors; -1 = as saved with the model, else the encoder's hidden size."""
    fix_encoder: bool = False
    """Train the two heads only."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    temperature: float = Field(default=0.02, gt=0)
    """Scores are divided by it."""
    use_self_distill: bool = False
    """The sum of the three scores teaches each of them."""
    self_distill_start_step: int = Field(default=-1, ge=-1)
    """Optimizer steps before self-distillation starts; -1 = from the first one."""
    knowledge_distillation: bool = False
    """Learn from the teacher scores in the data (``pos_scores``, ``neg_scores``)."""
    kd_loss_type: Literal["kl_div", "m3_kd_loss"] = "kl_div"
    """How: soft targets besides the hard ones, or the teacher-weighted sum over the group."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Teacher scores are divided by it."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; None = 1e-3 from scratch, else 1e-5."""
    num_train_epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; None = 2 from scratch, else 3."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, whatever the epochs."""
    per_device_train_batch_size: int | None = Field(default=None, gt=0)
    """Rows per rank and batch; None = 64 from scratch, else 8."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    """Batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, with less memory."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps spent warming up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps spent warming up, whatever the ratio."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW; none on biases and normalisation weights."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    fp16: bool = False
    """Train in fp16 (CUDA only)."""
    bf16: bool | None = None
    """Multiply in bf16, over fp32 weights; None = where the hardware does so natively, false = fp32."""

    save_steps: int | None = Field(default=None, gt=0)
    """Save the training state every so many steps; None = every 10 minutes."""
    save_total_limit: int = Field(default=2, ge=1)
    """Training states kept, besides the best one."""
    eval_steps: int = Field(default=0, ge=0)
    """Evaluate every so many steps, besides before and after; 0 = only those two."""
    logging_steps: int = Field(default=1, gt=0)
    """Log every so many steps."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``model``. Keys of the recipe, so that ``model.name_or_path`` chooses the defaults too."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``data``; ``data.path`` is ``train_data``."""

    @field_validator("negatives_cross_device")
    @classmethod
    def _always_cross_device(cls, value: bool) -> bool:
        if not value:
            raise ValueError(
                "negatives_cross_device: false is not offered: the loss sees the batch of all ranks, so that it does "
                "not depend on their number; leave the key out"
            )
        return value

    @field_validator("small_threshold", "drop_threshold")
    @classmethod
    def _no_threshold(cls, value: int, info: ValidationInfo) -> int:
        if value:
            raise ValueError(
                f"{info.field_name}: {value} is not offered: every source keeps its rows and its batches, whatever its "
                "size; set 0, or leave the key out"
            )
        return value

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 are both true: choose one of them")
        return self

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        defaults = SCRATCH if self._model_name() == FROM_SCRATCH else FINE_TUNING
        output = {} if self.output_dir is None else {"output_dir": str(self.output_dir)}
        rows = self.per_device_train_batch_size or defaults.per_device_train_batch_size
        return {
            "name": self.name,
            "seed": self.seed,
            **output,
            "model": lay_over(self._model(defaults), self.model),
            "data": lay_over(self._data(), self.data),
            "sampler": {
                "kind": "by-source" if self.same_dataset_within_batch else "no-duplicates",
                "batch_size": rows * world_size,
            },
            "loss": self._loss(),
            "checkpoint": self._checkpoint(),
            "evaluation": self._evaluation(),
            "train": self._train(defaults),
            "engine": {"precision": self._precision()},
            "tracking": {"log_every_steps": self.logging_steps},
        }

    def _precision(self) -> str:
        if self.fp16:
            return "fp16"
        return {None: "auto", True: "bf16", False: "fp32"}[self.bf16]

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        tiny = {
            "model": {"from_scratch": {"vocab_size": 500, "hidden": 32, "layers": 1, "heads": 2}},
            "data": {"limit": 128},
        }
        limits = {"query_limit": 32, "corpus_limit": 64}
        overlay: dict[str, Any] = _without(tiny, {"model": self.model, "data": self.data})
        return overlay | {"evaluation": [one | limits for one in self._evaluation()]}

    def _model_name(self) -> str:
        return str(self.model.get("name_or_path", self.model_name_or_path))

    def _data_path(self) -> Any:
        return self.data.get("path", self.train_data)

    def _model(self, defaults: Defaults) -> dict[str, Any]:
        same = (
            "unified_finetuning",
            "normalize_embeddings",
            "colbert_dim",
            "fix_encoder",
            "trust_remote_code",
            "pad_to_multiple_of",
            "query_instruction_for_retrieval",
            "query_instruction_format",
            "passage_instruction_for_retrieval",
            "passage_instruction_format",
            "gradient_checkpointing",
        )
        return {
            "kind": "bge-m3",
            "name_or_path": self.model_name_or_path,
            "query_max_len": self.query_max_len or defaults.query_max_len,
            "passage_max_len": self.passage_max_len or defaults.passage_max_len,
            "sentence_pooling_method": self.sentence_pooling_method or defaults.sentence_pooling_method,
        } | {key: getattr(self, key) for key in same}

    def _data(self) -> dict[str, Any]:
        apart = {} if self._data_path() == PYDOCS else {"no_in_batch_negatives": [NO_IN_BATCH]}
        return {
            "kind": "auto",
            "path": self.train_data,
            "negatives": self.train_group_size - 1,
            "held_out_rows": self._held_out_rows(),
            **apart,
        }

    def _held_out_rows(self) -> int | None:
        if self.held_out_rows is not None or self._data_path() == PYDOCS:
            return self.held_out_rows
        return 0 if self.eval_data else None

    def _loss(self) -> dict[str, Any]:
        same = (
            "temperature",
            "unified_finetuning",
            "use_self_distill",
            "self_distill_start_step",
            "knowledge_distillation",
            "kd_loss_type",
            "teacher_temperature",
        )
        return {"kind": "bge-unified"} | {key: getattr(self, key) for key in same}

    def _checkpoint(self) -> dict[str, Any]:
        by_steps = {} if self.save_steps is None else {"every_steps": self.save_steps, "every_minutes": 0}
        return {"kind": "bge-m3", "keep_last": self.save_total_limit, **by_steps}

    def _evaluation(self) -> list[dict[str, Any]]:
        if self.eval_data:
            return [{"kind": "retrieval", "path": path} for path in self.eval_data]
        held_out = self.data.get("held_out_rows", self._held_out_rows())
        return [] if held_out == 0 else [{"kind": "retrieval"}]

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


def _without(overlay: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``overlay`` less the keys that ``given`` sets, at every depth."""
    kept: dict[str, Any] = {}
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(given.get(key, {}), Mapping):
            kept[key] = _without(value, given.get(key, {}))
        elif key not in given:
            kept[key] = value
    return kept
