"""``embed align``: finds which chunks of a document are enough to answer a question. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embed_cli.ranks import check_one_launcher, joined, on_ranks, to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embed_data.align.request import AlignRequest


def align(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="JSONL rows {input, answers, context}, SQuAD, or a BEIR folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of scores, training rows and report.")],
    split: Annotated[str | None, typer.Option(help="Which qrels of a BEIR folder.")] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="KEY", help="Rows with the same value are one document: title.")
    ] = None,
    chunk_by: Annotated[str, typer.Option(help="tokens, sentences or paragraphs.")] = "tokens",
    chunk_size: Annotated[int | None, typer.Option(help="Size of a chunk; default 512 tokens, 5 sentences.")] = None,
    chunk_overlap: Annotated[int | None, typer.Option(help="Of neighbours; default 12 tokens, 1 sentence.")] = None,
    lm: Annotated[str | None, typer.Option(help="Causal language model: a directory or hub name.")] = None,
    lm_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server that has it: http://host:8000/v1.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Default: that of --lm. Also counts chunks' tokens.")] = None,
    lm_precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a prompt; longer ones lose the end of their chunk.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward of the language model.")] = 16384,
    concurrency: Annotated[int, typer.Option(help="Requests under way at --lm-url.")] = 8,
    model: Annotated[str | None, typer.Option(help="Retriever: a run's output, or weights --plugin reads.")] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", "-p", help="Plugin whose model it is.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Config of a run with that model.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="As in embed run.")] = None,
    way: Annotated[str | None, typer.Option(help="The retriever's way of scoring; default: dense.")] = None,
    weights: Annotated[str, typer.Option(help="Weights of the forward, backward and parameter scores.")] = "1,0.3,1",
    normalise: Annotated[str, typer.Option(help="minmax (per question and document) or raw.")] = "minmax",
    short_chunk: Annotated[int, typer.Option(help="Chunks of fewer tokens score less in proportion; 0 = no.")] = 10,
    positives: Annotated[int, typer.Option("--positives", "-m", help="Best chunks that become positives.")] = 10,
    negatives: Annotated[int, typer.Option("--negatives", "-n", help="Random other chunks: the negatives.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the negatives.")] = 42,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the outputs; scores are used again.")] = False,
) -> None:
    """Score the chunks of each question's document by a language model and a retriever; write training rows.

    Repeat a killed command to continue it."""
    from embed_data.align.request import AlignRequest, ChunkChoice, LanguageModelChoice, parse_weights
    from embed_data.mining.request import ModelChoice

    request = AlignRequest(
        data=data,
        output=output,
        split=split,
        group_by=group_by,
        chunks=ChunkChoice(chunk_by, chunk_size, chunk_overlap),  # type: ignore[arg-type] # checked there
        lm=LanguageModelChoice(lm, lm_url, tokenizer, lm_precision, max_length, batch_tokens, concurrency),
        retriever=ModelChoice(model, tuple(plugin or ()), config, tuple(set_ or ())),
        way=way,
        weights=parse_weights(weights),
        normalise=normalise,  # type: ignore[arg-type] # checked there
        short_chunk=short_chunk,
        positives=positives,
        negatives=negatives,
        seed=seed,
        overwrite=overwrite,
    )
    execute(request, nproc, context)


def execute(request: AlignRequest, nproc: int, context: typer.Context) -> None:
    """Run here, or start ``nproc`` ranks that do."""
    from embed_core.datasets.sources.jsonl import checked_path
    from embed_data.align.session import OUTPUTS, check_folder

    check_one_launcher(nproc)
    checked_path(request.data)
    check_folder(request.output, OUTPUTS, overwrite=request.overwrite)
    on_ranks(context, nproc, lambda: _run(request))


def _run(request: AlignRequest) -> None:
    from embed_data.align.session import run
    from embed_data.mining.output.progress import Progress

    with joined() as ranks:
        report = run(request, ranks, to_stderr(ranks), Progress(shown=ranks.rank == 0))
    if ranks.rank == 0:
        for line in summary(request, report):
            print(line)


def summary(request: AlignRequest, report: Mapping[str, int]) -> Iterator[str]:
    """The final summary: histograms and tables, then what was written and what was not."""
    from embed_data.align.output.report import lines

    yield from lines(report)
    yield ""
    yield (
        f"{report['rows']:,} rows of {report['questions']:,} questions, {report['positives']:,} positives, "
        f"{report['negatives']:,} random negatives of the same documents"
    )
    yield from _notices(request, report)
    yield f"written to {request.output}: scored.jsonl, chunks.jsonl, rows.jsonl, swift.jsonl, failed.jsonl, report.json"


def _notices(request: AlignRequest, report: Mapping[str, int]) -> Iterator[str]:
    notices: Sequence[tuple[str, str]] = (
        ("unanswerable", "questions have no answer and no row"),
        ("unscored", "questions have no chunk with a score and no row"),
        ("failed_pairs", "pairs failed and are left out: failed.jsonl says why"),
        ("trimmed_pairs", "pairs had the end of their chunk cut off to fit the language model: chunk smaller"),
        (
            "all_positive",
            f"questions have documents of at most {request.positives} chunks, all of them positives: fewer --positives,"
            " or smaller chunks",
        ),
    )
    for key, text in notices:
        if report[key]:
            yield f"{report[key]:,} {text}"
