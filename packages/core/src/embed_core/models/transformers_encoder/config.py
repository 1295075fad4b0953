"""The config of ``transformers-encoder``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import ModelConfig
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.text.pooling import Pooling

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.models.transformers_encoder.model import TransformersEncoder


class TransformersEncoderConfig(ModelConfig):
    """What ``AutoModel`` loads, pooled into one dense vector. Exported by the checkpoint kind ``transformers``."""

    kind: Literal["transformers-encoder"] = "transformers-encoder"
    name_or_path: str = FROM_SCRATCH
    """A model directory, a model of the hub, or ``from-scratch``: random weights in the shape below, with a tokenizer
    trained on the run's own texts."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; None = its main branch."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    from_scratch: EncoderShape = EncoderShape()
    """Size of a ``from-scratch`` encoder; a model that is loaded has its own."""
    pooling: Pooling | None = None
    """Where the vector comes from: the first token, the mean of all, the last one. None = as sentence-transformers'
    files beside the model say, else ``mean``."""
    normalize: bool = True
    """Whether vectors have unit length."""
    query_max_length: int = Field(default=512, ge=3)
    """Tokens of a query, special tokens and prompt included; longer ones are cut."""
    passage_max_length: int = Field(default=512, ge=3)
    """Tokens of a passage, special tokens and prompt included; longer ones are cut."""
    query_prompt: str | None = None
    """Put before every query whose row has no prompt of its own; None = as sentence-transformers' files say."""
    passage_prompt: str | None = None
    """Put before every passage whose row has no prompt of its own; None = as sentence-transformers' files say."""
    pad_to_multiple_of: int | None = Field(default=None, gt=0)
    """Pad chunks to a multiple of so many tokens, 8 suits tensor cores; None = to the longest text."""

    def build(self, context: BuildContext) -> TransformersEncoder:
        """The model, on CPU in fp32. Raises CheckpointError and ConfigError."""
        from embed_core.models.transformers_encoder.build import build_model

        return build_model(self, context)
