"""Runs sentence-transformers' modules one after another over a chunk whose texts need not be alike.

In a few places the modules let padding in, or expect one prompt for the whole batch. Here a text's vector does not
depend on the other texts of its chunk: what would let them in is masked or done in groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError
from embed_core.text.pooling import at_least_float32
from embed_core.text.varlen import Packed
from embed_sbert.readers import MASK, PROMPT_LENGTHS

EMBEDDING, TOKENS = "sentence_embedding", "token_embeddings"
Features = dict[str, Any]


def run(modules: Iterable[Any], features: Features, forward_options: dict[str, Any]) -> Tensor:
    """[N,D]: the sentence embeddings that ``modules`` compute from ``features``, fp32 or wider.

    ``forward_options`` (``task``) go to the modules that declare them. Raises CheckpointError where no embedding
    results.
    """
    from sentence_transformers.sentence_transformer.modules import CNN, Normalize, Pooling

    lengths_N = features.pop(PROMPT_LENGTHS, None)
    for module in modules:
        if isinstance(module, Pooling):
            features = _pooled(module, features, lengths_N)
            continue
        if isinstance(module, Normalize) and module.module_input_name in features:
            # In half precision vectors would be 0.4 % off unit length.
            features[module.module_input_name] = at_least_float32(features[module.module_input_name])
        if isinstance(module, CNN) and MASK in features:
            # A convolution reads across the end of a text, so the padding there must be zeros.
            features[TOKENS] = features[TOKENS] * features[MASK].unsqueeze(-1).to(features[TOKENS].dtype)
        options = {name: value for name, value in forward_options.items() if name in _declared(module)}
        features = module(features, **options)
    if EMBEDDING not in features:
        raise CheckpointError(
            f"the model's modules end with {sorted(features)} and no {EMBEDDING!r}: it needs a Pooling module"
        )
    return at_least_float32(features[EMBEDDING])


def run_packed(modules: Iterable[Any], chunk: Packed) -> Tensor:
    """As :func:`run`, for unpadded texts: a Transformer, Pooling, and modules that read sentence embeddings alone."""
    transformer, *others = modules
    features: Features = {TOKENS: chunk.states(transformer.model), "cu_seq_lens_q": chunk.offsets_N1}
    return run(others, features, {})


def can_be_packed(modules: list[nn.Module]) -> bool:
    """Whether :func:`run_packed` supports all of ``modules``."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Normalize, Pooling

    first, *rest = modules
    if type(first) is not Transformer or not rest or type(rest[0]) is not Pooling or not rest[0].include_prompt:
        return False
    text = first.modality_config["text"]
    plain = text["method"] == "forward" and text["method_output_name"] in ("last_hidden_state", ["last_hidden_state"])
    sentences = all(
        type(module) in (Dense, Dropout, LayerNorm, Normalize)
        and getattr(module, "module_input_name", EMBEDDING) == EMBEDDING
        for module in rest[1:]
    )
    return plain and first.module_output_name == TOKENS and sentences


def _declared(module: Any) -> Iterable[str]:
    names: Iterable[str] = getattr(module, "forward_kwargs", ())
    return names


def _pooled(module: Any, features: Features, lengths_N: Tensor | None) -> Features:
    """Pools texts in groups of equal prompt length if prompts are left out of the mean; pooling has no weights."""
    if "max" in module.pooling_mode and MASK in features:
        features[MASK] = _never_empty(features[MASK])
    if module.include_prompt or lengths_N is None:
        pooled: Features = module(features)
        return pooled
    lengths = lengths_N.tolist()
    count, groups = len(lengths), sorted(set(lengths))
    parts, places = [], []
    for length in groups:
        index_M = torch.tensor([n for n, own in enumerate(lengths) if own == length], device=lengths_N.device)
        group = {name: _picked(value, index_M, count) for name, value in features.items()}
        group["prompt_length"] = length
        parts.append(module(group)[EMBEDDING])
        places.append(index_M)
    back_N = torch.cat(places).argsort()
    return {**features, EMBEDDING: torch.cat(parts).index_select(0, back_N)}


def _never_empty(mask_NL: Tensor) -> Tensor:
    """A mask without empty texts, whose largest token would be −∞: one without known words keeps its padding."""
    first_L = torch.arange(mask_NL.shape[1], device=mask_NL.device) == 0
    return torch.where((mask_NL.sum(1, keepdim=True) == 0) & first_L, torch.ones_like(mask_NL), mask_NL)


def _picked(value: Any, index_M: Tensor, count: int) -> Any:
    indexed = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count
    return value.index_select(0, index_M) if indexed else value
