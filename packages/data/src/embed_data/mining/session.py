"""Runs one mining or audit: read, plan, index, work on blocks of rows on all ranks, join the results."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from embed_core.errors import DataError
from embed_data.mining.corpus.collection import Collection, CorpusFile
from embed_data.mining.corpus.rows import Rows, open_rows
from embed_data.mining.output.work import Work, check_output
from embed_data.mining.select.audit import AuditBlocks
from embed_data.mining.select.miner import MiningBlocks
from embed_data.mining.select.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from embed_core.distributed.process_group import Ranks
    from embed_core.protocols import Announce
    from embed_data.mining.output.progress import Progress
    from embed_data.mining.request import MiningRequest

T = TypeVar("T")

VERSION = 1
"""Version of the plan: raise it when the same command gives another result."""
BLOCK = 256
"""Rows per block. A block is finished, or lost by a kill, as a whole."""
NO_RESULT = ("output", "overwrite", "masked_data", "reading")
"""Fields of a request that do not change the result, or whose effect shows in what was read."""


def run(request: MiningRequest, ranks: Ranks, announce: Announce, progress: Progress) -> dict[str, int]:
    """Mine or audit; returns the counts of the report. Raises EmbedError for everything a user can fix.

    The same request gives the same bytes on any number of ranks, and after any number of kills.
    """
    outputs = {"output": request.output}
    if request.masked_data is not None:
        outputs["masked"] = request.masked_data
        check_output(request.masked_data, overwrite=request.overwrite)
    check_output(request.output, overwrite=request.overwrite)
    rows, corpus = _in_turn(ranks, lambda: _opened(request, announce))
    collection = Collection(rows, corpus, texts_of_rows=request.audit)
    _check_size(request, collection, len(rows))
    announce(f"{'auditing' if request.audit else 'mining'} {len(rows):,} rows, {collection.minable:,} documents")
    from embed_data.mining.rank.judges import Judges

    judges = Judges(request, rows, collection, ranks, announce)
    work = Work(request.output, _plan(request, rows, collection, judges.digests))
    found = work.check(overwrite=request.overwrite)
    ranks.barrier()  # every rank has looked before one writes
    if ranks.rank == 0:
        work.start()
    ranks.barrier()
    if found:
        announce(f"going on with what {work.folder.name} holds")
    retriever, judge = judges.ready(work.folder, progress)
    screen = Screen(collection, request.overlap)
    blocks = (
        AuditBlocks(request, rows, collection, screen, judge)
        if request.audit
        else MiningBlocks(request, rows, collection, screen, retriever, judge)
    )
    _work(blocks, work, rows, ranks, progress, "auditing rows" if request.audit else "mining rows")
    counts = work.finish(_blocks(rows), outputs) if ranks.rank == 0 else {}
    ranks.barrier()
    return counts


def _work(blocks: Any, work: Work, rows: Rows, ranks: Ranks, progress: Progress, title: str) -> None:
    """Process this rank's unfinished blocks."""
    own = range(ranks.rank, _blocks(rows), ranks.world_size)
    members = {number: range(number * BLOCK, min(len(rows), (number + 1) * BLOCK)) for number in own}
    done = sum(len(members[number]) for number in own if work.has_block(number))
    with progress.stage(title, sum(map(len, members.values())), done) as advance:
        for number in own:
            if not work.has_block(number):
                lines, counts = blocks.block(members[number])
                work.write_block(number, lines, counts)
                advance(len(members[number]))
    ranks.barrier()


def _blocks(rows: Rows) -> int:
    return -(-len(rows) // BLOCK)


def _opened(request: MiningRequest, announce: Announce) -> tuple[Rows, CorpusFile | None]:
    rows = open_rows(request.data, request.split, request.reading, announce)
    corpus = _corpus(request)
    return rows, CorpusFile(corpus, announce) if corpus is not None else None


def _in_turn(ranks: Ranks, opened: Callable[[], T]) -> T:
    """Open on one rank of each machine first: it makes the copies that the others find."""
    if ranks.local_rank == 0:
        found = opened()
        ranks.barrier()
        return found
    ranks.barrier()
    return opened()


def _corpus(request: MiningRequest) -> Path | None:
    from embed_core.datasets.sources.beir import is_beir

    if request.corpus is None and is_beir(request.data):
        return request.data
    return request.corpus


def _check_size(request: MiningRequest, collection: Collection, rows: int) -> None:
    if request.audit:
        if not any(collection.negatives(row) for row in range(rows)):
            raise DataError(f"{request.data}: no row has negatives (`neg`): there is nothing to audit; mine some first")
    elif collection.minable < request.first_rank:
        raise DataError(
            f"--ranks {request.first_rank}-{request.last_rank}: there are only {collection.minable} documents to rank: "
            "start at a lower rank, or give a larger --corpus"
        )


def _plan(request: MiningRequest, rows: Rows, collection: Collection, digests: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the result depends on, equal to itself after a round through JSON."""
    from embed_data.mining.request import ModelChoice

    plan: dict[str, Any] = {
        field.name: str(value)
        for field in fields(request)
        if field.name not in NO_RESULT and not isinstance(value := getattr(request, field.name), ModelChoice)
    }
    if request.reading.columns:
        plan["columns"] = str(request.reading.columns)
    return {**plan, "version": VERSION, "rows": rows.digest(), "documents": collection.digest(), **digests}
