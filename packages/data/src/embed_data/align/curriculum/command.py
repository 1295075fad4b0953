"""``embed curriculum``: writes the training rows of one stage from ``embed align``'s. Imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embed_data.align.curriculum.request import CurriculumRequest


def curriculum(
    aligned: Annotated[Path, typer.Argument(help="Folder that embed align wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the stages' rows.")],
    stage: Annotated[int, typer.Option(help="1 random, 2 by large subgraphs, 3 by small ones.")],
    model: Annotated[str | None, typer.Option(help="The model that ranks: a run's output. Default: BM25.")] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", "-p", help="Plugin whose model it is.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Config of a run with that model.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="As in embed run.")] = None,
    way: Annotated[str | None, typer.Option(help="The model's way of scoring; default: dense.")] = None,
    llm_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server for graph and queries.")] = None,
    llm: Annotated[str | None, typer.Option(help="Name of the model there. Default: no model, offline graph.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at --llm-url.")] = 8,
    queries: Annotated[int, typer.Option(help="Augmented queries per question.")] = 10,
    per_query: Annotated[int, typer.Option(help="Chunks that each query adds.")] = 10,
    negatives: Annotated[int, typer.Option("--negatives", "-n", help="Negatives per row, at most.")] = 20,
    forward_margin: Annotated[
        float | None, typer.Option(help="Negatives are this many nats of forward score below the best positive.")
    ] = None,
    similarity: Annotated[float, typer.Option(help="Cosine from which on two entities get an edge.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the outputs of this stage.")] = False,
) -> None:
    """Choose negatives for one stage of a curriculum: random, then by queries from the entities around the answer.

    Mine each stage with the model that the stage before trained. Repeat a killed command to continue it."""
    from embed_data.align.curriculum.request import CurriculumRequest, LanguageServer
    from embed_data.mining.request import ModelChoice

    _run(
        CurriculumRequest(
            aligned=aligned,
            output=output,
            stage=stage,
            retriever=ModelChoice(model, tuple(plugin or ()), config, tuple(set_ or ())),
            way=way,
            server=LanguageServer(llm_url, llm, concurrency),
            queries=queries,
            per_query=per_query,
            negatives=negatives,
            forward_margin=forward_margin,
            similarity=similarity,
            seed=seed,
            overwrite=overwrite,
        )
    )


def _run(request: CurriculumRequest) -> None:
    from embed_core.distributed.process_group import Ranks, join, leave
    from embed_data.align.curriculum.curriculum import run
    from embed_data.mining.output.progress import Progress

    ranks = join() if request.retriever.given else Ranks(0, 1, 0, "cpu")
    try:
        report = run(request, ranks, lambda line: print(line, file=sys.stderr), Progress())
    finally:
        if request.retriever.given:
            leave()
    for line in summary(request, report):
        print(line)


def summary(request: CurriculumRequest, report: Mapping[str, Any]) -> Iterator[str]:
    """The final summary."""
    rows = max(1, report["rows"])
    yield (
        f"stage {request.stage}: {report['rows']:,} rows, {report['positives'] / rows:.1f} positives and "
        f"{report['negatives'] / rows:.1f} negatives a row"
    )
    if request.stage > 1:
        yield (
            f"entities of {report['chunks_read_by_model']:,} chunks by the language model, "
            f"{report['chunks_read_offline']:,} offline; queries of {report['questions_augmented_by_model']:,} "
            f"questions by the model, {report['questions_augmented_offline']:,} offline"
        )
        yield (
            f"{report['augmented_queries']:,} augmented queries, {report['nodes_per_subgraph']:.1f} entities a "
            f"subgraph; {report['questions_without_subgraph']:,} questions without one were asked as they are"
        )
    else:
        yield "negatives: random chunks of the same document"
    if report["without_negatives"]:
        yield f"{report['without_negatives']:,} rows have no negative: nothing else in their document qualifies"
    yield f"written to {request.output}: {', '.join(request.outputs)}"
