"""Configs of BGE-M3's model and checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import CheckpointConfig, ModelConfig
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.text.pooling import Pooling

if TYPE_CHECKING:
    from embed_bge.checkpoint import BGEM3Checkpointer
    from embed_bge.model import BGEM3Model
    from embed_core.config.context import BuildContext


class BGEM3ModelConfig(ModelConfig):
    """An encoder with BGE-M3's three heads: dense, lexical and multi-vector (Chen et al. 2024, arXiv 2402.03216)."""

    kind: Literal["bge-m3"] = "bge-m3"
    name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub (``BAAI/bge-m3``), or ``from-scratch``: random weights in the shape below,
    with a tokenizer trained on the run's own texts."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    from_scratch: EncoderShape = EncoderShape()
    """Size of a ``from-scratch`` encoder; a model that is loaded has its own."""
    unified_finetuning: bool = True
    """Whether the model has lexical and multi-vector heads besides the dense vector."""
    colbert_dim: int = -1
    """Width of the multi-vectors; -1 = that of the heads saved with the model, else the encoder's hidden size."""
    fix_encoder: bool = False
    """Train the two heads only."""
    sentence_pooling_method: Pooling = "cls"
    """Where the dense vector comes from."""
    normalize_embeddings: bool = True
    """Whether the dense vector and the multi-vectors have unit length."""
    query_max_len: int = Field(default=64, ge=3)
    """Tokens of a query, special tokens and prompt included; longer ones are cut."""
    passage_max_len: int = Field(default=192, ge=3)
    """Tokens of a passage, special tokens and prompt included; longer ones are cut."""
    pad_to_multiple_of: int | None = Field(default=None, gt=0)
    """Pad chunks to a multiple of so many tokens, 8 suits tensor cores; None = to the longest text."""
    query_instruction_for_retrieval: str | None = None
    """The instruction before every query whose row has no prompt of its own."""
    query_instruction_format: str = "{}{}"
    """How instruction and query are joined: the first placeholder is the instruction, the second the text."""
    passage_instruction_for_retrieval: str | None = None
    """The instruction before every passage whose row has no prompt of its own."""
    passage_instruction_format: str = "{}{}"
    """How instruction and passage are joined."""
    gradient_checkpointing: bool = False
    """The former name of ``engine.gradient_checkpointing``; it still acts, with a line that names the new one."""

    @field_validator("query_instruction_format", "passage_instruction_format")
    @classmethod
    def _has_two_places(cls, value: str) -> str:
        # Config files and shells write the line break as two characters.
        from embed_core.text.prompts import check_format

        return check_format(value.replace("\\n", "\n"))

    @field_validator("colbert_dim")
    @classmethod
    def _is_a_width(cls, value: int) -> int:
        if value < -1 or value == 0:
            raise ValueError(f"colbert_dim {value} is no width: give a positive number, or -1 for the default")
        return value

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if self.fix_encoder and not self.unified_finetuning:
            raise ValueError(
                "fix_encoder: true with unified_finetuning: false leaves nothing to train: turn one of them round"
            )
        return self

    def build(self, context: BuildContext) -> BGEM3Model:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_bge.build import build_model

        return build_model(self, context)


class BGEM3CheckpointConfig(CheckpointConfig):
    """The directory that ``BGEM3FlagModel``, ``SentenceTransformer`` and ``AutoModel`` load."""

    kind: Literal["bge-m3"] = "bge-m3"

    def build(self, context: BuildContext) -> BGEM3Checkpointer:
        """The exporter."""
        from embed_bge.checkpoint import BGEM3Checkpointer

        return BGEM3Checkpointer()
