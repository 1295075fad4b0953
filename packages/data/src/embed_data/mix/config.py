"""The `mix` dataset kind: the dataset YAML that its users have, and more keys per source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from embed_core.config import document
from embed_core.config.component import DatasetConfig, LossConfig, Section
from embed_core.datasets.config import RetrievalFields
from embed_core.errors import ConfigError, did_you_mean
from embed_data.formats.options import FileFields

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.config.run import RunConfig
    from embed_core.protocols import Dataset
    from embed_data.mix.loss import BySourceLoss


class SourceConfig(FileFields):
    """One source of a mix: a file (or whatever kind `file` reads), or any dataset kind."""

    name: str = ""
    """Names it in the table, in examples and for `by-source`; empty = the file's name, or the dataset's kind."""
    data_path: str | None = None
    """As `path` of kind `file`: a file, a folder, a BEIR folder, a Hugging Face dataset."""
    data: DatasetConfig | None = None
    """Any dataset kind, instead of `data_path`: `{kind: pydocs}`."""
    data_ratio: float | None = Field(default=None, ge=0)
    """Share of `num_total_data`; shares are relative to their sum. None, everywhere = as the sources' sizes are."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the source's rows in the loss (by the loss kind `by-source`): 0.5 halves their gradient."""
    prompt: str | None = None
    """Put before the source's queries, unless a row has its own; None = the mix's `query_prompt`."""
    passage_prompt: str | None = None
    """Put before the source's passages; None = the mix's."""
    batching: Literal["homogeneous", "mixed"] = "homogeneous"
    """Under the sampler `by-source`: `homogeneous` gives the source batches of its own, `mixed` lets it share batches
    with the other mixed sources. Other samplers mix all sources."""
    negative_strategy: Literal["in-batch", "own-only"] = "in-batch"
    """`own-only`: its rows have their own hard negatives only, and are nobody's negatives: for sources whose positives
    answer each other's queries, as class labels do. By the loss kind `by-source`."""
    negatives: int | None = Field(default=None, ge=0)
    """Hard negatives drawn per row; None = the mix's."""
    limit: int | None = Field(default=None, gt=0)
    """Rows taken of the source at most, evenly spread over it, before anything is drawn; None = all."""

    def for_the_loss(self) -> dict[str, float | str]:
        """Keys and values that act through the loss kind `by-source` alone, where they differ from their defaults."""
        given: dict[str, float | str] = {"weight": self.weight, "negative_strategy": self.negative_strategy}
        return {key: value for key, value in given.items() if value not in (1.0, "in-batch")}

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.data_path is None) == (self.data is None):
            raise ValueError("a source needs one of `data_path` and `data`")
        plain = FileFields()
        inside = [name for name in FileFields.model_fields if getattr(self, name) != getattr(plain, name)]
        if self.data is not None and inside:
            raise ValueError(f"`{inside[0]}` is of files: a source with `data` takes its own keys inside it")
        return self


class MixConfig(RetrievalFields):
    """Rows of several sources in given ratios, as one dataset for any sampler.

    `datasets` is a list of sources, or, as in the dataset YAML that this follows, one mapping whose values are lists:
    `{name: [a, b], data_path: [a.json, b.json], data_ratio: [0.7, 0.3]}`.
    """

    kind: Literal["mix"] = "mix"
    config: str | None = None
    """A YAML file with any of these keys; those written beside it count more. None = all are written here."""
    use_all: bool = False
    """All rows of all sources once; `num_total_data`, `data_ratio` and `temperature` are ignored."""
    num_total_data: int | None = Field(default=None, gt=0)
    """Rows of the whole mix; None = as many as the sources have together."""
    allow_duplicate: bool = False
    """Where a source has fewer rows than its share: true repeats all of them as often as they go into it, and draws the
    remainder at random; false takes all once, and the mix is smaller."""
    temperature: float = Field(default=1.0, gt=0)
    """Ratios ** (1 / temperature), or sizes where there is no data_ratio: above 1, small sources get more."""
    datasets: tuple[SourceConfig, ...]
    """The sources."""
    on_bad_row: Literal["error", "skip"] = "error"
    """The default of every source that does not set the key itself."""
    held_out_rows: int | None = Field(default=0, ge=0)
    """Rows held out for evaluation, at most, from all file sources in proportion to their sizes; None = a tenth, at
    most 200. Rows of any source that share a query or a positive with what is held out are left out of training."""
    tokenizer: str | None = None
    """A model whose tokenizer counts tokens for the table; None = characters only."""
    max_length: int | None = Field(default=None, gt=0)
    """Tokens at which the model truncates: the table tells how many texts that cuts."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any, info: ValidationInfo) -> Any:
        """Keys of the `config` file beneath, mappings of lists as lists of mappings, what is common into each."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if isinstance(data.get("config"), str):
            given = _read(cls, Path(data.pop("config")), info)
            data = {**given, **data}
        if isinstance(data.get("datasets"), Mapping):
            data["datasets"] = as_list(data["datasets"])
        if isinstance(data.get("datasets"), (list, tuple)) and data.get("on_bad_row") == "skip":
            data["datasets"] = [_with_policy(one) for one in data["datasets"]]
        return data

    @field_validator("datasets")
    @classmethod
    def _named(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if not sources:
            raise ValueError("datasets is empty: name a source, for instance {data_path: rows.jsonl}")
        named = tuple(one.model_copy(update={"name": one.name or _default_name(one)}) for one in sources)
        names = [one.name for one in named]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}: give them different `name`s")
        return named

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        if self.use_all:
            return self
        given = [one.data_ratio for one in self.datasets]
        lacking = [one.name for one, ratio in zip(self.datasets, given, strict=True) if ratio is None]
        if lacking and len(lacking) < len(given):
            raise ValueError(f"{lacking[0]!r} has no data_ratio, others have: give it to all sources or to none")
        if not lacking and not any(given):
            raise ValueError("every data_ratio is 0: nothing would be drawn")
        return self

    def check(self, run: RunConfig) -> None:
        """Raises ConfigError where a source's ``weight`` or ``negative_strategy`` meets a loss that does not see it."""
        super().check(run)
        if _is_by_source(run.loss):
            return
        for one in self.datasets:
            special = [f"{key} {value}" for key, value in one.for_the_loss().items()]
            if special:
                raise ConfigError(
                    f"data: source {one.name!r} has {' and '.join(special)}, which the loss `{run.loss.kind}` does not "
                    "see: put the loss kind `by-source` around it, `loss: {kind: by-source, inner: …, own_only: …}`"
                )

    def build(self, context: BuildContext) -> Dataset:
        """Reads the sources and prints the table. Raises DataError and ConfigError."""
        from embed_data.mix.build import build_mix

        return build_mix(self, context)


def _is_by_source(loss: Section) -> bool:
    """Whether the loss, or one inside it, is of the kind `by-source`."""
    inner = (getattr(loss, name) for name in type(loss).model_fields)
    return getattr(loss, "kind", None) == "by-source" or any(
        _is_by_source(one) for one in inner if isinstance(one, Section)
    )


def as_list(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{name: [a, b], data_path: [...]}`` as sources; what is no list is every source's. Raises ConfigError."""
    unknown = [key for key in columns if key not in SourceConfig.model_fields]
    if unknown:
        raise ConfigError(
            f"datasets: unknown key {unknown[0]!r}: {did_you_mean(unknown[0], SourceConfig.model_fields)}"
        )
    lists = {key: value for key, value in columns.items() if isinstance(value, (list, tuple))}
    if not lists:
        raise ConfigError("datasets: a list per key is needed, for instance `data_path: [a.jsonl, b.jsonl]`")
    first = next(iter(lists))
    for key, value in lists.items():
        if len(value) != len(lists[first]):
            raise ConfigError(
                f"datasets.{key} has {len(value)} entries, datasets.{first} has {len(lists[first])}: one each is due"
            )
    common = {key: value for key, value in columns.items() if key not in lists}
    return [{**common, **dict(zip(lists, one, strict=True))} for one in zip(*lists.values(), strict=True)]


def _read(cls: type[MixConfig], path: Path, info: ValidationInfo) -> dict[str, Any]:
    """The keys of a dataset YAML, checked on their own: its faults are told with its own lines. Raises ConfigError."""
    given = document.read(path.expanduser())
    if "config" in given.data:
        raise ConfigError(f"{given.place(('config',))}: a dataset file cannot name another one: write its keys here")
    try:
        cls.model_validate({"kind": "mix", **given.data}, context=info.context)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(cls, given, fault, path) for fault in error.errors())) from None
    return given.data


def _line(cls: type[MixConfig], given: document.Document, fault: Any, path: Path) -> str:
    at = tuple(fault["loc"])
    turned = (at[0], at[2], at[1]) if len(at) > 2 and at[0] == "datasets" else at
    message = str(fault["msg"]).removeprefix("Value error, ")
    named = tuple(message.split(":")[0].split(" ")[0].split("."))  # what our own validators begin with
    place = given.places.get(turned) or given.place(at) or given.place(named) or str(path)
    if fault["type"] == "extra_forbidden":
        known = SourceConfig.model_fields if len(at) > 1 else cls.model_fields
        message = f"unknown key: {did_you_mean(str(at[-1]), known)}"
    elif fault["type"] == "missing":
        message = "this key is needed and missing"
    elif fault["type"] != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, got {fault['input']!r}"
    return f"{place}: {'.'.join(map(str, at))}: {message}" if at else f"{place}: {message}"


def _with_policy(source: Any) -> Any:
    if isinstance(source, Mapping) and "data_path" in source:
        return {"on_bad_row": "skip", **source}
    return source


def _default_name(source: SourceConfig) -> str:
    if source.data is not None:
        return source.data.kind
    name = Path(str(source.data_path)).name
    return name.split(".")[0] or name


class BySourceLossConfig(LossConfig):
    """Another loss with the `weight` and the `negative_strategy` that the sources of a `mix` have.

    Rows of `own-only` sources go to the loss `own_only`, without the other rows' passages, and their passages are not
    among the negatives of other rows.
    """

    kind: Literal["by-source"] = "by-source"
    inner: LossConfig
    """The loss of all rows of `in-batch` sources."""
    own_only: LossConfig | None = None
    """The loss of rows of `own-only` sources, which such sources need: `{kind: infonce, in_batch: false}`."""

    def build(self, context: BuildContext) -> BySourceLoss:
        """Looks at the run's dataset. Raises ConfigError where it is no mix, or has own-only sources without a loss."""
        from embed_data.mix.loss import build_loss

        return build_loss(self, context)
