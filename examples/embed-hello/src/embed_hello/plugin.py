"""The plugin's hooks. ``embed plugins`` and ``embed --help`` import this module, so it imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.config.component import CheckpointConfig, LossConfig, ModelConfig, SamplerConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

EMBED_API_VERSION = 1
"""The hook API version this plugin was written for; a core with another one reports it instead of failing later."""


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``hello``: hashed character n-grams."""
    from embed_hello.config import HelloModelConfig

    return [HelloModelConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``hello``: a cosine margin against the hardest passages of the batch."""
    from embed_hello.config import HelloLossConfig

    return [HelloLossConfig]


@hookimpl
def embed_register_samplers() -> Sequence[type[SamplerConfig]]:
    """``hello``: rows of similar length together."""
    from embed_hello.config import HelloSamplerConfig

    return [HelloSamplerConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``hello``: ``model.safetensors`` and ``config.json``."""
    from embed_hello.config import HelloCheckpointConfig

    return [HelloCheckpointConfig]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``hello``: all of the above, on the packaged rows."""
    from embed_hello.recipe import HelloRecipe

    return [HelloRecipe]
