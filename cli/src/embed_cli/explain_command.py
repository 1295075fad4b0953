"""The command ``embed explain``: prints the exact batches of one optimizer step."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embed_cli.run_command import RunRequest, resolve

if TYPE_CHECKING:
    from embed_core.inspection.explain import BatchView, ChunkView, RowView, StepView, TextView

SHORT = 72
"""Number of characters of a text that are shown without ``--full``."""
HEADER = ("row", "rank", "source", "place", "part", "tokens", "score", "uses", "text")


@dataclass(frozen=True)
class ExplainRequest:
    """The options of ``embed explain``."""

    run: RunRequest
    """Identifies the run, by the same options as ``embed run``."""
    step: int
    """Step number from 1, as in the display."""
    full: bool = False
    as_json: bool = False


def execute(request: ExplainRequest) -> None:
    """Print the step: a table on a terminal, lines for ``grep`` elsewhere, or JSON."""
    config, _, registry = resolve(request.run, request.run.nproc)
    from embed_core.inspection.explain import explain

    view = explain(config, registry, request.step, world_size=request.run.nproc, announce=_to_stderr)
    if request.as_json:
        print(json.dumps(asdict(view), ensure_ascii=False, indent=2))
        return
    console = Console()
    if console.is_terminal:
        for batch in view.batches:
            console.print(_table(view, batch, full=request.full))
            for line in _chunk_lines(batch):
                console.print(line, markup=False, highlight=False)
    else:
        for line in plain_lines(view, full=request.full):
            if "utf" not in console.encoding:
                line = line.encode(console.encoding, "replace").decode(console.encoding)
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _to_stderr(line: str) -> None:
    # Announcements of the dataset are not part of the output, which may be piped.
    print(line, file=sys.stderr)


def plain_lines(view: StepView, *, full: bool = False) -> list[str]:
    """One line per batch, text and chunk; a text's line starts with its row, rank, source and place."""
    lines: list[str] = []
    for batch in view.batches:
        lines += [_title(view, batch), *_aligned([HEADER, *_cells(batch, full=full)]), *_chunk_lines(batch)]
    return lines


def _title(view: StepView, batch: BatchView) -> str:
    phase = f", phase {view.phase}" if view.phase else ""
    return (
        f"step {view.step} of {view.total_steps}{phase}, batch {batch.draw}: {len(batch.rows)} rows, "
        f"{batch.texts} texts, {batch.distinct_texts} encoded, {batch.tokens:,} tokens, "
        f"padding {batch.padding_share:.1%}"
    )


def _cells(batch: BatchView, *, full: bool) -> Iterator[tuple[str, ...]]:
    for row in batch.rows:
        for text in row.texts:
            yield (
                str(row.row),
                str(row.rank),
                row.source or "-",
                row.place or "-",
                text.part,
                str(text.tokens),
                "-" if text.score is None else f"{text.score:.4g}",
                f"×{text.uses}" if text.uses > 1 else "-",
                _shown(row, text, full=full),
            )


def _shown(row: RowView, text: TextView, *, full: bool) -> str:
    """The text on one line, with the row's own prompt before it and its id after it."""
    prompt = row.query_prompt if text.part == "query" else row.passage_prompt
    whole = f"[{prompt}] {text.text}" if prompt else text.text
    if full:
        line = whole.replace("\n", "\\n")
    else:
        line = " ".join(whole.split())
        line = line if len(line) <= SHORT else line[: SHORT - 1] + "…"
    return f"{line} ({text.key})" if text.key else line


def _chunk_lines(batch: BatchView) -> list[str]:
    return [_chunk_line(number, chunk) for number, chunk in enumerate(batch.chunks)]


def _chunk_line(number: int, chunk: ChunkView) -> str:
    padding = 1 - chunk.tokens / chunk.padded_tokens if chunk.padded_tokens else 0.0
    return (
        f"chunk {number} of rank {chunk.rank}: {chunk.texts} texts of up to {chunk.longest} "
        f"tokens, padding {padding:.1%}"
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _table(view: StepView, batch: BatchView, *, full: bool) -> Table:
    table = Table(title=_title(view, batch), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEADER[:-1]:
        table.add_column(name, no_wrap=name != "place", overflow="fold")
    table.add_column(HEADER[-1], overflow="fold", ratio=1)
    last = ""
    for cells in _cells(batch, full=full):
        # Show the row's own columns once, not for each of its texts.
        own = cells[:4] if cells[4] == "query" or cells[0] != last else ("",) * 4
        last = cells[0]
        table.add_row(*(Text(cell) for cell in (*own, *cells[4:])))
    return table
