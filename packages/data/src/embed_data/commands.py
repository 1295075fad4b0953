"""``embed data inspect`` and ``embed data mix``: look at data without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_data.mix.config import MixConfig

app = typer.Typer(help="Look at training data without training.", no_args_is_help=True)

TokenizerName = Annotated[
    str | None, typer.Option("--tokenizer", help="Model whose tokenizer counts tokens: a directory or a hub name.")
]
MaxLength = Annotated[int | None, typer.Option("--max-length", min=1, help="Tokens at which the model truncates.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE", help="A file, a folder, or a Hugging Face dataset.")],
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="Evaluation data to look for in the rows. Repeatable.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help="query=question, pos=answer. Repeatable.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Format of the file, instead of recognising it.")] = "auto",
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="Whether CSV and TSV name their columns.")
    ] = True,
    split: Annotated[str | None, typer.Option(help="Split of a BEIR folder or Hugging Face dataset.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of a Hugging Face dataset.")] = None,
    tokenizer: TokenizerName = None,
    max_length: MaxLength = None,
    json_: Json = False,
) -> None:
    """Show format, columns, lengths, duplicates, empty and over-long texts, leaks into evaluation data."""
    from dataclasses import asdict

    from embed_data.formats.options import file_fields
    from embed_data.inspection.measure import Measure
    from embed_data.inspection.measure import inspect as look
    from embed_data.inspection.view import lines

    how = file_fields(columns or [], format=format_, header=header, split=split, subset=subset)
    measure = Measure(_tokenizer(tokenizer), max_length)
    found = look(path, how, evaluation or [], measure, _context())
    if json_:
        _print_json([asdict(one) for one in found])
        return
    for one in found:
        print("\n".join(lines(one)))


@app.command()
def mix(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A dataset YAML, or a run's or recipe's config.")],
    tokenizer: TokenizerName = None,
    max_length: MaxLength = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows drawn.")] = 42,
    json_: Json = False,
) -> None:
    """Read and draw as a run would; print per source what is read, used, repeated, dropped and why. No training."""
    from embed_data.mix.build import mixed
    from embed_data.mix.table import lines, rows

    context = _context(seed, quiet=json_)
    config = _mix_config(path, {"tokenizer": tokenizer, "max_length": max_length}, context)
    dataset, opened = mixed(config, context)
    if json_:
        _print_json(rows(config, dataset, opened))
        return
    print("\n".join(lines(config, dataset, opened)))


def _mix_config(path: Path, options: dict[str, Any], context: BuildContext) -> MixConfig:
    """The mix that a file is or names. Raises ConfigError."""
    from embed_core.config import document
    from embed_core.errors import ConfigError
    from embed_data.formats.options import validated
    from embed_data.mix.config import MixConfig

    given = document.read(path)
    data: dict[str, Any] = {"config": str(path)}
    if "datasets" not in given.data:
        inside = given.data.get("data")
        data = dict(inside) if isinstance(inside, dict) else {}
        if given.data.get("dataset_config") is not None:
            data = {"config": str(given.data["dataset_config"])} | data
        if data.get("kind", "mix") != "mix" or not {"config", "datasets"} & set(data):
            raise ConfigError(
                f"{path}: no mix in it: `datasets`, `dataset_config` or `data: {{kind: mix, …}}` is needed"
            )
    known = {key: value for key, value in options.items() if value is not None}
    config: MixConfig = validated(MixConfig, {**data, "kind": "mix", **known}, registry=context.registry)
    return config


def _context(seed: int = 42, *, quiet: bool = False) -> BuildContext:
    """A context that knows the kinds of every installed plugin that works, because a mix may name any."""
    import sys

    from embed_core.config.context import BuildContext
    from embed_core.errors import EmbedError
    from embed_core.plugin.manager import activate, discover

    names = ["data"]
    for name in sorted(set(discover()) - {"data"}):
        try:
            activate([*names, name])
        except EmbedError as error:
            print(f"warning: {error}", file=sys.stderr)
        else:
            names.append(name)
    _, registry = activate(names)
    return BuildContext(registry, seed=seed, announce=(lambda line: None) if quiet else print)


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from embed_core.models.hub import load_tokenizer, model_directory

    backend = load_tokenizer(model_directory(name)).backend_tokenizer
    backend.no_truncation()
    return backend


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
