"""Commands on several ranks: starting the ranks, joining their process group, and stopping when one is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from embed_core.errors import ConfigError

if TYPE_CHECKING:
    import typer

    from embed_core.distributed.process_group import Ranks


def check_one_launcher(nproc: int) -> None:
    """Raises ConfigError where another launcher and ``--nproc`` both give a number of ranks."""
    if "RANK" in os.environ and nproc > 1:
        raise ConfigError(
            f"--nproc {nproc} under another launcher (RANK is set): give the number of ranks to one of the two"
        )


def on_ranks(context: typer.Context, nproc: int, run: Callable[[], None], **instead: Any) -> None:
    """Call ``run`` where ``nproc`` is 1; else start ``nproc`` processes with the command line of ``context``.

    ``instead`` replaces options of that command line. Raises SystemExit with the code of the rank that failed first.
    """
    if nproc == 1:
        run()
        return
    from embed_cli.launch import launch

    names, root = [context.info_name or ""], context.parent
    while root is not None and root.parent is not None:  # names of command groups, without the program's own
        names, root = [root.info_name or "", *names], root.parent
    code = launch([sys.executable, "-m", "embed_cli", *names, *arguments_of(context, **instead)], nproc)
    if code:
        raise SystemExit(code)


@contextmanager
def joined(device: Any = "auto") -> Iterator[Ranks]:
    """Join the process group for the block. If another rank has stopped, this one ends with a line and RANK_LOST."""
    from embed_cli.launch import RANK_LOST
    from embed_core.distributed.process_group import is_lost_rank, join, leave

    ranks = join(device)
    try:
        yield ranks
    except RuntimeError as error:
        if is_lost_rank(error):
            print(f"rank {ranks.rank} stopped: another rank stopped before it, whose message says why", file=sys.stderr)
            raise SystemExit(RANK_LOST) from None
        raise
    finally:
        leave()


def to_stderr(ranks: Ranks) -> Callable[[str], None]:
    """A function that prints lines to stderr on rank 0, and nothing on the others."""
    return lambda line: print(line, file=sys.stderr) if ranks.rank == 0 else None


def arguments_of(context: typer.Context, **instead: Any) -> list[str]:
    """The arguments of the running command without ``--nproc``, with which every rank is started."""
    positional: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value: Any = {**context.params, **instead}.get(parameter.name or "")
        if value is False and parameter.secondary_opts:
            options.append(parameter.secondary_opts[0])
        if parameter.name == "nproc" or value is None or value is False or value in ((), []):  # 0 is a value
            continue
        if parameter.param_type_name == "argument":
            positional.append(str(value))
        elif value is True:
            options.append(parameter.opts[0])
        else:
            values: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
            options += [part for one in values for part in (parameter.opts[0], str(one))]
    return [*options, "--", *positional] if positional else options
