"""The Typer app ``embed``. Importing this module imports neither torch nor pydantic; commands import what they need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from embed_core.errors import EmbedError

app = typer.Typer(
    name="embed",
    help="Train any embedding model: one command over one DeepSpeed loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PluginNames = Annotated[
    list[str] | None,
    typer.Option("--plugin", "-p", help="Plugin to activate; the first one's recipe is run. Repeatable."),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML or JSON file: the recipe's keys, a run's, or both.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key: --set train.max_steps=10."),
]


@app.command()
def run(
    context: typer.Context,
    plugin: PluginNames = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where to write; default runs/NAME-DATE-TIME.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of epochs.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of data order, weights and dropout.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    sanity: Annotated[bool, typer.Option("--sanity", help="Run a miniature of the recipe, in seconds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output-dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output-dir.")] = False,
) -> None:
    """Train: evaluate, step, checkpoint, evaluate again, export."""
    from embed_cli.run_command import RunRequest, execute

    execute(
        RunRequest(
            plugins=tuple(plugin or ()),
            config=config,
            overrides=tuple(set_ or ()),
            output_dir=output_dir,
            max_steps=max_steps,
            seed=seed,
            nproc=nproc,
            sanity=sanity,
            dry_run=dry_run,
            resume=resume,
            overwrite=overwrite,
        ),
        context,
    )


Phase = Annotated[str | None, typer.Option(help="The phase to look at, in a run that has some; default: the first.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of data order, weights and dropout.")]


@app.command()
def explain(
    step: Annotated[int, typer.Option(min=1, help="Optimizer step, from 1, as in the display.")],
    plugin: PluginNames = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks of the run: who encodes what, in which chunks.")] = 1,
    sanity: Annotated[bool, typer.Option("--sanity", help="Use the --sanity version of the run.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Whole texts.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the exact batch of a step, without the steps before it: rows, texts, tokens, chunks."""
    from embed_cli.explain_command import ExplainRequest, execute
    from embed_cli.run_command import RunRequest

    run = RunRequest(tuple(plugin or ()), config, tuple(set_ or ()), seed=seed, nproc=nproc, sanity=sanity)
    execute(ExplainRequest(run, step, full, json_))


@app.command()
def prove(
    plugin: PluginNames = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    phase: Phase = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine and compare with one.")] = 2,
    batches: Annotated[int, typer.Option(min=1, help="First batches of the run to compare.")] = 2,
    sanity: Annotated[bool, typer.Option("--sanity", help="Use the --sanity version of the run.")] = False,
) -> None:
    """Compare this run's loss and gradient: chunked, cached, on several ranks, at every ZeRO stage; exits 1 on FAIL."""
    from embed_cli.prove_command import ProveRequest, execute
    from embed_cli.run_command import RunRequest

    run = RunRequest(tuple(plugin or ()), config, tuple(set_ or ()), seed=seed, sanity=sanity)
    execute(ProveRequest(run, ranks, batches, phase))


@app.command()
def plan(
    plugin: PluginNames = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    device: Annotated[str | None, typer.Option(help="h200, a100, rtx4090, cpu, …; default: this machine's.")] = None,
    zero_stage: Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage, instead of the config's.")] = None,
    phase: Phase = None,
    ranks: Annotated[int, typer.Option(min=1, help="Devices to share the run.")] = 1,
    batches: Annotated[int, typer.Option(min=1, help="First batches of the run to look at.")] = 4,
    sanity: Annotated[bool, typer.Option("--sanity", help="Use the --sanity version of the run.")] = False,
    json_: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON, too; - is stdout.")] = None,
) -> None:
    """Estimate what a run takes: memory by part, the largest chunk, FLOPs, tokens/s, padding, truncation, time."""
    from embed_cli.plan_command import PlanCommand, execute
    from embed_cli.run_command import RunRequest

    run = RunRequest(tuple(plugin or ()), config, tuple(set_ or ()), seed=seed, nproc=ranks, sanity=sanity)
    execute(PlanCommand(run, device, zero_stage, batches, json_, phase))


@app.command()
def plugins(plugin: PluginNames = None) -> None:
    """Show installed, active (--plugin) and failed plugins, with package, version and cause."""
    from rich.console import Console

    from embed_cli.plugins_view import print_plugins
    from embed_core.plugin.manager import status

    print_plugins(Console(), status(plugin or ()))


@app.command()
def schema(
    plugin: PluginNames = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Print the schema of the first plugin's recipe instead of a run's.")
    ] = False,
) -> None:
    """Print the JSON schema of a run's config, or of a recipe's, for editors and checks."""
    import json

    from embed_core.config.schema import recipe_schema, run_schema
    from embed_core.errors import ConfigError
    from embed_core.plugin.manager import activate

    names = plugin or []
    _, registry = activate(names)
    if recipe:
        found = registry.recipe(names[0]) if names else None
        if found is None:
            raise ConfigError("--recipe: name a plugin that has one, for instance --plugin bge")
        print(json.dumps(recipe_schema(found, registry), indent=2))
    else:
        print(json.dumps(run_schema(registry), indent=2))


def _version(value: bool) -> None:
    if value:
        from embed_core import __version__

        print(f"embed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    local_rank: Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True)] = None,
) -> None:
    """``--local_rank`` comes from the deepspeed launcher, before the user's arguments; it sets LOCAL_RANK as well."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))


BUILT_IN = ("run", "explain", "prove", "plan", "plugins", "schema")


def add_plugin_commands(arguments: list[str]) -> None:
    """Let installed plugins add their commands, unless the command line names a built-in one.

    A plugin that cannot be imported only loses its own commands; a line on stderr says so.
    """
    words = [argument for argument in arguments if not argument.startswith("-")]
    if (words and words[0] in BUILT_IN) or arguments[:1] == ["--version"]:
        return
    from embed_core.plugin import manager as core
    from embed_core.utils.messages import one_line

    for plugin in core.discover().values():
        try:
            module = core.load_module(plugin)
            hook: Any = getattr(module, "embed_register_commands", None)
            if getattr(hook, "embed_impl", None) is not None:
                hook(app)
        except Exception as error:
            cause = one_line(error) or type(error).__name__
            print(f"warning: commands of plugin {plugin.name!r} are missing: {cause}", file=sys.stderr)


def main() -> None:
    """Entry point of the ``embed`` command: a user error is one line on stderr and exit code 2."""
    try:
        add_plugin_commands(sys.argv[1:])
        app()
    except EmbedError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
