"""The keys that FlagEmbedding's users know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from embed_bge.defaults import BY_MODEL
from embed_core.config.document import lay_over
from embed_core.config.retrieval_keys import TemperatureKeys, TrainDataKeys, UnitLengthKeys, without
from embed_core.config.training_keys import TrainingKeys
from embed_core.text.pooling import Pooling

NO_IN_BATCH = "no_in_batch_neg"
"""FlagEmbedding's users put this into the names of files and folders whose rows go without in-batch negatives."""


class BGERecipe(TrainingKeys, TrainDataKeys, UnitLengthKeys, TemperatureKeys):
    """BGE-M3 unified fine-tuning.

    A key left at None takes a default that suits the model: one set for ``from-scratch``, which has to learn language
    from the run's own texts, and FlagEmbedding's for a model that is loaded (see :mod:`embed_bge.defaults`).
    """

    name: ClassVar[str] = "bge"
    defaults: ClassVar[Mapping[str, Any]] = {"temperature": 0.02}
    by_model: ClassVar[Mapping[str, tuple[Any, Any]]] = BY_MODEL

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
    """Tokens of a query."""
    passage_max_len: int | None = Field(default=None, ge=3)
    """Tokens of a passage."""
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
    sentence_pooling_method: Pooling | None = None
    """Where the dense vector comes from."""
    colbert_dim: int = -1
    """Width of the multi-vectors; -1 = as saved with the model, else the encoder's hidden size."""
    fix_encoder: bool = False
    """Train the two heads only."""

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

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        return {
            **self.compile_training(),
            "model": lay_over(self._model(), self.model),
            "data": lay_over(self._data(), self.data),
            "sampler": {
                "kind": "by-source" if self.same_dataset_within_batch else "no-duplicates",
                "batch_size": self.batch_size(world_size),
            },
            "loss": self._loss(),
            "checkpoint": {"kind": "bge-m3", **self.compile_checkpoint()},
            "evaluation": self.compile_evaluation(),
        }

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        tiny = {
            "model": {"from_scratch": {"vocab_size": 500, "hidden": 32, "layers": 1, "heads": 2}},
            "data": {"limit": 128},
        }
        return without(tiny, {"model": self.model, "data": self.data}) | {"evaluation": self.sanity_evaluation()}

    def _model(self) -> dict[str, Any]:
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
        )
        return {
            "kind": "bge-m3",
            "name_or_path": self.model_name_or_path,
            "query_max_len": self.chosen("query_max_len"),
            "passage_max_len": self.chosen("passage_max_len"),
            "sentence_pooling_method": self.chosen("sentence_pooling_method"),
        } | {key: getattr(self, key) for key in same}

    def _data(self) -> dict[str, Any]:
        apart = {} if self.on_pydocs else {"no_in_batch_negatives": [NO_IN_BATCH]}
        return {
            "kind": "auto",
            "path": self.train_data,
            "negatives": self.train_group_size - 1,
            "held_out_rows": self.compile_held_out(embedded=self.on_pydocs),
            **apart,
        }

    def _loss(self) -> dict[str, Any]:
        same = (
            "unified_finetuning",
            "use_self_distill",
            "self_distill_start_step",
            "knowledge_distillation",
            "kd_loss_type",
            "teacher_temperature",
        )
        return {"kind": "bge-unified", **self.compile_temperature()} | {key: getattr(self, key) for key in same}
