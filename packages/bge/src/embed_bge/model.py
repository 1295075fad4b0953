"""BGE-M3: one encoder, three kinds of embeddings (Chen et al. 2024, arXiv 2402.03216).

Shape suffixes besides those of :mod:`embed_core.types` and :mod:`embed_core.text.varlen` (X, Y: a chunk, padded or
packed): S kept tokens, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from embed_bge.config import BGEM3ModelConfig
from embed_core.embeddings import offsets_of
from embed_core.errors import ConfigError, did_you_mean
from embed_core.models.hub import check_fit, positions
from embed_core.protocols import Announce
from embed_core.text.pooling import Pooling, at_least_float32
from embed_core.text.prompts import Prompt
from embed_core.text.tokenizer import TextTokenizer, TokenizesTexts
from embed_core.text.varlen import ChunkTokens, chunk_tokens
from embed_core.types import Embeddings, MultiVectors, Role, ScoreWeights, SparseVectors

ALL_SCORES: Mapping[str, ScoreWeights] = {
    "all": {"dense": 1.0, "sparse": 0.3, "multi": 1.0},
    "dense": {"dense": 1.0},
    "sparse": {"sparse": 1.0},
    "multi-vector": {"multi": 1.0},
}
DENSE_SCORES: Mapping[str, ScoreWeights] = {"dense": {"dense": 1.0}}


class BGEM3Model(TokenizesTexts, nn.Module):
    """An encoder with a dense, a lexical and a multi-vector head.

    ``BGEM3Model("BAAI/bge-m3", unified_finetuning=True)`` loads a model of the hub or a directory, with its heads if it
    has them; the keyword options are the fields of :class:`~embed_bge.config.BGEM3ModelConfig`. Raises CheckpointError
    for a model that cannot be loaded.
    """

    encoder: Any
    tokenizer: Any

    def __init__(
        self, model_name: str = "BAAI/bge-m3", *, seed: int = 42, announce: Announce = print, **options: Any
    ) -> None:
        super().__init__()
        from embed_bge.build import load_parts

        config = _config(name_or_path=model_name, **options)
        self._assemble(config, *load_parts(config, seed, announce))

    @classmethod
    def from_parts(
        cls, config: BGEM3ModelConfig, encoder: Any, tokenizer: Any, heads: Mapping[str, nn.Linear]
    ) -> BGEM3Model:
        """The model around an existing encoder; ``heads`` are as :func:`embed_bge.build.load_parts` returns them."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._assemble(config, encoder, tokenizer, heads)
        return model

    def _assemble(self, config: BGEM3ModelConfig, encoder: Any, tokenizer: Any, heads: Mapping[str, nn.Linear]) -> None:
        self.encoder = encoder
        self.colbert_linear = heads.get("colbert_linear")
        self.sparse_linear = heads.get("sparse_linear")
        self.configure(config, tokenizer)

    def configure(self, config: BGEM3ModelConfig, tokenizer: Any = None) -> None:
        """Apply everything of ``config`` that is not a weight: lengths, prompts, pooling, what is frozen.

        Raises ConfigError where ``config`` asks for heads that this model lacks or for longer texts than it allows,
        CheckpointError for a tokenizer with more ids than the encoder.
        """
        if config.unified_finetuning and self.sparse_linear is None:
            raise ConfigError(
                "unified_finetuning: true needs the lexical and multi-vector heads, which this model was built "
                "without: build it with unified_finetuning=True"
            )
        tokenizer = tokenizer if tokenizer is not None else self.tokenizer
        lengths = {key: getattr(config, key) for key in ("query_max_len", "passage_max_len")}
        check_fit(config.name_or_path, lengths, self.encoder, tokenizer)
        self.config = config
        self.scores = ALL_SCORES if config.unified_finetuning else DENSE_SCORES
        self.tokenizer = tokenizer
        self.pooling: Pooling = config.sentence_pooling_method
        self.normalize = config.normalize_embeddings
        prompts: dict[Role, Prompt] = {
            "query": Prompt(config.query_instruction_for_retrieval, config.query_instruction_format),
            "passage": Prompt(config.passage_instruction_for_retrieval, config.passage_instruction_format),
        }
        limits: dict[Role, int] = {"query": config.query_max_len, "passage": config.passage_max_len}
        self._text = TextTokenizer(tokenizer, limits, prompts, config.pad_to_multiple_of)
        # Ids that carry no lexical meaning, as the family's clients define them.
        special = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        self._special_ids = sorted({i for i in special if i is not None})
        self._freeze()

    def _freeze(self) -> None:
        self.encoder.requires_grad_(not self.config.fix_encoder)
        for head in (self.colbert_linear, self.sparse_linear):
            if head is not None:
                head.requires_grad_(self.config.unified_finetuning)
        # The pooler is kept for the checkpoint. No embedding reads it, so it gets no gradient.
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **pack: Tensor) -> Embeddings:
        """[N,L] int64 ids and mask (1 on real tokens), or [1,T] ids and the ``pack`` of :mod:`embed_core.text.varlen` →
        dense [N,D], lexical weights and multi-vectors.

        Vectors are fp32 or wider whatever the weights' precision. The form and padding change nothing.
        """
        tokens = chunk_tokens(input_ids, attention_mask, **pack)
        states_XYD = tokens.states(self.encoder)
        dense_ND = at_least_float32(tokens.pool(states_XYD, self.pooling))
        dense_ND = functional.normalize(dense_ND, dim=-1) if self.normalize else dense_ND
        if not self.config.unified_finetuning:
            return Embeddings(dense_ND=dense_ND)
        return Embeddings(dense_ND, self._sparse(states_XYD, tokens), self._multi(states_XYD, tokens))

    def _sparse(self, states_XYD: Tensor, tokens: ChunkTokens) -> SparseVectors:
        """The largest weight of each id of a text, over the flat tokens: no tensor as wide as the vocabulary."""
        assert self.sparse_linear is not None
        ids_XY = tokens.input_ids
        keep_XY = tokens.real_XY & ~torch.isin(ids_XY, ids_XY.new_tensor(self._special_ids))
        # The head before the mask, here and below: a CPU compiles a bf16 product again for every number of tokens.
        weights_S = at_least_float32(torch.relu(self.sparse_linear(states_XYD).squeeze(-1)[keep_XY]))
        stride = int(self.encoder.config.vocab_size)
        # (text, id) as one number: sorted unique numbers are grouped by text.
        slots_K, slot_S = torch.unique((tokens.texts_XY * stride + ids_XY)[keep_XY], return_inverse=True)
        best_K = weights_S.new_zeros(slots_K.shape[0]).scatter_reduce(0, slot_S, weights_S, "amax", include_self=False)
        lengths_N = torch.bincount(slots_K // stride, minlength=tokens.count)
        return SparseVectors(best_K, slots_K % stride, offsets_of(lengths_N))

    def _multi(self, states_XYD: Tensor, tokens: ChunkTokens) -> MultiVectors:
        """A vector for every real token but the first (``<s>``); ``</s>`` stays, as in the family's clients."""
        assert self.colbert_linear is not None
        vectors_TC = at_least_float32(self.colbert_linear(states_XYD)[tokens.later_XY])
        vectors_TC = functional.normalize(vectors_TC, dim=-1) if self.normalize else vectors_TC
        return MultiVectors(vectors_TC, offsets_of(tokens.lengths_N - 1))

    @property
    def colbert_dim(self) -> int | None:
        """Width of the multi-vectors; ``None`` without heads."""
        return None if self.colbert_linear is None else int(self.colbert_linear.out_features)

    @property
    def max_length(self) -> int:
        """Tokens at which clients of the exported model truncate: the tokenizer's limit, at least the trained one."""
        trained = max(self.config.query_max_len, self.config.passage_max_len)
        return min(max(int(self.tokenizer.model_max_length), trained), positions(self.encoder) or trained)

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prefixes for sentence-transformers, where the instructions' formats are prefixes."""
        named = {"query": self._text.prompts["query"].prefix, "document": self._text.prompts["passage"].prefix}
        return {name: prefix for name, prefix in named.items() if prefix}


def _config(**options: Any) -> BGEM3ModelConfig:
    """Raises ConfigError, one line, for an option that does not exist or has a wrong value."""
    known = set(BGEM3ModelConfig.model_fields) - {"kind"}
    for key in options:
        if key not in known:
            raise ConfigError(f"BGEM3Model has no option {key!r}: {did_you_mean(key, known)}")
    try:
        return BGEM3ModelConfig(**options)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".lstrip(": ") for fault in error.errors()]
        raise ConfigError(f"BGEM3Model: {'; '.join(faults)}") from None
