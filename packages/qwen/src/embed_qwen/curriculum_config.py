"""The sampler kind ``curriculum`` and the dataset kind ``banded``: stages of rising difficulty, for any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import DatasetConfig, SamplerConfig, Section
from embed_core.samplers.config import NoDuplicatesConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embed_core.config.context import BuildContext
    from embed_core.config.run import RunConfig
    from embed_core.protocols import Dataset, Sampler

By = Literal["given", "rank", "share", "score", "margin"]
Bound = float | None
NEGATIVES = 20
"""Hard negatives per row, as in ARK (arXiv 2511.16326)."""


class DifficultyConfig(Section):
    """Which of a row's negatives are hard enough, and not too hard."""

    by: By = "given"
    """`given`: all that the row has. `rank`: by place in the stored order, the hardest first, counted from 1. `share`:
    the same as a share of the row's negatives, 0 to 1. `score`: by `neg_scores`, on their own scale. `margin`: by how
    far a negative scores below the row's lowest positive; harder ones have smaller margins."""
    band: tuple[Bound, Bound] | None = None
    """[lowest, highest], both included (except the lowest of a share); null = open."""

    @model_validator(mode="after")
    def _band_suits(self) -> Self:
        if self.by == "given":
            if self.band is not None:
                raise ValueError(f"band {list(self.band)} needs `by`: one of rank, share, score, margin")
            return self
        if self.band is None:
            raise ValueError(f"by {self.by!r} needs a `band`: [lowest, highest], null where it is open")
        low, high = self.band
        if low is not None and high is not None and low > high:
            raise ValueError(f"band {[low, high]}: the lowest comes first: write {[high, low]}")
        for bound in (low, high):
            if bound is not None and not self._is_one(bound):
                raise ValueError(f"band {[low, high]}: {_DOMAINS[self.by]}")
        return self

    def _is_one(self, bound: float) -> bool:
        if self.by == "rank":
            return bound >= 1 and bound == int(bound)
        return self.by != "share" or 0 <= bound <= 1

    @property
    def words(self) -> str:
        """The difficulty for the user, such as ``rank 30-100``."""
        if self.band is None:
            return "all negatives of a row"
        low, high = (None if bound is None else f"{bound:g}" for bound in self.band)
        if low is None or high is None:
            return (
                f"{self.by} " + (f"from {low}" if high is None else f"to {high}") if low or high else f"any {self.by}"
            )
        return f"{self.by} {low}-{high}"


_DOMAINS = {
    "rank": "ranks are whole numbers from 1: [1, 20] are the twenty hardest",
    "share": "shares are from 0 to 1: [0, 0.5] is the harder half",
}


class BandedConfig(DatasetConfig, DifficultyConfig):
    """The rows of another dataset with only those of their negatives that lie in a band of difficulty.

    A row without any in the band keeps its positive and learns from in-batch negatives alone. Never negatives: texts
    that are a positive of the same question in another row.
    """

    kind: Literal["banded"] = "banded"
    inner: DatasetConfig | None = None
    """The rows; None = those of the run's own `data`, in a phase."""
    negatives: int = Field(default=NEGATIVES, ge=0)
    """Negatives drawn per row from those in the band, repeated if there are fewer; 0 = in-batch negatives only."""

    def build(self, context: BuildContext) -> Dataset:
        """Reads every row once and announces how many have negatives in the band. Raises ConfigError where none has, or
        where ``inner`` does not show its rows, DataError for a row without the scores that the band needs."""
        from embed_qwen.bands import banded

        return banded(self, context)


class StageConfig(Section):
    """One stage of a curriculum. Options that are left out are the run's own."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name in the display and of its folder; None = `stage-N` and its difficulty."""
    data: DatasetConfig | None = None
    """Rows of this stage: a dataset, or the path of a file (from `embed curriculum` or `embed mine`); None = the run's
    `data`. The evaluation stays the run's."""
    difficulty: DifficultyConfig = DifficultyConfig()
    """Which of the rows' negatives this stage trains on."""
    negatives: Literal["in-batch"] | Annotated[int, Field(ge=0)] | None = None
    """Hard negatives drawn per row; `in-batch` or 0 = none; None = 20 where there is a band or `remine`, else as
    `data` draws."""
    hard_negatives: Literal["own", "batch"] | None = None
    """Whether a query's hard negatives are its own or those of the whole batch, for losses with that option; None = as
    in the run's loss."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Laid over the run's `loss`: {temperature: 0.01}, or another loss with its `kind`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data of this stage."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of this stage, whatever the epochs; a `train.max_steps` of the run limits it too."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of this stage, with a schedule of its own."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps of warm-up at the beginning of this stage."""
    remine: bool | dict[str, Any] = False
    """Mine new negatives with the model that the stages before left: true, or options of the dataset kind `remined`
    ({ranks: [10, 60], relative_margin: 0.05})."""

    @field_validator("data", mode="before")
    @classmethod
    def _path_is_a_file(cls, value: Any) -> Any:
        return {"kind": "file", "path": value} if isinstance(value, str) else value

    @property
    def drawn(self) -> int | None:
        """Negatives per row, if the stage sets their number; else None."""
        if self.negatives is None:
            return NEGATIVES if self.difficulty.band is not None or self.remine is not False else None
        return 0 if self.negatives == "in-batch" else self.negatives

    def title(self, number: int) -> str:
        """The stage's name; ``number`` counts from 1."""
        if self.name is not None:
            return self.name
        words = "in-batch" if self.drawn == 0 else self.difficulty.words if self.difficulty.band else ""
        parts = [f"stage-{number}", "mined" if self.remine is not False else "", words.replace(" ", "-")]
        return "-".join(part for part in parts if part)


class CurriculumConfig(SamplerConfig):
    """Stages of a run, one after another, each from the weights of the one before: easier negatives before harder ones.

    The defaults are the three stages of ARK (arXiv 2511.16326), its easier and harder negatives being the lower and the
    upper half of what a row has: 3, 4 and 3 epochs at falling learning rates. Works with every model and loss.
    """

    kind: Literal["curriculum"] = "curriculum"
    inner: SamplerConfig = NoDuplicatesConfig()
    """How the batches of every stage are drawn; its `batch_size` is the curriculum's."""
    stages: tuple[StageConfig, ...] = Field(
        default=(
            StageConfig(name="stage-1-in-batch", negatives="in-batch", epochs=3, learning_rate=1e-5, warmup_steps=50),
            StageConfig(
                name="stage-2-easier",
                difficulty=DifficultyConfig(by="share", band=(0.5, 1)),
                epochs=4,
                learning_rate=8e-6,
                warmup_steps=0,
            ),
            StageConfig(
                name="stage-3-harder",
                difficulty=DifficultyConfig(by="share", band=(0, 0.5)),
                epochs=3,
                learning_rate=4e-6,
                warmup_steps=0,
            ),
        ),
        min_length=1,
    )
    """The stages, in their order."""

    not_inside: ClassVar[str] = "curriculum"

    @model_validator(mode="after")
    def _stages_make_sense(self) -> Self:
        if self.inner.kind == self.not_inside:
            raise ValueError("inner: a curriculum inside a curriculum: put all stages into one list")
        if self.stages[0].remine is not False:
            raise ValueError(
                "stages.0.remine: no stage before the first one trained a model to mine with: mine with `embed mine`"
            )
        names = [stage.title(number) for number, stage in enumerate(self.stages, 1)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stages: {twice[0]!r} names two of them: give each a `name` of its own")
        return self

    def phases(self, run: RunConfig) -> Sequence[Mapping[str, Any]]:
        """A phase per stage. Raises ConfigError for an option that the run's loss does not have."""
        from embed_qwen.curriculum import phase

        return [phase(self, number, run) for number in range(len(self.stages))]

    def build(self, context: BuildContext, dataset: Dataset) -> Sampler:
        """The batches of every stage, for use outside of a run."""
        return self.batches().build(context, dataset)

    def batches(self) -> SamplerConfig:
        """The sampler that every stage uses."""
        return self.inner.model_copy(update={"batch_size": self.batch_size})
