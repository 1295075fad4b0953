"""Contrastive training on any data: the training keys that its users know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from embed_core.config.document import lay_over
from embed_core.config.resolve import SANITY
from embed_core.config.retrieval_keys import EncoderKeys, NegativesKeys, TemperatureKeys, TrainDataKeys, without
from embed_core.config.training_keys import TrainingKeys
from embed_data.config import PYDOCS

SANITY_ROWS = 8
"""Rows of a batch of ``sanity_test``, at least one per rank."""


class DataRecipe(TrainingKeys, TrainDataKeys, EncoderKeys, NegativesKeys, TemperatureKeys):
    """An encoder with one dense vector, trained by InfoNCE on one source or a mix.

    A key left at None takes a default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "data"
    defaults: ClassVar[Mapping[str, Any]] = {"temperature": 0.02}
    by_model: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "max_length": (192, 256),
        "learning_rate": (1e-3, 2e-5),
        "num_train_epochs": (2, 1),
        "per_device_train_batch_size": (64, 32),
    }

    dataset_config: str | None = None
    """A dataset YAML (kind ``mix``): ``use_all``, ``num_total_data``, ``allow_duplicate``, ``datasets``. It takes the
    place of ``train_data``."""
    sanity_test: bool = False
    """The same run in miniature, to see that everything works: few rows and steps, small batches, export included. As
    ``--sanity``."""
    batching: Literal["homogeneous", "mixed"] | None = None
    """``homogeneous``: every batch from one source, so that in-batch negatives are of its task. ``mixed``: any rows
    that share no text. None = homogeneous for a mix."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.dataset_config is not None and self.train_data != PYDOCS:
            raise ValueError("dataset_config and train_data both say what to train on: give one of them")
        return self

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        run = self._run(world_size)
        if self.sanity_test:
            small = {**SANITY, "sampler": {"batch_size": max(SANITY_ROWS, world_size)}}
            run = lay_over(lay_over(run, small), self.sanity())
        return run

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        hidden = {} if self.addon_keys.get("mrl_dims") else {"hidden": 32}
        shape = {"vocab_size": 500, "layers": 1, "heads": 2, **hidden}
        given = {"model": self.model, "data": self.data}
        tiny = {"model": {"from_scratch": shape}, "data": {"limit": 128}}
        return without(tiny, given) | {"evaluation": self.sanity_evaluation()}

    def _run(self, world_size: int) -> dict[str, Any]:
        data = lay_over(self._data(), self.data)
        mix = data["kind"] == "mix"
        homogeneous = mix if self.batching is None else self.batching == "homogeneous"
        loss = {"kind": "infonce", **self.compile_temperature(), "in_batch": True}
        by_source = {"kind": "by-source", "inner": loss, "own_only": {**loss, "in_batch": False}}
        return {
            **self.compile_training(),
            "model": lay_over(self.compile_model(), self.model),
            "data": data,
            "sampler": {
                "kind": "by-source" if homogeneous else "no-duplicates",
                "batch_size": self.batch_size(world_size),
            },
            "loss": by_source if mix else loss,
            "checkpoint": {"kind": "transformers", **self.compile_checkpoint()},
            "evaluation": self.compile_evaluation(),
        }

    def _data(self) -> dict[str, Any]:
        mix = self.dataset_config is not None or self.data.get("kind") == "mix"
        held_out = self.compile_held_out(embedded=self.on_pydocs and not mix)
        drawn = {"held_out_rows": held_out, **self.compile_negatives()}
        if not mix:
            return {"kind": "auto" if self.train_data == PYDOCS else "file", "path": self.train_data, **drawn}
        config = {} if self.dataset_config is None else {"config": self.dataset_config}
        counted = {} if self.scratch else {"tokenizer": self.named}
        return {"kind": "mix", **config, **drawn, **counted, "max_length": self.chosen("max_length")}
