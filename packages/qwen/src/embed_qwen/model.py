"""Qwen3-Embedding: a decoder whose state of the last token is the vector (arXiv 2506.05176).

Shape suffixes are those of :mod:`embed_core.types` and :mod:`embed_core.text.varlen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from embed_core.errors import ConfigError
from embed_core.models.hub import check_fit
from embed_core.text.pooling import Pooling, at_least_float32
from embed_core.text.prompts import Prompt
from embed_core.text.tokenizer import TextTokenizer, TokenizesTexts
from embed_core.text.varlen import chunk_tokens
from embed_core.types import Embeddings, Role, ScoreWeights
from embed_qwen.model_config import Qwen3EmbeddingConfig
from embed_qwen.prompts import QueryPrompt


class Qwen3EmbeddingModel(TokenizesTexts, nn.Module):
    """See :class:`embed_core.protocols.Model`. ``encoder`` is the decoder without its language model head.

    Raises ConfigError for a maximum length beyond the model's positions or without room for the instruction,
    CheckpointError for a tokenizer with more ids than the model has embeddings.
    """

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}
    pooling: Pooling = "last_token"
    normalize = True
    encoder: Any
    tokenizer: Any

    def __init__(self, config: Qwen3EmbeddingConfig, encoder: Any, tokenizer: Any, base: Path | None = None) -> None:
        """``tokenizer`` ends every text with the token whose state is the vector. ``base`` holds the weights that
        ``encoder`` starts from; an export is compared with them."""
        super().__init__()
        assert config.instruction is not None, "build_model fills it in"
        self.config, self.encoder, self.tokenizer, self.base = config, encoder, tokenizer, base
        _check_fit(config, encoder, tokenizer)
        # Texts that are too long lose words at their end; the instruction before them and the token behind them stay.
        tokenizer.truncation_side = "right"
        prompts: dict[Role, Prompt] = {"query": QueryPrompt(config.instruction), "passage": Prompt()}
        limits: dict[Role, int] = {"query": config.query_max_length, "passage": config.passage_max_length}
        self._text = TextTokenizer(tokenizer, limits, prompts, config.pad_to_multiple_of)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **pack: Tensor) -> Embeddings:
        """[N,L] int64 ids and mask (1 on real tokens), or [1,T] ids and the ``pack`` of :mod:`embed_core.text.varlen` →
        dense [N,D] of unit length, fp32 or wider. Both forms, padded on either side, give the same vectors."""
        tokens = chunk_tokens(input_ids, attention_mask, **pack)
        dense_ND = at_least_float32(tokens.pool(tokens.states(self.encoder), self.pooling))
        return Embeddings(dense_ND=functional.normalize(dense_ND, dim=-1))

    @property
    def max_length(self) -> int:
        """Tokens at which clients of the exported model truncate, the same as in training."""
        return max(self.config.query_max_length, self.config.passage_max_length)

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompts by sentence-transformers' names; documents have none."""
        prefix = self._text.prompts["query"].prefix
        return {"query": prefix} if prefix else {}


def _check_fit(config: Qwen3EmbeddingConfig, encoder: Any, tokenizer: Any) -> None:
    """Raises for maximum lengths or ids beyond the model's, and for an instruction that would be cut off unnoticed."""
    lengths = {key: getattr(config, key) for key in ("query_max_length", "passage_max_length")}
    check_fit(config.name_or_path, lengths, encoder, tokenizer)
    bare = len(tokenizer.backend_tokenizer.encode(QueryPrompt(config.instruction).apply("")).ids)
    if bare >= config.query_max_length:
        raise ConfigError(
            f"query_max_length {config.query_max_length} leaves no room for a question: the instruction "
            f"{config.instruction!r} and the end of text take {bare} tokens: raise it, or shorten the instruction"
        )
