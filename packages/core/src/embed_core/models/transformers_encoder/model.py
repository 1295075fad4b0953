"""A transformers encoder and one pooled vector.

Shape suffixes are those of :mod:`embed_core.types` and :mod:`embed_core.text.varlen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from embed_core.models.hub import check_fit
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.text.pooling import Pooling, at_least_float32
from embed_core.text.prompts import Prompt
from embed_core.text.tokenizer import TextTokenizer, TokenizesTexts
from embed_core.text.varlen import chunk_tokens
from embed_core.types import Embeddings, Role, ScoreWeights


class TransformersEncoder(TokenizesTexts, nn.Module):
    """See :class:`embed_core.protocols.Model`. The vector is as wide as the encoder's token states.

    Raises ConfigError for texts longer than the encoder has positions for, CheckpointError for a tokenizer with more
    ids than it has embeddings.
    """

    scores: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}
    encoder: Any
    tokenizer: Any

    def __init__(self, config: TransformersEncoderConfig, encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        assert config.pooling is not None, "build_model fills it in"
        lengths = {key: getattr(config, key) for key in ("query_max_length", "passage_max_length")}
        check_fit(config.name_or_path, lengths, encoder, tokenizer)
        self.config, self.encoder, self.tokenizer = config, encoder, tokenizer
        self.pooling: Pooling = config.pooling
        self.normalize = config.normalize
        prompts: dict[Role, Prompt] = {"query": Prompt(config.query_prompt), "passage": Prompt(config.passage_prompt)}
        limits: dict[Role, int] = {"query": config.query_max_length, "passage": config.passage_max_length}
        self._text = TextTokenizer(tokenizer, limits, prompts, config.pad_to_multiple_of)
        # A pooler is kept for the checkpoint's sake; no embedding reads it, so it can have no gradient.
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **pack: Tensor) -> Embeddings:
        """[N,L] int64 ids and mask (1 on real tokens), or [1,T] ids and the ``pack`` of :mod:`embed_core.text.varlen` →
        dense [N,D], fp32 or wider. Which of the two, and padding, change nothing."""
        tokens = chunk_tokens(input_ids, attention_mask, **pack)
        dense_ND = at_least_float32(tokens.pool(tokens.states(self.encoder), self.pooling))
        return Embeddings(dense_ND=functional.normalize(dense_ND, dim=-1) if self.normalize else dense_ND)

    @property
    def max_length(self) -> int:
        """Tokens at which clients of the exported model truncate, as training does."""
        return max(self.config.query_max_length, self.config.passage_max_length)

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts by sentence-transformers' names."""
        named = {"query": self.config.query_prompt, "document": self.config.passage_prompt}
        return {name: prompt for name, prompt in named.items() if prompt}
