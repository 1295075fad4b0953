"""The dataset kinds of embed-data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from embed_core.config.component import DatasetConfig, resolved_path
from embed_core.datasets.config import RetrievalFields
from embed_core.errors import ConfigError, DataError
from embed_data.formats.options import FileFields

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset

PYDOCS = "pydocs"


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
        from embed_core.datasets.sampling import DrawOptions
        from embed_data.pydocs.corpus import Sizes
        from embed_data.pydocs.dataset import pydocs

        documents = self.held_out_documents if self.held_out_queries else 0
        sizes = Sizes(self.max_rows, self.held_out_queries, documents)
        options = DrawOptions(query_prompt=self.query_prompt, passage_prompt=self.passage_prompt)
        return pydocs(context, self.packages, sizes, options, self.limit)


class RowsConfig(RetrievalFields, FileFields):
    """Rows of any format, of one source or several: what `auto` and `file` share."""

    path: str | tuple[str, ...]
    held_out_rows: int | None = Field(default=None, ge=0)
    no_in_batch_negatives: tuple[str, ...] = ()
    """Sources whose file or folder has one of these words in its name are trained without in-batch negatives: their
    rows have their own hard negatives only, and are nobody's negatives. By losses that can do that (`bge-unified`)."""

    def dataset(self, context: BuildContext, name: str | None, *, strict: bool) -> Dataset:
        """``name`` None names the dataset as its only source. Raises DataError and ConfigError."""
        from embed_core.datasets.retrieval import RetrievalDataset
        from embed_core.datasets.sampling import DrawOptions
        from embed_data.formats.open import open_sources

        with context.first():  # the others find what rank 0 has put into the cache
            sources = open_sources(
                self.path, self, context, strict=strict, no_in_batch_negatives=self.no_in_batch_negatives
            )
            if name is None:
                name = sources[0].name if len(sources) == 1 else self.called()
            return RetrievalDataset(
                name,
                sources,
                DrawOptions(self.negatives, self.query_prompt, self.passage_prompt),
                context.announce,
                self.held_out_rows,
                self.limit,
                cache=context.cache_dir,
            )

    def called(self) -> str:
        """The last parts of the paths."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        names = [resolved_path(path).name for path in paths]
        return " + ".join(names[:3]) + (f" + … ({len(names)} in all)" if len(names) > 3 else "")

    @field_validator("path")
    @classmethod
    def _some_path(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not path:
            raise ValueError("path is empty: name a file, a folder or a dataset")
        return path[0] if len(path) == 1 and not isinstance(path, str) else path


class AutoConfig(RowsConfig):
    """The embedded corpus or the user's own data, by one key: what recipes use."""

    kind: Literal["auto"] = "auto"
    path: str | tuple[str, ...] = PYDOCS
    """`pydocs` = the embedded corpus; else as of kind `file`, one path or several. (A folder of that name is
    `./pydocs`.) A JSON object with `query` and `pos` is a FlagEmbedding row: `pos` and `neg` must be lists there."""
    held_out_rows: int | None = Field(default=None, ge=0)
    """Rows held out for evaluation; None = 400 of the embedded corpus, of other data a tenth, at most 200."""

    def build(self, context: BuildContext) -> Dataset:
        """As the kind it stands for; raises what that raises."""
        if self.path == PYDOCS:
            return self._pydocs().build(context)
        if PYDOCS in self.path and not isinstance(self.path, str):
            raise ConfigError(
                f"path: {PYDOCS!r} beside files: use kind mix, with the source {{data: {{kind: pydocs}}}}"
            )
        try:
            return self.dataset(context, self.called(), strict=True)
        except DataError as error:
            if not isinstance(self.path, str) or resolved_path(self.path).exists():
                raise
            raise DataError(f"{error} (the word {PYDOCS!r} is the embedded corpus)") from None

    def _pydocs(self) -> PydocsConfig:
        if self.split is not None:
            raise ConfigError(f"split {self.split!r}: the embedded corpus has no splits: remove `split` or set `path`")
        plain = FileFields()
        for name in FileFields.model_fields:
            if getattr(self, name) != getattr(plain, name):
                raise ConfigError(f"{name}: the embedded corpus is no file: remove `{name}` or set `path`")
        common = {"query_prompt": self.query_prompt, "passage_prompt": self.passage_prompt, "limit": self.limit}
        held_out = {} if self.held_out_rows is None else {"held_out_queries": self.held_out_rows}
        return PydocsConfig.model_validate({**common, **held_out})


class FileConfig(RowsConfig):
    """Rows of any format: JSONL, JSON, CSV, TSV, Parquet, Arrow (gzip or zstd), BEIR folders, Hugging Face datasets.

    FlagEmbedding and ms-swift rows, pairs and triplets, (text, text, score): by column names or by `columns`. JSON
    Lines are read where they are; any other file is read once into a memory-mapped table in the cache.
    """

    kind: Literal["file"] = "file"
    path: str | tuple[str, ...]
    """One or several of: a file, a folder of files (each a source named without its suffixes), a folder of such
    folders, a BEIR folder, a folder that `save_to_disk` wrote, a name of a Hugging Face dataset. Relative to the
    working directory."""
    held_out_rows: int | None = Field(default=0, ge=0)
    """Rows held out for evaluation, at most; None = a tenth of them, at most 200. Chosen by a hash of their texts,
    together with all rows that share a query or a positive with them. Their positives and negatives are the corpus."""

    def build(self, context: BuildContext) -> Dataset:
        """Reads and checks every row, and announces the format. Raises DataError and ConfigError."""
        return self.dataset(context, None, strict=False)
