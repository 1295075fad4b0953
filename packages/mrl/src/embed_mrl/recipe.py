"""The training keys that users of Matryoshka training know, compiled into a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from embed_core.config.document import lay_over
from embed_core.config.retrieval_keys import (
    SANITY_LIMITS,
    EncoderKeys,
    NegativesKeys,
    TemperatureKeys,
    TrainDataKeys,
    without,
)
from embed_core.config.training_keys import TrainingKeys
from embed_mrl.addon import MatryoshkaKeys

SANITY_WIDTH = 32


class MRLRecipe(TrainingKeys, TrainDataKeys, EncoderKeys, NegativesKeys, TemperatureKeys, MatryoshkaKeys):
    """An encoder with one dense vector that may be cut, trained by InfoNCE at every dimension.

    A key left at None takes a default that suits the model: one for ``from-scratch``, one for a model that is loaded.
    """

    name: ClassVar[str] = "mrl"
    defaults: ClassVar[Mapping[str, Any]] = {"temperature": 0.02, "negatives": 7, "use_mrl": True}
    by_model: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "max_length": (192, 256),
        "learning_rate": (1e-3, 2e-5),
        "num_train_epochs": (2, 1),
        "per_device_train_batch_size": (64, 32),
    }

    def compile(self, world_size: int) -> dict[str, Any]:
        """See :meth:`embed_core.config.recipe.Recipe.compile`."""
        run = {
            **self.compile_training(),
            "model": lay_over(self.compile_model(), self.model),
            "data": lay_over(self._data(), self.data),
            "sampler": {"kind": "no-duplicates", "batch_size": self.batch_size(world_size)},
            "loss": {"kind": "infonce", **self.compile_temperature()},
            "checkpoint": {"kind": "transformers", **self.compile_checkpoint()},
            "evaluation": self._evaluation(),
        }
        return self.wrap(run) if self.is_on() else run

    def sanity(self) -> dict[str, Any]:
        """A model of some thousand weights and a hundred rows; what the user set stays."""
        hidden = {} if self.mrl_dims else {"hidden": SANITY_WIDTH}
        tiny = {
            "model": {"from_scratch": {"vocab_size": 500, "layers": 1, "heads": 2, **hidden}},
            "data": {"limit": 128},
        }
        evaluation = [{**one, **SANITY_LIMITS} for one in self._evaluation()]
        return without(tiny, {"model": self.model, "data": self.data}) | {"evaluation": evaluation}

    def _evaluation(self) -> list[dict[str, Any]]:
        return self.compile_evaluation(kind="dimensions", dims=self.mrl_dims)

    def _data(self) -> dict[str, Any]:
        held_out = self.compile_held_out(embedded=self.on_pydocs)
        return {"kind": "auto", "path": self.train_data, "held_out_rows": held_out, **self.compile_negatives()}
