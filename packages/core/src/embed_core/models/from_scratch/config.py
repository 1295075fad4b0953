"""The shape of a from-scratch encoder."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from embed_core.config.component import Section


class EncoderShape(Section):
    """Size of a Transformer encoder built at random; the defaults make one of about three million parameters."""

    vocab_size: int = Field(default=16_000, ge=16)
    """Pieces of the Unigram tokenizer, special tokens included; a small corpus gives fewer."""
    hidden: int = Field(default=128, gt=0)
    """Width of the token states, and of the dense vector."""
    layers: int = Field(default=4, gt=0)
    """Transformer blocks; the feed-forward part of each is four times as wide as ``hidden``."""
    heads: int = Field(default=4, gt=0)
    """Attention heads; they must divide ``hidden``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of states and of attention; one pass over the data has nothing to overfit to."""

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"{self.heads} attention heads do not divide hidden size {self.hidden}: "
                "choose a `hidden` that is a multiple of `heads`"
            )
        return self
