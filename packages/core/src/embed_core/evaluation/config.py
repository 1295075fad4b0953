"""The ``retrieval`` evaluator's config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import EvaluatorConfig, resolved_path
from embed_core.errors import ConfigError
from embed_core.evaluation.measures import deepest_cutoff, parse_measures

if TYPE_CHECKING:
    from pathlib import Path

    from embed_core.config.context import BuildContext
    from embed_core.evaluation.retrieval import RetrievalEvaluator
    from embed_core.protocols import Dataset
    from embed_core.types import RetrievalSet


class RetrievalEvaluatorConfig(EvaluatorConfig):
    """Exact retrieval of a corpus by queries: nDCG, MRR, Recall, for every way in which the model can rank."""

    kind: Literal["retrieval"] = "retrieval"
    path: str | None = None
    """BEIR folder: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/{split}.tsv``; None = the data's held-out split."""
    split: str | None = None
    """Which ``qrels/{split}.tsv``; None = the only one there is, or ``test``."""
    name: str = "held-out"
    """Prefix of the metrics; where ``path`` is given and this is not, the folder's name."""
    measures: tuple[str, ...] = Field(default=("nDCG@10", "RR@10", "R@10"), min_length=1)
    """Measures by their ir-measures names; ``MRR@10`` and ``Recall@10`` are the same as ``RR@10`` and ``R@10``."""
    ways: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Ways of scoring to report (``dense``, ``sparse``, ...); None = all that the model has."""
    query_limit: int | None = Field(default=None, gt=0)
    """Queries at most, drawn by a hash of their ids; None = all."""
    corpus_limit: int | None = Field(default=None, gt=0)
    """Documents at most, besides the relevant ones, which all stay; None = all."""
    tile: int = Field(default=256, gt=0)
    """Documents encoded and scored at a time on one rank: bounds the memory, changes no figure."""
    top_k: int | None = Field(default=None, gt=0)
    """Documents kept per query; None = as deep as the measures look (1000 for one without a cutoff)."""

    @model_validator(mode="before")
    @classmethod
    def _name_after_the_folder(cls, data: Any) -> Any:
        # Filled in here rather than in build: RunConfig checks that evaluators have different names.
        if isinstance(data, dict) and "name" not in data and isinstance(data.get("path"), str):
            return {**data, "name": resolved_path(data["path"]).resolve().name}
        return data

    @field_validator("name")
    @classmethod
    def _name_has_no_slash(cls, name: str) -> str:
        if not name or "/" in name:
            raise ValueError(f"{name!r} cannot name an evaluator: metrics are named name/way/measure; leave '/' out")
        return name

    @field_validator("measures")
    @classmethod
    def _measures_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        parse_measures(names)
        return names

    @model_validator(mode="after")
    def _deep_enough(self) -> RetrievalEvaluatorConfig:
        cutoffs = {name: deepest_cutoff({name: m}) for name, m in parse_measures(self.measures).items() if "@" in name}
        for name, cutoff in cutoffs.items():
            if self.top_k is not None and self.top_k < cutoff:
                raise ValueError(f"top_k is {self.top_k}, but {name} looks at {cutoff} documents: set it to {cutoff}")
        return self

    def build(self, context: BuildContext, dataset: Dataset) -> RetrievalEvaluator:
        """The evaluator. Raises ConfigError without data to evaluate on, DataError for a folder that cannot be read."""
        from embed_core.evaluation.retrieval import RetrievalEvaluator

        return RetrievalEvaluator(self, self._data(dataset), context.announce)

    def _data(self, dataset: Dataset) -> RetrievalSet:
        if self.path is not None:
            from embed_core.datasets.sources.beir import read_beir

            folder: Path = resolved_path(self.path)
            return read_beir(folder, self.split)
        held_out = dataset.held_out()
        if held_out is None:
            raise ConfigError(
                f"evaluation {self.name!r} has nothing to evaluate on: dataset {dataset.name!r} holds no rows out; set "
                "the evaluation's `path` to a BEIR folder, or `data.held_out_rows` to a number of rows"
            )
        return held_out
