"""The dataset kinds of embed-data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import DatasetConfig, resolved_path
from embed_core.datasets.config import RetrievalConfig, RetrievalFields
from embed_core.errors import ConfigError, DataError
from embed_data.readers.config import FileFields

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset

PYDOCS = "pydocs"
OTHER_FORMATS = (".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".gz", ".zst")
"""Files that kind `file` reads and `retrieval` does not."""


class PydocsConfig(DatasetConfig):
    """The embedded corpus: what installed Python packages say of themselves. Needs no file and no network.

    A row's query is the first paragraph of a docstring, its positive the signature and the rest.
    """

    kind: Literal["pydocs"] = "pydocs"
    packages: tuple[str, ...] = ("stdlib", "torch", "numpy", "transformers")
    """Import names of the packages read, `stdlib` for Python's own library; those not installed are left out."""
    max_rows: int = Field(default=10_000, gt=0)
    """Training rows made at most."""
    held_out_queries: int = Field(default=400, ge=0)
    """Queries of the evaluation split, from modules that no training row is from; 0 = no evaluation split."""
    held_out_documents: int = Field(default=1_000, ge=0)
    """Documents of the evaluation split: the queries' positives, filled up with others of those modules."""
    query_prompt: str | None = None
    """Put before every query; None = the model's own."""
    passage_prompt: str | None = None
    """Put before every passage; None = the model's own."""
    limit: int | None = Field(default=None, gt=0)
    """Training rows used at most, evenly spread over the packages; None = all."""

    def build(self, context: BuildContext) -> Dataset:
        """Built once per set of package versions and cached. Raises DataError where nothing can be read or cached."""
        from embed_core.datasets.draw import DrawOptions
        from embed_data.corpus import Sizes
        from embed_data.pydocs import pydocs

        documents = self.held_out_documents if self.held_out_queries else 0
        sizes = Sizes(self.max_rows, self.held_out_queries, documents)
        options = DrawOptions(query_prompt=self.query_prompt, passage_prompt=self.passage_prompt)
        return pydocs(context, self.packages, sizes, options, self.limit)


class AutoConfig(RetrievalFields):
    """The embedded corpus or the user's own data, by one key: what recipes use."""

    kind: Literal["auto"] = "auto"
    path: str = PYDOCS
    """`pydocs` = the embedded corpus; else as of kind `retrieval`: a .jsonl or .json file, a folder of them, a BEIR
    folder; or a file of another format, as of kind `file`. (A folder of that name is `./pydocs`.)"""
    split: str | None = None
    """Which qrels of a BEIR folder to train on; None = the only one, or `train`."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Rows held out for evaluation; None = 400 of the embedded corpus, of other data a tenth, at most 200."""

    def build(self, context: BuildContext) -> Dataset:
        """As the kind it stands for; raises what that raises."""
        if self.path == PYDOCS:
            return self._pydocs().build(context)
        try:
            return self._own_data().build(context)
        except DataError as error:
            if resolved_path(self.path).exists():
                raise
            raise DataError(f"{error} (the word {PYDOCS!r} is the embedded corpus)") from None

    def _pydocs(self) -> PydocsConfig:
        if self.split is not None:
            raise ConfigError(f"split {self.split!r}: the embedded corpus has no splits: remove `split` or set `path`")
        common = {"query_prompt": self.query_prompt, "passage_prompt": self.passage_prompt, "limit": self.limit}
        held_out = {} if self.held_out_rows is None else {"held_out_queries": self.held_out_rows}
        return PydocsConfig.model_validate({**common, **held_out})

    def _own_data(self) -> RetrievalConfig | FileConfig:
        kind = FileConfig if self.path.lower().endswith(OTHER_FORMATS) else RetrievalConfig
        return kind.model_validate(self.model_dump(exclude={"kind"}))


class FileConfig(RetrievalFields, FileFields):
    """Rows of any format: JSONL, JSON, CSV, TSV, Parquet, Arrow (gzip or zstd), BEIR folders, Hugging Face datasets.

    FlagEmbedding and ms-swift rows, pairs and triplets, (text, text, score): by column names or by `columns`. A file
    is read once into a memory-mapped table in the cache; training needs 4 bytes of memory a row.
    """

    kind: Literal["file"] = "file"
    path: str
    """A file, a folder of files (each a source named without its suffixes), a BEIR folder, a folder that
    `save_to_disk` wrote, or the name of a Hugging Face dataset. Relative to the working directory."""
    held_out_rows: int | None = Field(default=0, ge=0)
    """Rows held out for evaluation, at most; None = a tenth of them, at most 200. Chosen by a hash of their texts,
    together with all rows that share a query or a positive with them. Their positives and negatives are the corpus."""

    def build(self, context: BuildContext) -> Dataset:
        """Reads every row once and announces the format. Raises DataError and ConfigError."""
        from embed_core.datasets.draw import DrawOptions
        from embed_data.file_dataset import FileDataset
        from embed_data.readers.convert import read_source
        from embed_data.readers.detect import find

        found = find(self.path, self)
        return FileDataset(
            found[0].name if len(found) == 1 else resolved_path(self.path).name,
            [read_source(source, self, context) for source in found],
            DrawOptions(self.negatives, self.query_prompt, self.passage_prompt),
            context.announce,
            self.held_out_rows,
            self.limit,
        )
