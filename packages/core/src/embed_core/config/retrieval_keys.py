"""Keys about model, data and loss that recipes share. See :mod:`embed_core.config.training_keys` for how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from embed_core.config.component import FROM_SCRATCH
from embed_core.config.recipe import Recipe
from embed_core.text.pooling import Pooling

PYDOCS = "pydocs"
"""The data that is on every machine: the documentation of installed Python packages."""
SANITY_LIMITS: Mapping[str, int] = {"query_limit": 32, "corpus_limit": 64}
"""How small ``--sanity`` makes an evaluation."""


class ModelOverlayKeys(Recipe):
    """Options of the model by its own names."""

    model: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``model``, inside of what add-ons put around it. A key of the recipe, so that
    ``model.name_or_path`` chooses the defaults too."""


class ModelKeys(ModelOverlayKeys):
    """Which model is trained."""

    model_name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    @property
    def named(self) -> str:
        """The model's name, by whichever key."""
        return str(self.model.get("name_or_path", self.model_name_or_path))

    @property
    def scratch(self) -> bool:
        """Whether the model starts with random weights."""
        return self.named == FROM_SCRATCH

    def chosen(self, key: str) -> Any:
        """The value of ``key``; where that is None, the one that suits the model (``Recipe.by_model``)."""
        value = getattr(self, key)
        return self.by_model[key][0 if self.scratch else 1] if value is None else value


class LengthKeys(Recipe):
    """Tokens of a text."""

    max_length: int | None = Field(default=None, ge=3)
    """Tokens of a text, special tokens and prompt included; longer ones are cut."""
    query_max_length: int | None = Field(default=None, ge=3)
    """Tokens of a query; None = ``max_length``."""


class UnitLengthKeys(Recipe):
    """Length of the vectors."""

    normalize_embeddings: bool = True
    """Whether the model's vectors have unit length."""


class EncoderKeys(ModelKeys, LengthKeys, UnitLengthKeys):
    """An encoder with one dense vector (model kind ``transformers-encoder``)."""

    query_prompt: str | None = None
    """Put before queries whose row and source have no prompt; None = as saved with the model."""
    passage_prompt: str | None = None
    """Put before passages whose source has no prompt; None = as saved with the model."""
    pooling: Pooling | None = None
    """Where the vector comes from; None = as saved with the model, else ``mean``."""

    def compile_model(self) -> dict[str, Any]:
        """``model`` of the run, without the overlay. A from-scratch model is as wide as the largest of ``mrl_dims``."""
        dims = self.addon_keys.get("mrl_dims") or getattr(self, "mrl_dims", None) or ()
        return {
            "kind": "transformers-encoder",
            "name_or_path": self.model_name_or_path,
            "pooling": self.pooling,
            "normalize": self.normalize_embeddings,
            "trust_remote_code": self.trust_remote_code,
            "query_max_length": self.query_max_length or self.chosen("max_length"),
            "passage_max_length": self.chosen("max_length"),
            "query_prompt": self.query_prompt,
            "passage_prompt": self.passage_prompt,
            **({"from_scratch": {"hidden": max(dims)}} if dims else {}),
        }


class HeldOutKeys(Recipe):
    """Rows that are held out."""

    held_out_rows: int | None = Field(default=None, ge=0)
    """Training rows held out to evaluate on. None = as many as the embedded data says; of other data a tenth, at most
    200, or none where there is data to evaluate on."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Laid over the compiled ``data``."""


class EvaluationKeys(HeldOutKeys):
    """What is evaluated on: folders, or the rows held out."""

    eval_data: tuple[str, ...] = ()
    """BEIR folders to evaluate on, before and after training; none = the rows held out."""

    def compile_held_out(self, *, embedded: bool) -> int | None:
        """``held_out_rows`` of ``data``. ``embedded`` data (``pydocs``) always has the same rows held out, unless
        the key says otherwise."""
        if self.held_out_rows is not None or embedded:
            return self.held_out_rows
        return 0 if self.eval_data else None

    def compile_evaluation(self, **more: Any) -> list[dict[str, Any]]:
        """``evaluation`` of the run: retrieval, with ``more`` of its keys; none where no rows are held out for it."""
        one = {"kind": "retrieval", **more}
        if self.eval_data:
            return [{**one, "path": path} for path in self.eval_data]
        held_out = self.data.get("held_out_rows", self.data.get("held_out_queries", self.held_out_rows))
        return [] if held_out == 0 else [one]

    def sanity_evaluation(self) -> list[dict[str, Any]]:
        """``evaluation`` of the run under ``--sanity``."""
        return [{**one, **SANITY_LIMITS} for one in self.compile_evaluation()]


class TrainDataKeys(EvaluationKeys):
    """What is trained on."""

    train_data: str | tuple[str, ...] = PYDOCS
    """Rows to train on, of any format: a file, a folder of files or of such folders, a BEIR folder, a dataset of the
    hub, or several of them; or ``pydocs``, the documentation of installed Python packages."""

    @property
    def on_pydocs(self) -> bool:
        """Whether the run trains on the embedded data."""
        return bool(self.data.get("path", self.train_data) == PYDOCS)


class NegativesKeys(Recipe):
    """Hard negatives."""

    negatives: int | None = Field(default=None, ge=0)
    """Hard negatives drawn per row, of rows that have any; None = as the dataset says, else 7."""

    def compile_negatives(self) -> dict[str, Any]:
        """``negatives`` of ``data``, where the key is set."""
        return {} if self.negatives is None else {"negatives": self.negatives}


class TemperatureKeys(Recipe):
    """The temperature of a contrastive loss."""

    temperature: float | None = Field(default=None, gt=0)
    """Similarities are divided by it; None = the loss's own default."""

    def compile_temperature(self) -> dict[str, Any]:
        """``temperature`` of ``loss``, where the key is set."""
        return {} if self.temperature is None else {"temperature": self.temperature}


def without(overlay: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``overlay`` less the keys that ``given`` sets, at every depth: what ``--sanity`` may shrink."""
    kept: dict[str, Any] = {}
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(given.get(key, {}), Mapping):
            kept[key] = without(value, given.get(key, {}))
        elif key not in given:
            kept[key] = value
    return kept
