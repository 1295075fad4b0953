"""Initialises a student from layers of a teacher, where shapes match.

As in DistilBERT (Sanh et al. 2019, arXiv 1910.01108), a student of fewer layers and the same width takes some of the
teacher's layers, its embeddings and its last normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.hub import load_encoder, load_tokenizer, model_directory
from embed_core.models.lora.targets import roots_of
from embed_core.protocols import Announce
from embed_distill.models.config import Layers


def initialise(model: Any, teacher: str, layers: Layers, announce: Announce) -> None:
    """Copy weights of ``teacher`` (a directory or a model of the hub) into the encoder of ``model``, and announce
    which.

    A weight is copied where name and shape are the same, inside the layers and outside; word embeddings only where both
    vocabularies are equal. Raises CheckpointError if the teacher lacks the layers or no layer weight fits.
    """
    student = next(iter(roots_of(model).values()))
    if not hasattr(student, "config"):
        raise CheckpointError(f"init_from: {type(student).__name__} is no transformers model: leave the key out")
    if any("base_layer" in name for name, _ in student.named_parameters()):
        raise ConfigError(
            "init_from around kind 'lora': its adapters belong to the weights they were put on: "
            "put kind 'from-teacher' inside kind 'lora'"
        )
    directory = model_directory(teacher)
    source = load_encoder(directory)
    ours, theirs = layers_of(student), layers_of(source)
    if ours is None or theirs is None:
        lacking = "the student" if ours is None else repr(teacher)
        raise CheckpointError(f"init_from: {lacking} has no list of layers: leave the key out")
    chosen = _chosen(layers, len(ours[1]), len(theirs[1]), teacher)
    same_words = _vocabulary(getattr(model, "tokenizer", None)) == _vocabulary(load_tokenizer(directory))
    with torch.no_grad():
        pairs = zip(ours[1], (theirs[1][number] for number in chosen), strict=True)
        copied = [_copy(dict(own.named_parameters()), dict(other.named_parameters())) for own, other in pairs]
        outside = _copy(_outside(student, ours[0], same_words), _outside(source, theirs[0], same_words))
    if not any(copied):
        raise CheckpointError(
            f"init_from {teacher!r}: no weight of its layers fits the student's: {_sizes(source)} against "
            f"{_sizes(student)}; take a student of the teacher's make and width, or leave the key out"
        )
    per_layer = len(dict(ours[1][0].named_parameters()))
    words = "" if same_words else "; not the word embeddings, whose vocabulary differs"
    student.name_or_path = ""  # an adapter that names this base model would not fit the new weights
    announce(
        f"student started from layers {', '.join(map(str, chosen))} of the {len(theirs[1])} of {teacher!r}: "
        f"{min(copied)} of {per_layer} weights of each, and {outside} outside them{words}"
    )


def layers_of(encoder: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """A transformer's layers and their name: the longest list of modules of one class."""
    found = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(one) for one in module}) == 1
    ]
    return max(found, key=lambda pair: len(pair[1]), default=None)


def _chosen(layers: Layers, wanted: int, there: int, teacher: str) -> Sequence[int]:
    if layers == "even" and wanted > 1:
        numbers: Sequence[int] = [round(place * (there - 1) / (wanted - 1)) for place in range(wanted)]
    elif isinstance(layers, str):
        numbers = range(wanted)
    else:
        numbers = layers
    if len(numbers) != wanted or max(numbers, default=-1) >= there or (wanted > there and isinstance(layers, str)):
        said = layers if isinstance(layers, str) else list(layers)
        raise CheckpointError(
            f"layers {said}: the student has {wanted} layers and {teacher!r} has {there}, from 0 to {there - 1}: give "
            f"{wanted} of their numbers as a list"
        )
    return numbers


def _copy(own: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> int:
    """Copy the weights that fit; returns how many."""
    fitting = [name for name, value in own.items() if name in other and other[name].shape == value.shape]
    for name in fitting:
        own[name].copy_(other[name])
    return len(fitting)


def _outside(encoder: Any, layers: str, same_words: bool) -> dict[str, nn.Parameter]:
    """Parameters outside the layers; word embeddings only where ``same_words``."""
    words: Tensor = encoder.get_input_embeddings().weight
    inside = f"{layers}."
    return {
        name: value
        for name, value in encoder.named_parameters()
        if not name.startswith(inside) and (same_words or value is not words)
    }


def _vocabulary(tokenizer: Any) -> dict[str, int] | None:
    return None if tokenizer is None else dict(tokenizer.get_vocab())


def _sizes(encoder: Any) -> str:
    config = encoder.config
    return f"{type(encoder).__name__} with hidden_size {getattr(config, 'hidden_size', '?')}"
