"""Does a curriculum train a better model than its first stage alone? JaQuAD, the same steps, three seeds.

    python -m benchmarks.curriculum_quality

A small random encoder (dense, one layer) learns from questions of ``jaquad/train`` and is measured on ``jaquad/dev``,
which shares no article with it. The curriculum has three stages: negatives of the batch alone; then also easier ones,
mined by the model that stage 1 left; then harder ones, mined by the model that stage 2 left. The other arm is stage 1,
for as many steps as the three together. Weights at the start, tokenizer and rows are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.fixture import ROOT

SEEDS = (1, 2, 3)
ROWS = 6_400
"""Questions trained on."""
BATCH = 16
STEPS = (300, 100, 100)
"""Optimizer steps of each stage."""
LEARNING_RATES = (2e-3, 1e-3, 5e-4)
NEGATIVES = 4
"""Mined ones, drawn per row in stages 2 and 3."""
RANKS = ([11, 60], [1, 20])
"""Of stages 2 and 3: what the model of the stage before ranks there may be a negative. Without a margin: what holds the
answer is kept out, and what the model ranks above the positive is what it has to learn."""
MEASURE = "nDCG@10"
MODEL: Mapping[str, Any] = {
    "kind": "transformers-encoder",
    "pooling": "mean",
    "query_max_length": 32,
    "passage_max_length": 128,
    "from_scratch": {"vocab_size": 8_000, "hidden": 128, "layers": 1, "heads": 4},
}
Figures = dict[int, float]
"""Optimizer steps done → the measure."""


def main() -> None:
    """Train both arms with every seed, print the table; exit code 1 where the curriculum is not ahead with each."""
    options = parse()
    data = jaquad()
    if data is None:
        sys.exit("jaquad is not in $EMBED_TEST_DATA or ../shared/data: nothing to measure on")
    arms = {"curriculum": curriculum(options.steps), "stage 1 alone": alone(sum(options.steps))}
    found: dict[str, list[Figures]] = {arm: [] for arm in arms}
    with TemporaryDirectory(prefix="embed-curriculum-") as made:
        folder = options.output_dir or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        rows = prepare(data / "train", folder)
        for seed in options.seeds:
            for number, (arm, stages) in enumerate(arms.items()):
                started = time.monotonic()
                figures = train(stages, rows, data / "dev", folder / f"{number}-{seed}", seed)
                found[arm].append(figures)
                told = ", ".join(f"{value:.4f} at step {step}" for step, value in sorted(figures.items()))
                print(f"{arm}, seed {seed}: {MEASURE} {told}; {time.monotonic() - started:.0f} s", flush=True)
    print(table(found))
    behind = [seed for seed, gain in zip(options.seeds, gains(found), strict=True) if gain <= 0]
    if behind:
        sys.exit(f"the curriculum is not ahead of its first stage alone with seeds {behind}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curriculum_quality", description=__doc__)
    parser.add_argument("--steps", type=int, nargs=3, default=STEPS, help="optimizer steps of the three stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output-dir", type=Path, help="keep data and runs there; a run that is there is not repeated")
    return parser.parse_args(arguments)


def jaquad() -> Path | None:
    """``jaquad`` of ``$EMBED_TEST_DATA`` or ``../shared/data``."""
    data = os.environ.get("EMBED_TEST_DATA")
    path = (Path(data) if data else ROOT.parent / "shared" / "data") / "jaquad"
    return path if path.is_dir() else None


def prepare(source: Path, folder: Path) -> Path:
    """ROWS questions of the train split with their answers, chosen by a hash."""
    corpus = {row["_id"]: f"{row['title']} {row['text']}" for row in read(source / "corpus.jsonl")}
    queries = {row["_id"]: row for row in read(source / "queries.jsonl")}
    judged = [line.split("\t") for line in (source / "qrels" / "train.tsv").read_text().splitlines()[1:]]
    judged.sort(key=lambda line: blake2b(line[0].encode(), digest_size=8).digest())
    rows = [
        {
            "query": queries[query]["text"],
            "pos": [corpus[document]],
            "doc_id": [document],
            "answers": queries[query]["answers"],
        }
        for query, document, _ in judged[:ROWS]
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def curriculum(steps: Sequence[int]) -> list[dict[str, Any]]:
    """The three stages."""
    in_batch = {"negatives": "in-batch", "max_steps": steps[0], "learning_rate": LEARNING_RATES[0]}
    mined = [
        {
            "negatives": NEGATIVES,
            "remine": {"ranks": ranks},
            "max_steps": steps[stage],
            "learning_rate": LEARNING_RATES[stage],
            "warmup_steps": 5,
        }
        for stage, ranks in enumerate(RANKS, 1)
    ]
    return [in_batch, *mined]


def alone(steps: int) -> list[dict[str, Any]]:
    """The first stage for as long as all three."""
    return [{"negatives": "in-batch", "max_steps": steps, "learning_rate": LEARNING_RATES[0]}]


def train(stages: Sequence[Mapping[str, Any]], rows: Path, evaluation: Path, output: Path, seed: int) -> Figures:
    """The evaluations of one run, one at the end of each stage."""
    if not (output / "model").is_dir():
        data = {"kind": "retrieval", "path": str(rows)}
        # The answers are the rows' own: texts that hold one are no negatives.
        given = [{**s, "remine": {**s["remine"], "answers": str(rows)}} if "remine" in s else s for s in stages]
        config = {
            "plugins": ["qwen"],
            "model": MODEL,
            "data": data,
            "sampler": {"kind": "curriculum", "batch_size": BATCH, "stages": given},
            "loss": {"kind": "infonce", "temperature": 0.05},
            "checkpoint": {"kind": "transformers", "every_minutes": 0},
            "evaluation": [{"kind": "retrieval", "path": str(evaluation), "measures": [MEASURE]}],
            "engine": {"device": "cpu", "precision": "fp32"},
            "tracking": {"report_to": []},
        }
        path = output.with_suffix(".json")
        path.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "embed_cli", "run", "--config", str(path), "--overwrite"]
        command += ["--seed", str(seed), "--output-dir", str(output)]
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            sys.exit(f"the training failed:\n{answer.stdout[-2000:]}{answer.stderr[-4000:]}")
    return figures(output)


def figures(output: Path) -> Figures:
    """Of a finished run."""
    lines = read(output / "metrics.jsonl")
    return {
        line["step"]: value
        for line in lines
        for name, value in line.get("evaluation", {}).items()
        if name.endswith(MEASURE)
    }


def gains(found: Mapping[str, Sequence[Figures]]) -> list[float]:
    """Of the curriculum over its first stage alone after the last step, seed by seed."""
    last = [[one[max(one)] for one in figures] for figures in found.values()]
    return [a - b for a, b in zip(last[0], last[1], strict=True)]


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """A line per arm and step: each seed, and the mean; then the gain."""
    seeds = len(next(iter(found.values())))
    lines = [f"{MEASURE:<24}" + "".join(f"  seed {n + 1}" for n in range(seeds)) + "    mean"]
    for arm, figures in found.items():
        for step in sorted(figures[0]):
            values = [one[step] for one in figures]
            name = f"{arm}, step {step}"
            lines.append(f"{name:<24}" + "".join(f"  {v:.4f}" for v in values) + f"  {statistics.mean(values):.4f}")
    difference = gains(found)
    lines.append(
        f"{'gain':<24}" + "".join(f" {gain:+.4f}" for gain in difference) + f" {statistics.mean(difference):+.4f}"
    )
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
