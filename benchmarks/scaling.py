"""How a step's cost grows with its batch: ``python -m benchmarks.scaling``; with its rows: ``benchmarks.memory_rows``.

The cached strategy on one core at three batch sizes, and the contrastive loss alone at three: a cost per row that stays
the same is linear, one that doubles with the batch is not.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

from benchmarks.cases import CACHED, MNRL
from benchmarks.fixture import ROOT, read_rows, tokens_per_row, write_model, write_rows
from benchmarks.report import table
from benchmarks.run import ENVIRONMENT, hardware, order, train

from embed_core.config.context import cache_root

BATCHES = (64, 256, 1_024)
LOSS_BATCHES = (2_048, 8_192, 32_768)
DIMENSIONS = 256


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--loss", type=int, help="the loss alone at this batch, in this process")
    options = parser.parse_args()
    if options.loss:
        print(*loss(options.loss))
        return
    print(f"{hardware()}\n\n{steps()}\n\n{losses()}")


def steps() -> str:
    """Seconds of a step, embed cached, by batch size."""
    _, rows = read_rows()
    texts = [text for row in rows for text in (row["query"], *row["pos"])]
    folder = ROOT / "runs" / f"scaling-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    lines = []
    for batch in BATCHES:
        case = replace(MNRL, systems=(CACHED,), ratios=(), batch_size=batch, steps=4, skip=2)
        place = folder / str(batch)
        place.mkdir(parents=True)
        tokenizer = write_model(case, texts, cache_root(), place / "model")
        plain, ordered = write_rows(rows, case, place)
        found = train(CACHED, order(case, CACHED, place / "model", plain, ordered, place), place)
        if found is None:
            lines.append([f"{batch:,}", "failed", "", "", ""])
            continue
        each = 1e3 / found.rows_per_second(case, cpu=True)
        tokens = tokens_per_row(tokenizer, rows[:1_000], case)
        cost = [f"{each * batch / 1e3:.2f}", f"{each:.1f}", f"{tokens:.0f}", f"{found.peak_mib:,.0f}"]
        lines.append([f"{batch:,}", *cost])
    return table(["rows of a step", "CPU-seconds", "CPU-ms per row", "tokens per row", "peak MiB"], lines)


def losses() -> str:
    """Milliseconds and memory of InfoNCE's forward and backward per row, by batch size, each in its own process."""
    lines = []
    for batch in LOSS_BATCHES:
        command = [sys.executable, "-m", "benchmarks.scaling", "--loss", str(batch)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
        )
        seconds, mebibytes = map(float, done.stdout.split())
        lines.append([f"{batch:,}", f"{seconds:.2f}", f"{1e6 * seconds / batch / batch:.4f}", f"{mebibytes:,.0f}"])
    return table(["rows", "CPU-seconds", "µs per pair of rows", "MiB beyond the embeddings"], lines)


def loss(batch: int) -> tuple[float, float]:
    """CPU-seconds and largest growth of memory in MiB of one forward and backward."""
    import torch

    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry
    from embed_core.losses.config import InfoNCEConfig
    from embed_core.testing.batches import random_batch

    torch.set_num_threads(1)
    given, targets = random_batch(batch, negatives=(0,), width=DIMENSIONS)
    function = InfoNCEConfig().build(BuildContext(registry=Registry(), announce=lambda line: None))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    function(given, targets).loss.backward()
    seconds = time.process_time() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
