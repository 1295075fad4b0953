"""Every hook there is. Implement the ones you need in your ``plugin.py`` and mark them with :data:`hookimpl`.

Hooks register and observe; none runs inside forward or backward. Register hooks return config *classes*: importing
them must not import torch, so keep heavy imports inside ``build``. A worked example follows each hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from embed_core.config.addons import AddOn
    from embed_core.config.component import (
        CheckpointConfig,
        DatasetConfig,
        EvaluatorConfig,
        LossConfig,
        ModelConfig,
        SamplerConfig,
    )
    from embed_core.config.recipe import Recipe
    from embed_core.events import RunEvent, StepEvent

API_VERSION = 1
"""Raised when a hook changes incompatibly; a plugin module may state ``EMBED_API_VERSION`` to be checked against it."""

hookspec = pluggy.HookspecMarker("embed")
hookimpl = pluggy.HookimplMarker("embed")


@hookspec
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """Model config classes; ``build`` returns a :class:`embed_core.protocols.Model`.

    Example::

        @hookimpl
        def embed_register_models():
            from embed_hello.config import HelloModelConfig
            return [HelloModelConfig]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """Loss config classes; ``build`` returns a :class:`embed_core.protocols.Loss`.

    Example::

        @hookimpl
        def embed_register_losses():
            from embed_hello.config import HelloLossConfig
            return [HelloLossConfig]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_samplers() -> Sequence[type[SamplerConfig]]:
    """Sampler config classes; ``build`` returns a :class:`embed_core.protocols.Sampler`.

    Example::

        @hookimpl
        def embed_register_samplers():
            from embed_hello.config import HelloSamplerConfig
            return [HelloSamplerConfig]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """Checkpoint (export layout) config classes; ``build`` returns a :class:`embed_core.protocols.Checkpointer`.

    Example::

        @hookimpl
        def embed_register_checkpoints():
            from embed_hello.config import HelloCheckpointConfig
            return [HelloCheckpointConfig]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """Dataset config classes; ``build`` returns a :class:`embed_core.protocols.Dataset`.

    Example::

        @hookimpl
        def embed_register_datasets():
            from embed_data.config import PydocsConfig
            return [PydocsConfig]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_evaluators() -> Sequence[type[EvaluatorConfig]]:
    """Evaluator config classes; ``build`` returns a :class:`embed_core.protocols.Evaluator`.

    Example::

        @hookimpl
        def embed_register_evaluators():
            from my_plugin.config import StsEvaluatorConfig
            return [StsEvaluatorConfig]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_recipes() -> Sequence[type[Recipe]]:
    """Recipe classes: a plugin's own short config, compiled into a ``RunConfig``.

    The recipe whose ``name`` equals the plugin's entry-point name is what ``embed run --plugin NAME`` runs.

    Example::

        @hookimpl
        def embed_register_recipes():
            from embed_bge.recipe import BGERecipe
            return [BGERecipe]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_addons() -> Sequence[type[AddOn]]:
    """Add-on classes: keys that any recipe takes beside its own, and how they wrap the compiled run.

    An add-on's ``wrap`` gets the run as plain data, then each of its phases, and returns it with wrapped components:
    see :class:`embed_core.config.addons.AddOn`. Its keys exist in runs in which the plugin is active.

    Example::

        @hookimpl
        def embed_register_addons():
            from my_plugin.addon import MyAddOn
            return [MyAddOn]
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_register_commands(app: typer.Typer) -> None:
    """Add Typer commands to ``embed``. Importing the command modules must not import torch. Nothing is returned.

    Example::

        @hookimpl
        def embed_register_commands(app):
            from embed_data.commands import mine
            app.command("mine")(mine)
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_step_ended(event: StepEvent) -> None:
    """Observe an optimizer step, on every rank (``event.rank``). Nothing is returned; keep it cheap.

    Example::

        @hookimpl
        def embed_step_ended(event):
            if event.rank == 0:
                print(event.step, event.loss)
    """
    raise AssertionError("a specification is never called")


@hookspec
def embed_run_ended(event: RunEvent) -> None:
    """Observe the end of a run, on every rank: always fired once, with ``event.error`` if there was one.

    Example::

        @hookimpl
        def embed_run_ended(event):
            if event.rank == 0 and event.error is None:
                print("exported to", event.export_dir)
    """
    raise AssertionError("a specification is never called")
