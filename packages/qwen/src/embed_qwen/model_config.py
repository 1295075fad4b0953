"""Configs of Qwen3-Embedding's model and checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import CheckpointConfig, ModelConfig, Section
from embed_core.models.from_scratch import FROM_SCRATCH

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_qwen.checkpoint import Qwen3Checkpointer
    from embed_qwen.model import Qwen3EmbeddingModel


class Qwen3Shape(Section):
    """Size of a Qwen3 decoder built at random; the defaults make one of about three million parameters."""

    vocab_size: int = Field(default=16_000, ge=259)
    """Pieces of the byte-level BPE tokenizer: 256 bytes, 3 special tokens, and merges; a small corpus gives fewer."""
    hidden: int = Field(default=128, gt=0)
    """Width of the token states, and of the vector; the gated feed-forward part is three times as wide, as Qwen's."""
    layers: int = Field(default=4, gt=0)
    """Transformer blocks."""
    heads: int = Field(default=4, gt=0)
    """Attention heads; they must divide ``hidden`` into even parts, which rotary positions need."""
    key_value_heads: int = Field(default=2, gt=0)
    """Heads of keys and values, shared by the attention heads (grouped-query attention); they must divide ``heads``."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"{self.heads} attention heads do not divide hidden size {self.hidden} into even parts: "
                f"choose a `hidden` that is a multiple of {2 * self.heads}"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"{self.key_value_heads} key-value heads do not divide {self.heads} attention heads: "
                "choose a divisor of `heads`"
            )
        return self


class Qwen3EmbeddingConfig(ModelConfig):
    """A Qwen3 decoder whose last token is the vector (Qwen3-Embedding, arXiv 2506.05176), loaded by ms-swift.

    For adapters wrap it: ``{kind: lora, inner: …}``. Activation checkpointing: ``engine.gradient_checkpointing``.
    """

    kind: Literal["qwen3-embedding"] = "qwen3-embedding"
    name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub (``Qwen/Qwen3-Embedding-0.6B``), or ``from-scratch``: random weights in the
    shape below, with a tokenizer trained on the run's own texts."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    from_scratch: Qwen3Shape = Qwen3Shape()
    """Size of a ``from-scratch`` decoder; a model that is loaded has its own."""
    instruction: str | None = None
    """The task, put before every query whose row has no prompt, as ``Instruct: TASK⏎Query:``. None = as saved in
    sentence-transformers' files beside the model, else Qwen's own for web search; empty = queries have none. Passages
    have no instruction, unless their row has a prompt."""
    query_max_length: int = Field(default=512, ge=3)
    """Tokens of a query, instruction and end of text included; of longer ones the end of the question is cut."""
    passage_max_length: int = Field(default=512, ge=3)
    """Tokens of a passage, end of text included; of longer ones the last words are cut."""
    pad_to_multiple_of: int | None = Field(default=None, gt=0)
    """Pad chunks to a multiple of so many tokens, 8 suits tensor cores; None = to the longest text."""

    def build(self, context: BuildContext) -> Qwen3EmbeddingModel:
        """The model, on CPU in fp32. Raises CheckpointError, ConfigError, and PluginError without a fit ms-swift."""
        from embed_qwen.build import build_model

        return build_model(self, context)


class Qwen3CheckpointConfig(CheckpointConfig):
    """The directory that ``SentenceTransformer``, ``AutoModel`` and ms-swift load, laid out as Qwen's own."""

    kind: Literal["qwen3-embedding"] = "qwen3-embedding"

    def build(self, context: BuildContext) -> Qwen3Checkpointer:
        """The exporter."""
        from embed_qwen.checkpoint import Qwen3Checkpointer

        return Qwen3Checkpointer(context.announce)
