"""The dataset kinds of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import DatasetConfig, resolved_path

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset


class RetrievalFields(DatasetConfig):
    """How rows are drawn, prompted and split: the fields that every text retrieval dataset has."""

    negatives: int = Field(default=7, ge=0)
    """Hard negatives drawn per row (FlagEmbedding's train_group_size - 1); repeated where a row has fewer; a row
    without any has its positive only. A row's `type` may ask for fewer."""
    query_prompt: str | None = None
    """Put before every query, unless the row has a `prompt`; None = the model's own."""
    passage_prompt: str | None = None
    """Put before every passage; None = the model's own."""
    limit: int | None = Field(default=None, gt=0)
    """Training rows used at most, evenly spread over the data; None = all."""


class RetrievalConfig(RetrievalFields):
    """Query → passage rows: a FlagEmbedding JSONL file, a folder of them, or a BEIR folder."""

    kind: Literal["retrieval"] = "retrieval"
    path: str
    """A .jsonl or .json file, a folder of them (each file a source named by its stem), or a BEIR folder
    (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv). Relative to the working directory."""
    split: str | None = None
    """Which qrels of a BEIR folder to train on; None = the only one, or `train`."""
    held_out_rows: int | None = Field(default=0, ge=0)
    """Rows held out for evaluation, at most; None = a tenth of them, at most 200. Chosen by a hash of their texts,
    together with all rows that share a query or a positive with them. Their positives and negatives are the corpus."""

    def build(self, context: BuildContext) -> Dataset:
        """Reads and checks every row. Raises DataError and ConfigError; announces the format and the sizes."""
        from embed_core.datasets.retrieval import RetrievalDataset
        from embed_core.datasets.sampling import DrawOptions
        from embed_core.datasets.sources.open import open_sources

        path = resolved_path(self.path)
        with context.first():  # the others find the index that rank 0 has made of large files
            return RetrievalDataset(
                path.name,
                open_sources(path, self.split, context.cache_dir),
                DrawOptions(self.negatives, self.query_prompt, self.passage_prompt),
                context.announce,
                self.held_out_rows,
                self.limit,
                cache=context.cache_dir,
            )
