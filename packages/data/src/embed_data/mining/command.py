"""``embed mine``: mines hard negatives for a dataset, or audits those it has. Imports nothing heavy."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embed_cli.ranks import check_one_launcher, joined, on_ranks, to_stderr

if TYPE_CHECKING:
    from embed_data.mining.request import MiningRequest


def mine(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(help="Rows with a query and positives, of any format that `embed data inspect` reads."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Rows with negatives, or the audit's findings (JSONL).")
    ],
    corpus: Annotated[
        Path | None, typer.Option(help="File of texts or BEIR folder; default: the data's own, or all its positives.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help="query=question, pos=answer. Repeatable.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Format of the rows, instead of recognising it.")] = "auto",
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="Whether CSV and TSV rows name their columns.")
    ] = True,
    split: Annotated[str | None, typer.Option(help="Split of a BEIR folder or Hugging Face dataset.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of a Hugging Face dataset.")] = None,
    by: Annotated[str, typer.Option(help="bm25, dense (a model), or for audits scores (the rows' own).")] = "bm25",
    model: Annotated[str | None, typer.Option(help="A run's output directory, or weights that --plugin reads.")] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", "-p", help="Plugin whose model it is.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Config of a run with that model.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="As in embed run: model.…, engine.….")
    ] = None,
    way: Annotated[str | None, typer.Option(help="The model's way of scoring; default: dense.")] = None,
    faiss: Annotated[str | None, typer.Option(metavar="FACTORY", help="faiss index instead of exact search.")] = None,
    negatives: Annotated[int, typer.Option("--negatives", "-n", help="Negatives per row, at most.")] = 7,
    ranks: Annotated[str, typer.Option(help="First and last rank considered, positives not counted.")] = "1-100",
    absolute_margin: Annotated[
        float | None, typer.Option(help="Negatives score at least this much below the positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="The same margin as a share of the positive's score: 0.05.")
    ] = None,
    draw: Annotated[str, typer.Option(help="top: the hardest that qualify; sample: a random few of them.")] = "top",
    cross_encoder: Annotated[
        str | None, typer.Option(help="A sentence-transformers CrossEncoder for margins, order and scores.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="A registered model for the same, given as for --model.")] = None,
    overlap: Annotated[float, typer.Option(help="Shared part from which two texts are the same.")] = 0.5,
    audit: Annotated[bool, typer.Option("--audit", help="Find doubtful negatives of the data instead.")] = False,
    mask: Annotated[str | None, typer.Option(help="drop or mark what the audit finds, in --masked-data.")] = None,
    masked_data: Annotated[Path | None, typer.Option(help="Where the masked rows go (JSONL).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --draw sample.")] = 42,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the outputs.")] = False,
) -> None:
    """Mine hard negatives from a corpus, by BM25 or a model; never the answer. Killed, the same command goes on."""
    from embed_data.formats.options import file_fields
    from embed_data.mining.request import MiningRequest, ModelChoice, parse_ranks

    first, last = parse_ranks(ranks)
    request = MiningRequest(
        data=data,
        output=output,
        corpus=corpus,
        split=split,
        reading=file_fields(columns or [], format=format_, header=header, subset=subset),
        by=by,  # type: ignore[arg-type] # checked there
        model=ModelChoice(model, tuple(plugin or ()), config, tuple(set_ or ())),
        way=way,
        faiss=faiss,
        negatives=negatives,
        first_rank=first,
        last_rank=last,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        draw=draw,  # type: ignore[arg-type]
        cross_encoder=cross_encoder,
        teacher=teacher,
        overlap=overlap,
        seed=seed,
        audit=audit,
        mask=mask,  # type: ignore[arg-type]
        masked_data=masked_data,
        overwrite=overwrite,
    )
    execute(request, nproc, context)


def execute(request: MiningRequest, nproc: int, context: typer.Context) -> None:
    """Run here, or start ``nproc`` ranks that do, with the command line of ``context``."""
    check_one_launcher(nproc)
    _check_before_torch(request)
    on_ranks(context, nproc, lambda: _run(request))


def _check_before_torch(request: MiningRequest) -> None:
    """Check what can be checked before ranks start and import torch."""
    from embed_data.formats.detect import existing
    from embed_data.mining.output.work import check_output
    from embed_data.mining.rank.model import resolve_model

    for path in filter(None, (request.output, request.masked_data)):
        check_output(path, overwrite=request.overwrite)
    named = request.reading.format == "datasets"  # it may be a name on the hub
    for path in filter(None, (None if named else request.data, request.corpus)):
        existing(path)
    for choice in request.models:
        resolve_model(choice)


def _run(request: MiningRequest) -> None:
    from embed_core.distributed.process_group import Ranks, environment
    from embed_data.mining.output.progress import Progress
    from embed_data.mining.output.report import lines
    from embed_data.mining.session import run

    # BM25 on one rank is done before torch would be imported.
    alone = environment()[1] == 1 and request.by != "dense" and not (request.cross_encoder or request.teacher)
    with nullcontext(Ranks(0, 1, 0, "cpu")) if alone else joined() as ranks:
        counts = run(request, ranks, to_stderr(ranks), Progress(shown=ranks.rank == 0))
    if ranks.rank == 0:
        for line in lines(request, counts):
            print(line)
