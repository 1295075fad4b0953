"""Builds a projected model from its config: builds the student, then loads or initialises its projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embed_core.config.component import ModelConfig
from embed_core.config.context import BuildContext
from embed_core.errors import CheckpointError, ConfigError, EmbedError
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_core.models.from_scratch.encoder import seeded
from embed_core.models.hub import model_directory
from embed_distill.models import projection as files
from embed_distill.models.config import ProjectedModelConfig
from embed_distill.models.layer_init import initialise
from embed_distill.models.projected import ProjectedModel
from embed_distill.models.projection import Layer, Saved, described, projection_of, start_orthogonal


def build_model(config: ProjectedModelConfig, context: BuildContext) -> ProjectedModel:
    """The model of a run. Raises ConfigError without a width or for an inner model without dense vectors,
    CheckpointError for a saved projection that does not fit."""
    directory = _directory(config.inner)
    saved = files.read(directory) if directory is not None else None
    inner: Any = config.inner.build(replace(context, wrapped_modules=frozenset({"Dense"})))
    if config.init_from is not None:
        initialise(inner, config.init_from, config.layers, context.announce)
    width = dense_width(inner)
    if saved is not None and config.init == "auto":
        layers = _checked(config, saved, width, str(directory))
        context.announce(f"projection {described(layers)} of {str(directory)!r}")
        _normalise_alike(inner, saved, context)
    else:
        layers = _new(config, width)
        replaced = ", in place of the saved one" if saved is not None else ""
        context.announce(f"projection {described(layers)}, new{replaced}")
    with seeded(context.seed + 3):  # the inner model uses `seed`, its heads and adapters the next two
        projection = projection_of(layers)
        if config.init != "torch":
            start_orthogonal(projection)
    if saved is not None and config.init == "auto":
        projection.load_state_dict(saved.state)
    model = ProjectedModel(inner, projection, config.alignment)
    model.train()
    return model


def dense_width(model: Any) -> int:
    """Width D of the model's dense vectors, found by encoding a text. Raises ConfigError where it gives none."""
    training = model.training
    try:
        with torch.no_grad():
            dense_ND = model.eval()(**model.collate(model.tokenize(["a"], "passage", [None]))).dense_ND
    except EmbedError:
        raise
    except Exception as error:  # a model of images, say, may raise anything when given a text
        raise ConfigError(
            f"model.inner: {type(model).__name__} cannot encode a text ({type(error).__name__}: {error}): "
            "kind 'projected' is for text models"
        ) from error
    finally:
        model.train(training)
    if dense_ND is None:
        raise ConfigError(f"model.inner: {type(model).__name__} gives no dense vectors, which is what is projected")
    return int(dense_ND.shape[1])


def _directory(inner: ModelConfig) -> Path | None:
    """The directory of the model that the student starts from; None where it starts at random or has no name."""
    config: Any = inner
    while isinstance(getattr(config, "inner", None), ModelConfig):
        config = config.inner
    name = getattr(config, "name_or_path", None)
    if not isinstance(name, str) or name == FROM_SCRATCH:
        return None
    return model_directory(name, getattr(config, "revision", None))


def _new(config: ProjectedModelConfig, width: int) -> tuple[Layer, ...]:
    if config.out_dim is None:
        raise ConfigError(
            "model.out_dim is missing, and no projection is saved with the inner model: give the teacher's width"
        )
    if config.hidden_dim is None:
        return (Layer(width, config.out_dim, config.bias, "identity"),)
    first = Layer(width, config.hidden_dim, config.bias, config.activation)
    return (first, Layer(config.hidden_dim, config.out_dim, config.bias, "identity"))


def _checked(config: ProjectedModelConfig, saved: Saved, width: int, directory: str) -> tuple[Layer, ...]:
    """The saved layers. Raises CheckpointError if they do not fit the model's vectors or the config differs."""
    ends = [layer.outputs for layer in saved.layers]
    for inputs, layer in zip([width, *ends], saved.layers, strict=False):
        if layer.inputs != inputs:
            raise CheckpointError(
                f"the projection in {directory!r} takes {layer.inputs} values where the model gives {inputs}: "
                "copy both from the same model"
            )
    if config.out_dim is not None and (wanted := _new(config, width)) != saved.layers:
        raise CheckpointError(
            f"model: the config has the projection {_whole(wanted)}, {directory!r} was saved with "
            f"{_whole(saved.layers)}: leave out_dim and hidden_dim out to go on with that, or set init: orthogonal "
            "to start anew"
        )
    return saved.layers


def _whole(layers: Sequence[Layer]) -> str:
    biases = "with bias" if all(layer.bias for layer in layers) else "without bias"
    return f"{described(layers)} {biases}"


def _normalise_alike(inner: Any, saved: Saved, context: BuildContext) -> None:
    """Normalise the inner vectors exactly where the saved projection was trained on normalised vectors."""
    if hasattr(inner, "normalize") and inner.normalize != saved.normalized_before:
        inner.normalize = saved.normalized_before
        lengths = "unit length" if saved.normalized_before else "any length"
        context.announce(f"the saved projection takes vectors of {lengths}: model.inner.normalize follows it")
