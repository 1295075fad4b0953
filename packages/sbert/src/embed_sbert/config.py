"""Configs of sentence-transformers' model and checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import CheckpointConfig, ModelConfig
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.config import EncoderShape

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_sbert.checkpoint import SentenceTransformersCheckpointer
    from embed_sbert.model import SentenceTransformersModel

KIND = "sentence-transformers"


class SentenceTransformersModelConfig(ModelConfig):
    """What ``SentenceTransformer(name_or_path)`` loads: any chain of modules, run by their own code."""

    kind: Literal["sentence-transformers"] = "sentence-transformers"
    name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``: random weights in the shape below, mean pooling and
    unit length, with a tokenizer trained on the run's own texts."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    from_scratch: EncoderShape = EncoderShape()
    """Size of a ``from-scratch`` encoder; a model that is loaded has its own."""
    max_seq_length: int | None = Field(default=None, ge=3)
    """Tokens of a text, special tokens and prompt included; longer ones are cut. None = as saved with the model; for a
    from-scratch model 192."""
    query_prompt: str | None = None
    """The prompt before every query whose row has none of its own; None = the model's prompt ``query``."""
    passage_prompt: str | None = None
    """The prompt before every passage whose row has none of its own; None = the model's prompt ``document``."""
    pad_to_multiple_of: int | None = Field(default=None, gt=0)
    """Pad chunks to a multiple of so many tokens, 8 suits tensor cores; None = to the longest text. Models that do not
    pad ignore it."""

    def build(self, context: BuildContext) -> SentenceTransformersModel:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_sbert.build import build_model

        return build_model(self, context)


class SentenceTransformersCheckpointConfig(CheckpointConfig):
    """A plain sentence-transformers directory: its modules, prompts and settings as they were, the weights trained."""

    kind: Literal["sentence-transformers"] = "sentence-transformers"
    in_output_dir: bool = False
    """Whether the finished model's files also lie in the output directory itself, so that it loads as the model."""

    def build(self, context: BuildContext) -> SentenceTransformersCheckpointer:
        """The exporter."""
        from embed_sbert.checkpoint import SentenceTransformersCheckpointer

        return SentenceTransformersCheckpointer()
