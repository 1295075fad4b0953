"""Registers the components of ``embed-data``: dataset kinds, the loss of a mix, a recipe, commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer

    from embed_core.config.component import DatasetConfig, LossConfig
    from embed_core.config.recipe import Recipe

EMBED_USES = ("mrl", "distill")
"""Plugins whose add-ons this recipe takes if they are installed: Matryoshka, and a teacher."""


@hookimpl
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """``pydocs``, ``auto`` (that or the user's own file), ``file`` (any format), ``mix``, ``remined``."""
    from embed_data.config import AutoConfig, FileConfig, PydocsConfig
    from embed_data.mix.config import MixConfig
    from embed_data.self_mining.config import ReminedConfig

    return [PydocsConfig, AutoConfig, FileConfig, MixConfig, ReminedConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``by-source``: another loss with a mix's weights and negative strategies."""
    from embed_data.mix.config import BySourceLossConfig

    return [BySourceLossConfig]


@hookimpl
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """``data``, the recipe of ``embed run --plugin data``."""
    from embed_data.recipe import DataRecipe

    return [DataRecipe]


@hookimpl
def embed_register_commands(app: typer.Typer) -> None:
    """``embed mine``, ``embed align``, ``embed curriculum``, ``embed data inspect``, ``embed data mix``."""
    from embed_data.align.command import align
    from embed_data.align.curriculum.command import curriculum
    from embed_data.commands import app as data
    from embed_data.mining.command import mine

    app.command("mine")(mine)
    app.command("align")(align)
    app.command("curriculum")(curriculum)
    app.add_typer(data, name="data")
