"""The keys that ms-swift's users know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.document import lay_over
from embed_core.config.retrieval_keys import PYDOCS, EvaluationKeys, LengthKeys, NegativesKeys, TemperatureKeys
from embed_core.config.training_keys import TrainingKeys
from embed_qwen.curriculum_config import StageConfig
from embed_qwen.recipe_stages import (
    BY_MODEL,
    CURRICULUM_LEARNING_RATE,
    SCRATCH_LOSS,
    SCRATCH_TEMPERATURE,
    LossType,
    ark_stages,
    loss_of,
    short_stages,
)

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


class QwenRecipe(TrainingKeys, EvaluationKeys, LengthKeys, NegativesKeys, TemperatureKeys):
    """Qwen3-Embedding, full or LoRA, with ms-swift's losses or the paper's own, in one piece or as a curriculum.

    A key left at None takes a default that suits the model: one set for ``from-scratch``, and one for a model that is
    loaded (see :mod:`embed_qwen.recipe_stages`).
    """

    name: ClassVar[str] = "qwen"
    by_model: ClassVar[Mapping[str, tuple[Any, Any]]] = BY_MODEL
    addons: ClassVar[Mapping[str, Mapping[str, Any] | str]] = {"lora": {"lora_rank": 8}}

    dataset_paths: tuple[str, ...] = (PYDOCS,)
    """Files of ms-swift's rows (``messages``, ``positive_messages``, ``negative_messages``), of FlagEmbedding's, or of
    any that kind ``file`` reads; with and without negatives; ``pydocs`` is the documentation of installed packages."""

    instruction: str | None = None
    """The task that is put before every query; None = as saved with the model, else Qwen's own; empty = none."""

    loss_type: LossType = "qwen3"
    """``qwen3``: the paper's InfoNCE, in fp32, with its masks; the others are ms-swift's own."""
    infonce_use_batch: bool | None = None
    """Other rows' passages are negatives too; None = true."""
    infonce_hard_negatives: int | None = Field(default=None, gt=0)
    """For infonce, hard negatives of each row: more are left out, fewer drawn again; None = as many as it has."""
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

    curriculum: bool | None = None
    """Three stages instead of one, of rising difficulty: no hard negatives, the easier half of those of a row, the
    harder half; 0.3, 0.4 and 0.3 of the epochs at 1, 0.8 and 0.4 of the learning rate. None = for ``from-scratch`` on
    ``pydocs``, which has no negatives: stages 2 and 3 mine them with the model as it is then."""
    stages: tuple[StageConfig, ...] | None = Field(default=None, min_length=1)
    """Stages of your own, as of the sampler ``curriculum``; what one leaves out is the run's."""

    deepspeed: Literal["zero0", "zero1", "zero2", "zero3"] | None = None
    """ZeRO stage; None = ``engine.zero_stage``."""

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
        if self.stages is not None and self.curriculum is not None:
            raise ValueError(
                f"curriculum: {str(self.curriculum).lower()} and stages both say what the stages are: give one"
            )
        if self.negatives is not None and self._has_stages():
            raise ValueError("negatives: stages have their own number of negatives: set it in `stages`")
        self._loss()
        return self

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        stage = {} if self.deepspeed is None else {"zero_stage": int(self.deepspeed[-1])}
        return {
            **self.compile_training(),
            "model": lay_over(self._model(), self.model),
            "data": lay_over(self._data(), self.data),
            "sampler": {**self._sampler(), "batch_size": self.batch_size(world_size)},
            "loss": self._loss(),
            "checkpoint": {"kind": "qwen3-embedding", **self.compile_checkpoint()},
            "evaluation": self.compile_evaluation(),
            "engine": {**self.compile_engine(), **stage},
        }

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        tiny = {"vocab_size": 500, "hidden": 32, "layers": 1, "heads": 2, "key_value_heads": 1}
        return {
            "model": {"from_scratch": {**tiny, **self.model.get("from_scratch", {})}},
            "data": {"limit": self.data.get("limit", 128)},
            "evaluation": self.sanity_evaluation(),
        }

    def _paths(self) -> tuple[str, ...]:
        return (str(self.data["path"]),) if "path" in self.data else self.dataset_paths

    def _model(self) -> dict[str, Any]:
        given = {} if self.instruction is None else {"instruction": self.instruction}
        return {
            "kind": "qwen3-embedding",
            "name_or_path": self.model_name_or_path,
            "query_max_length": self.query_max_length or self.chosen("max_length"),
            "passage_max_length": self.chosen("max_length"),
            "trust_remote_code": self.trust_remote_code,
            **given,
        }

    def _data(self) -> dict[str, Any]:
        drawn = self.compile_negatives()
        if self._paths() == (PYDOCS,):
            held = {} if self.held_out_rows is None else {"held_out_queries": self.held_out_rows}
            return {"kind": PYDOCS, **held}
        held_out = self.compile_held_out(embedded=False)
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
        return self.scratch and self._paths() == (PYDOCS,)

    def _sampler(self) -> dict[str, Any]:
        if not self._has_stages():
            return {"kind": "no-duplicates"}
        return {"kind": "curriculum", "stages": self._stages()}

    def _stages(self) -> list[dict[str, Any]]:
        if self.stages is not None:
            return [stage.model_dump(mode="json", exclude_unset=True, serialize_as_any=True) for stage in self.stages]
        rate = self.learning_rate or (self.chosen("learning_rate") if self.scratch else CURRICULUM_LEARNING_RATE)
        whose = {"hard_negatives": "own"} if self.loss_type == "qwen3" and self.hard_negatives is None else {}
        stages = (short_stages if self._short() else ark_stages)(self.chosen("num_train_epochs"), rate, whose)
        if self.warmup_steps is not None:
            stages[0]["warmup_steps"] = self.warmup_steps
        return stages

    def _loss(self) -> dict[str, Any]:
        temperature = self.temperature
        if temperature is None and self.scratch and self.loss_type in ("qwen3", "infonce"):
            temperature = SCRATCH_TEMPERATURE
        options = {key: getattr(self, key) for key in _LOSS_OPTIONS}
        if self.loss_type == "qwen3" and self.scratch:
            options = {**SCRATCH_LOSS, **{key: value for key, value in options.items() if value is not None}}
            if options.get("infonce_fake_neg_margin") is not None and self.infonce_mask_fake_negative is None:
                del options["infonce_mask_fake_negative"]
        return loss_of(self.loss_type, temperature, options)
