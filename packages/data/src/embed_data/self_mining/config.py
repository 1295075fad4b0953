"""The dataset kind ``remined``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import DatasetConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset


class ReminedConfig(DatasetConfig):
    """The rows of another dataset with negatives mined by the model that is being trained, as a phase begins.

    It does what `embed mine --by dense` does, with the model as the phases before left it: the corpus is ranked for
    every query, and the ranks asked for become its negatives, the hardest first, with their scores. Never negatives:
    positives of any row with the same query, texts that overlap with one, texts that hold the answer.
    """

    kind: Literal["remined"] = "remined"
    inner: DatasetConfig | None = None
    """The rows; None = those of the run's own `data`."""
    corpus: str | None = None
    """Where negatives come from: a file of `text`, or a BEIR folder; None = the positives of all rows."""
    answers: str | None = None
    """Rows with the `answers` to the queries, of any format of kind `file`: texts that hold one are never negatives.
    None = the rows themselves if they are read from JSONL or a BEIR folder; else answers are not known, and a line says
    so."""
    negatives: int = Field(default=20, gt=0)
    """Negatives per row, at most."""
    ranks: tuple[int, int] = (1, 100)
    """First and last rank considered, counted from 1, known positives not counted."""
    absolute_margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """A negative scores at most the lowest positive's score less this."""
    relative_margin: float | None = Field(default=None, ge=0, lt=1)
    """A negative scores at most the lowest positive's score less this share of it (NV-Retriever: 0.05)."""
    draw: Literal["top", "sample"] = "top"
    """`top`: the hardest that qualify; `sample`: at random of those that do."""
    overlap: float = Field(default=0.5, gt=0, le=1)
    """A text with this share of its 8-character windows in a positive counts as the same text."""

    @model_validator(mode="after")
    def _ranks_rise(self) -> Self:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise ValueError(f"ranks {[first, last]}: the first and the last, counted from 1: [10, 100]")
        return self

    def waits(self) -> bool:
        """Always: it needs the model of the phases before."""
        return True

    def build(self, context: BuildContext) -> Dataset:
        """The dataset, mined once per phase and kept in its folder for a resumed run. All ranks work. Raises
        ConfigError outside of a phase, in the first one, and where there are fewer documents than ranks, DataError for
        a corpus that cannot be read."""
        from embed_data.self_mining.dataset import remined

        return remined(self, context)
