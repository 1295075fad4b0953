"""Registers the components of ``embed-mrl``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embed_core.config.addons import AddOn
from embed_core.config.component import CheckpointConfig, EvaluatorConfig, LossConfig
from embed_core.config.recipe import Recipe
from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from embed_core.events import RunEvent

EMBED_REQUIRES = ("data",)
"""Plugins that are activated with this one: the recipe's dataset kind is embed-data's."""
EMBED_USES = ("distill",)
"""The plugin whose add-on this recipe takes if it is installed: a teacher."""


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``matryoshka``: another loss at several dimensions at once."""
    from embed_mrl.config import MatryoshkaConfig

    return [MatryoshkaConfig]


@hookimpl
def embed_register_evaluators() -> Sequence[type[EvaluatorConfig]]:
    """``dimensions``: retrieval at every dimension, in fp32, int8 and binary."""
    from embed_mrl.config import DimensionsEvaluatorConfig

    return [DimensionsEvaluatorConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``matryoshka``: another layout that also names the dimensions to which its vectors may be cut."""
    from embed_mrl.config import MatryoshkaCheckpointConfig

    return [MatryoshkaCheckpointConfig]


@hookimpl
def embed_register_addons() -> Sequence[type[AddOn]]:
    """``matryoshka``: the key ``mrl_dims`` and others, in any recipe."""
    from embed_mrl.addon import MatryoshkaAddOn

    return [MatryoshkaAddOn]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``mrl``, the recipe of ``embed run --plugin mrl``."""
    from embed_mrl.recipe import MRLRecipe

    return [MRLRecipe]


@hookimpl(trylast=True)
def embed_run_ended(event: RunEvent) -> None:
    """Reports size against quality, if it was measured: a table after the display's own, a file, a plot."""
    from embed_mrl.report import report

    if event.rank == 0 and event.error is None:
        report(event)
