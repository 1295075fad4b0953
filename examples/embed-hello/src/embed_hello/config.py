"""The configs of the four components: the keys a user may write, and how to build each. No torch outside ``build``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import CheckpointConfig, LossConfig, ModelConfig, SamplerConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset
    from embed_hello.checkpoint import HelloCheckpointer
    from embed_hello.loss import HardestMargin
    from embed_hello.model import NgramEncoder
    from embed_hello.sampler import ByLength


class HelloModelConfig(ModelConfig):
    """Hashed character n-grams, averaged, then a small perceptron."""

    kind: Literal["hello"] = "hello"
    name_or_path: str = "from-scratch"
    """``from-scratch``, or a directory that a `hello` checkpoint was exported to."""
    buckets: int | None = Field(default=None, gt=1)
    """Rows of the n-gram table; None = 16384 from scratch, else the directory's."""
    width: int | None = Field(default=None, gt=0)
    """Width of an n-gram vector; None = 128 from scratch, else the directory's."""
    dimension: int | None = Field(default=None, gt=0)
    """Width of the text embedding; None = 128 from scratch, else the directory's."""
    max_characters: int = Field(default=512, gt=0)
    """Number of characters at which texts are cut."""

    def build(self, context: BuildContext) -> NgramEncoder:
        """The model. Raises CheckpointError for a directory without an exported model or of other sizes."""
        from embed_hello.checkpoint import load
        from embed_hello.model import NgramEncoder, Sizes

        asked = {"buckets": self.buckets, "width": self.width, "dimension": self.dimension}
        given = {name: value for name, value in asked.items() if value is not None}
        if self.name_or_path != "from-scratch":
            return load(self.name_or_path, self.max_characters, **given)
        return NgramEncoder(Sizes(**given), self.max_characters, seed=context.seed)


class HelloLossConfig(LossConfig):
    """Cosine margin against the hardest passages of the batch."""

    kind: Literal["hello"] = "hello"
    margin: float = Field(default=0.8, gt=0, le=2)
    """By how much the cosine of the positive must exceed that of a negative."""
    hardest: int = Field(default=8, gt=0)
    """Number of negatives of the batch that count for each row, the hardest first."""

    def build(self, context: BuildContext) -> HardestMargin:
        from embed_hello.loss import HardestMargin

        return HardestMargin(self.margin, self.hardest)


class HelloSamplerConfig(SamplerConfig):
    """Rows of similar length together, the batches in random order."""

    kind: Literal["hello"] = "hello"

    def build(self, context: BuildContext, dataset: Dataset) -> ByLength:
        from embed_hello.sampler import ByLength

        return ByLength(dataset, self.batch_size, context.seed)


class HelloCheckpointConfig(CheckpointConfig):
    """``model.safetensors``, ``config.json`` and a model card."""

    kind: Literal["hello"] = "hello"

    def build(self, context: BuildContext) -> HelloCheckpointer:
        from embed_hello.checkpoint import HelloCheckpointer

        return HelloCheckpointer()
