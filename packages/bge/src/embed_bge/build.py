"""Builds a model from a config: loads the encoder and the heads of a directory, or draws them at random."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embed_bge.config import BGEM3ModelConfig
from embed_bge.model import BGEM3Model
from embed_core.acceleration.activation_checkpointing import enable_activation_checkpointing
from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.encoder import seeded, xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer
from embed_core.models.hub import load_encoder, load_tokenizer, model_directory
from embed_core.protocols import Announce
from embed_core.utils.messages import one_line

HEADS = ("colbert_linear", "sparse_linear")
FACTS_FILE = "bge_m3.json"
"""File of what the family's own files do not say: the width of the heads, the pooling, the instructions."""


def build_model(config: BGEM3ModelConfig, context: BuildContext) -> BGEM3Model:
    """The model of a run."""
    model = _built(config, context)
    if config.gradient_checkpointing:
        context.announce("model.gradient_checkpointing is now engine.gradient_checkpointing: please set that one")
        enable_activation_checkpointing(model)
    return model


def _built(config: BGEM3ModelConfig, context: BuildContext) -> BGEM3Model:
    if config.name_or_path != FROM_SCRATCH:
        return BGEM3Model.from_parts(config, *load_parts(config, context.seed, context.announce))
    longest = max(config.query_max_len, config.passage_max_len)
    shape = config.from_scratch
    dataset = context.dataset()
    with context.first():
        tokenizer = unigram_tokenizer(
            dataset.texts(), shape.vocab_size, context.cache_dir, context.announce, max_length=longest
        )
    encoder = xlm_roberta(len(tokenizer), shape, max_length=longest, seed=context.seed).train()
    heads = fresh_heads(config, encoder, context.seed) if config.unified_finetuning else {}
    return BGEM3Model.from_parts(config, encoder, tokenizer, heads)


def load_parts(config: BGEM3ModelConfig, seed: int, announce: Announce) -> tuple[Any, Any, Mapping[str, nn.Linear]]:
    """Encoder, tokenizer and heads (``colbert_linear``, ``sparse_linear``; none where they are not asked for).

    Raises CheckpointError for a model that is not there or does not fit, ConfigError for texts longer than it allows.
    """
    if config.name_or_path == FROM_SCRATCH:
        raise ConfigError(
            f"{FROM_SCRATCH!r} needs texts to train a tokenizer on: run it as a recipe, or name a model directory"
        )
    directory = model_directory(config.name_or_path, config.revision)
    encoder = load_encoder(directory, trust_remote_code=config.trust_remote_code, seed=seed)
    tokenizer = load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    _note_differences(config, directory, announce)
    if not config.unified_finetuning:
        return encoder, tokenizer, {}
    return encoder, tokenizer, _heads(config, encoder, directory, seed, announce)


def _note_differences(config: BGEM3ModelConfig, directory: Path, announce: Announce) -> None:
    """Announces settings that differ from the saved ones: a model used with another pooling is silently worse."""
    path = directory / FACTS_FILE
    if not path.is_file():
        return
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}): restore the file or delete it") from None
    for key in ("sentence_pooling_method", "normalize_embeddings"):
        if key in facts and facts[key] != getattr(config, key):
            announce(f"{key} is {getattr(config, key)!r}, but {config.name_or_path} was trained with {facts[key]!r}")


def _heads(
    config: BGEM3ModelConfig, encoder: Any, directory: Path, seed: int, announce: Announce
) -> Mapping[str, nn.Linear]:
    files = {name: directory / f"{name}.pt" for name in HEADS}
    missing = [path.name for path in files.values() if not path.is_file()]
    if len(missing) == len(HEADS):
        announce(f"{config.name_or_path} has no lexical and multi-vector heads: they start at random")
        return fresh_heads(config, encoder, seed)
    if missing:
        raise CheckpointError(
            f"model directory {str(directory)!r} has one head without the other: {missing[0]} is missing; "
            "copy it there, or remove the other one to start both at random"
        )
    states = {name: _head_state(path) for name, path in files.items()}
    width, saved = int(encoder.config.hidden_size), int(states["colbert_linear"]["weight"].shape[0])
    if config.colbert_dim not in (-1, saved):
        raise CheckpointError(
            f"colbert_dim {config.colbert_dim} does not fit {files['colbert_linear']}, whose width is {saved}: "
            f"set colbert_dim to {saved} or -1"
        )
    heads = {"colbert_linear": nn.Linear(width, saved), "sparse_linear": nn.Linear(width, 1)}
    for name, head in heads.items():
        _fill(head, states[name], files[name])
    return heads


def _head_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError
        reason = one_line(error, 160)
        raise CheckpointError(f"head {path} cannot be read ({type(error).__name__}: {reason}): copy it again") from None
    tensors = isinstance(state, dict) and all(isinstance(state.get(key), torch.Tensor) for key in ("weight", "bias"))
    if not tensors or state["weight"].dim() != 2:
        raise CheckpointError(f"head {path} holds no linear layer: it must be a state dict with `weight` and `bias`")
    return {key: state[key].float() for key in ("weight", "bias")}


def _fill(head: nn.Linear, state: Mapping[str, torch.Tensor], path: Path) -> None:
    for key, tensor in head.state_dict().items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"head {path} does not fit the encoder: {key} is {list(state[key].shape)}, "
                f"must be {list(tensor.shape)}; it belongs to another model"
            )
    head.load_state_dict(state)


def fresh_heads(config: BGEM3ModelConfig, encoder: Any, seed: int) -> dict[str, nn.Linear]:
    """Both heads at random from ``seed``.

    The lexical head starts small and above zero. With torch's own initialisation the products of unnormalised weights,
    divided by the temperature, start at some tens: the first steps push every weight below zero, where the ReLU passes
    no gradient, and the head stays dead (the all-zero sparse vectors that FlagEmbedding's users report).
    """
    width = int(encoder.config.hidden_size)
    with seeded(seed + 1):  # the encoder has drawn from `seed`
        colbert = nn.Linear(width, width if config.colbert_dim == -1 else config.colbert_dim)
        sparse = nn.Linear(width, 1)
        nn.init.normal_(sparse.weight, std=0.25 / math.sqrt(width))
        nn.init.constant_(sparse.bias, 0.1)
        return {"colbert_linear": colbert, "sparse_linear": sparse}
