"""The command ``embed run``: turns the command line into a call of :func:`embed_core.train.run.run`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from embed_cli.ranks import check_one_launcher, on_ranks
from embed_core.errors import ConfigError

if TYPE_CHECKING:
    import pluggy
    import typer

    from embed_core.config.document import Document
    from embed_core.config.registry import Registry
    from embed_core.config.run import RunConfig

COMMAND_LINE = "EMBED_COMMAND_LINE"
SECTIONS = ("model", "data", "sampler", "loss", "checkpoint")


@dataclass(frozen=True)
class RunRequest:
    """The options of ``embed run``."""

    plugins: tuple[str, ...] = ()
    config: str | None = None
    overrides: tuple[str, ...] = ()
    output_dir: Path | None = None
    max_steps: int | None = None
    seed: int | None = None
    nproc: int = 1
    sanity: bool = False
    dry_run: bool = False
    resume: bool = False
    overwrite: bool = False


def execute(request: RunRequest, context: typer.Context) -> None:
    """Resolve the config, then train here, or start ``--nproc`` ranks with the command line of ``context``."""
    if request.resume and request.overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them")
    from embed_core.config.resolve import default_output_dir
    from embed_core.distributed.process_group import environment

    launched = "RANK" in os.environ
    check_one_launcher(request.nproc)
    world_size = environment()[1] if launched or request.nproc == 1 else request.nproc
    config, manager, registry = resolve(request, world_size)
    if request.dry_run:
        _print_config(config)
        return
    # The output directory is decided here, so that all ranks agree on it.
    directory = config.output_dir or default_output_dir(config.name, time.strftime("%Y%m%d-%H%M%S"))
    if request.nproc > 1:
        os.environ[COMMAND_LINE] = command_line()
    on_ranks(context, request.nproc, lambda: _train(request, config, manager, registry), output_dir=directory)


def resolve(request: RunRequest, world_size: int) -> tuple[RunConfig, pluggy.PluginManager, Registry]:
    """Activate the plugins and resolve the config. Raises EmbedError for everything a user can mend."""
    from embed_core.config import document
    from embed_core.config.presets import find_config
    from embed_core.config.resolve import Request
    from embed_core.config.resolve import resolve as resolve_run
    from embed_core.plugin.manager import activate

    path = _config_path(request)
    active = activate(request.plugins) if request.plugins else None
    if path and active and request.config:  # a missing file may be one that the first plugin's recipe ships
        path = find_config(request.config, active[1].recipe(request.plugins[0]))
    given = document.read(path) if path else document.Document()
    names = _plugin_names(request, given)
    manager, registry = active or activate(names)
    recipe = registry.recipe(names[0]) if names and not _is_complete(given) else None
    if recipe is None and path is None:
        raise ConfigError(f"plugin {names[0]!r} has no default recipe: give --config FILE")
    flags: Mapping[str, Any] = {
        "seed": request.seed,
        "output_dir": str(request.output_dir) if request.output_dir else None,
        "max_steps": request.max_steps,
        "plugins": list(names),
    }
    overrides = document.overrides(request.overrides)
    config = resolve_run(registry, Request(recipe, given, request.sanity, overrides, flags, world_size))
    return config, manager, registry


def _config_path(request: RunRequest) -> Path | None:
    if request.config:
        return Path(request.config)
    if request.resume:
        if request.output_dir is None:
            raise ConfigError("--resume needs to know which run: add --output-dir DIR")
        saved = request.output_dir / "config.yaml"
        if saved.exists() and not request.plugins:
            return saved
    return None


def _plugin_names(request: RunRequest, given: Document) -> tuple[str, ...]:
    names = request.plugins or given.data.get("plugins") or ()
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{given.place(('plugins',))}: plugins: a list of names is needed, got {names!r}")
    if not names:
        from embed_core.plugin.manager import discover

        known = ", ".join(sorted(discover())) or "none"
        raise ConfigError(f"which plugin? Add --plugin NAME (installed: {known}) or `plugins: [NAME]` to the config")
    return tuple(names)


def _is_complete(given: Document) -> bool:
    """Whether the file holds a whole run, as ``--dry-run`` prints and ``config.yaml`` has: it needs no recipe."""
    return all(isinstance(given.data.get(s), dict) and "kind" in given.data[s] for s in SECTIONS)


def _print_config(config: RunConfig) -> None:
    import yaml

    from embed_core.config.resolve import plain

    text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax(text, "yaml", background_color="default"))
    else:
        sys.stdout.write(text)


def _train(request: RunRequest, config: RunConfig, manager: pluggy.PluginManager, registry: Registry) -> None:
    from embed_cli.display import make_display
    from embed_cli.launch import RANK_LOST
    from embed_core.distributed.process_group import RankLostError, environment, leave
    from embed_core.train.run import Options, run

    rank = environment()[0]
    display = make_display(rank=rank)
    options = Options(
        resume=request.resume, overwrite=request.overwrite, command=command_line(), announce=display.announce
    )
    if rank == 0:
        manager.register(display)
    # A scheduler's SIGTERM ends the run like an error: observers run and the status is written.
    former = signal.signal(signal.SIGTERM, _terminated)
    try:
        run(config, manager, registry, options)
    except RankLostError as error:
        print(error, file=sys.stderr)
        raise SystemExit(RANK_LOST) from None
    except KeyboardInterrupt:
        display.announce("interrupted: `embed run --resume --output-dir DIR` continues from the last checkpoint")
        raise
    finally:
        signal.signal(signal.SIGTERM, former)
        display.close()
        leave()


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def command_line() -> str:
    """The user's command, for the model card; ranks that ``--nproc`` started get it from their parent."""
    return os.environ.get(COMMAND_LINE) or shlex.join(["embed", *sys.argv[1:]])
