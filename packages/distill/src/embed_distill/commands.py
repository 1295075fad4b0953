"""The commands ``embed teacher build | stats | verify | gc`` of the teacher store. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embed_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(help="Teacher vectors: computed once, kept in a store.", no_args_is_help=True)

Store = Annotated[
    str | None, typer.Option("--store", metavar="DIR", help="Folder of the store; default: teachers in $EMBED_CACHE.")
]
Names = Annotated[
    list[str] | None, typer.Option("--teacher", "-t", help="Only this teacher, by name or folder. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    context: typer.Context,
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", "-p", help="As in embed run: the run whose data is used.")
    ] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="As in embed run.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="As in embed run.")] = None,
    texts: Annotated[
        Path | None, typer.Option(help="A file to use instead of a run's data: one text a line, or JSONL with `text`.")
    ] = None,
    role: Annotated[str, typer.Option(help="The role of --texts: passage or query.")] = "passage",
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", "-t", help="A model directory or hub name; default: the run's. Repeatable."),
    ] = None,
    store: Store = None,
    dtype: Annotated[str | None, typer.Option(help="fp16 or int8; default: the run's, else fp16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
) -> None:
    """Precompute the teacher vectors that the store lacks, of a run's or a file's texts. Run it again after a kill."""
    from embed_distill.build_command import BuildRequest, execute

    request = BuildRequest(
        plugins=tuple(plugin or ()),
        config=config,
        overrides=tuple(set_ or ()),
        texts=texts,
        role=role,
        teachers=tuple(teacher or ()),
        store=store,
        dtype=dtype,
        device=device,
    )
    execute(request, nproc, context)


@app.command()
def stats(store: Store = None, teacher: Names = None, json_: Json = False) -> None:
    """Show what the store holds: teachers, vectors, bytes, last use."""
    from embed_distill.store.inventory import kept

    root = _root(store)
    found = kept(root, teacher or ())
    if json_:
        _print_json([_facts(one) for one in found])
        return
    if not found:
        print(f"{root}: no teacher has vectors here")
        return
    rows = [["teacher", "folder", "kept as", "width", "vectors", "files", "MB", "last used"]]
    rows += [
        [one.teacher, one.name, one.dtype, f"{one.width:,}", f"{one.vectors:,}", f"{one.files:,}",
         f"{one.bytes / 1e6:,.1f}", _day(one.used)]
        for one in found
    ]  # fmt: skip
    print("\n".join(_aligned(rows)))
    print(f"{root}: {sum(one.vectors for one in found):,} vectors, {sum(one.bytes for one in found) / 1e6:,.1f} MB")


@app.command()
def verify(
    store: Store = None,
    teacher: Names = None,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged vectors: they are computed again.")] = False,
) -> None:
    """Check every vector against its checksum."""
    from embed_distill.store.inventory import kept
    from embed_distill.store.verify import verify as look

    damaged = 0
    for one in kept(_root(store), teacher or ()):
        found = look(one.folder, repair=repair)
        for line in found.files:
            print(line)
        print(f"{one.teacher} ({one.name}): {found.entries:,} vectors, {found.damaged:,} damaged")
        damaged += found.damaged + len(found.files)
    if damaged and not repair:
        raise DataError(
            f"{damaged:,} damaged entries or files: `embed teacher verify --repair` drops them, and the next build or "
            "run computes them again"
        )
    print("dropped what was damaged" if damaged else "every checksum is right")


@app.command()
def gc(
    store: Store = None,
    unused_days: Annotated[float | None, typer.Option(min=0, help="Remove files not read for so long.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Remove all teachers but this one (name or folder). Repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
) -> None:
    """Remove vectors: those not used for some days, or those of other teachers."""
    from embed_core.errors import ConfigError
    from embed_distill.store.inventory import collect

    if unused_days is None and not keep:
        raise ConfigError("embed teacher gc: say what may go, with --unused-days DAYS or --keep TEACHER")
    root = _root(store)
    removed = collect(root, unused_days=unused_days, keep=keep or (), dry_run=dry_run)
    for one in removed:
        print(f"{one.teacher}: {one.files:,} files, {one.bytes / 1e6:,.1f} MB: {one.reason}")
    verb = "would be freed" if dry_run else "freed"
    print(f"{root}: {sum(one.bytes for one in removed) / 1e6:,.1f} MB {verb}")


def _root(store: str | None) -> Path:
    """The store's folder. Raises DataError where it does not exist."""
    from embed_core.config.context import cache_root
    from embed_distill.store.inventory import store_root

    root = store_root(store, cache_root())
    if not root.is_dir():
        raise DataError(
            f"--store {str(root)!r}: there is no such folder: name the store of the runs, or build one first"
        )
    return root


def _facts(one: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(one) | {"folder": str(one.folder)}


def _day(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {3, 4, 5, 6}
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
