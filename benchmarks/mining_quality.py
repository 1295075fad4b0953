"""Do mined negatives train a better model than random ones? JaQuAD, the same steps, three seeds.

    python -m benchmarks.mining_quality

A fresh BGE-M3 in miniature (dense only) learns from three quarters of the articles of ``jaquad/dev`` and is measured on
the questions of the rest, over all paragraphs. Everything but the negatives is the same: model, rows, batches, steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.fixture import ROOT

SEEDS = (1, 2, 3)
NEGATIVES = 7
"""In the data; ``train_group_size - 1`` of them are drawn each time."""
HELD_OUT = 4
"""One article in so many is held out."""
Row = dict[str, Any]


def main() -> None:
    """Train every arm with every seed, print the table."""
    options = parse()
    source = jaquad()
    if source is None:
        sys.exit("jaquad/dev is not in $EMBED_TEST_DATA or ../shared/data: nothing to measure on")
    with TemporaryDirectory(prefix="embed-mining-") as made:
        folder = options.output_dir or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        split(source, folder)
        arms = {name: make(folder, name) for name, make in ARMS.items() if not options.arm or name in options.arm}
        for name, path in arms.items():
            print(f"{name}: {holding_the_answer(path)} of its negatives hold the answer", flush=True)
        found: dict[str, list[float]] = {name: [] for name in arms}
        for seed in options.seeds:
            for name, path in arms.items():
                started = time.monotonic()
                found[name].append(train(path, folder, seed, options.steps))
                seconds = time.monotonic() - started
                print(f"{name}, seed {seed}: nDCG@10 {found[name][-1]:.4f} after {seconds:.0f} s", flush=True)
        print(table(found))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining_quality", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="this one only; repeatable")
    parser.add_argument("--output-dir", type=Path, help="keep data and runs there")
    return parser.parse_args(arguments)


def jaquad() -> Path | None:
    """``jaquad/dev`` of ``$EMBED_TEST_DATA`` or ``../shared/data``."""
    data = os.environ.get("EMBED_TEST_DATA")
    path = (Path(data) if data else ROOT.parent / "shared" / "data") / "jaquad" / "dev"
    return path if path.is_dir() else None


def split(source: Path, folder: Path) -> None:
    """``train.jsonl`` and ``corpus.jsonl`` of the articles that are trained on, and the BEIR folder ``held-out``."""
    corpus = {row["_id"]: row for row in read(source / "corpus.jsonl")}
    queries = {row["_id"]: row for row in read(source / "queries.jsonl")}
    judged = [line.split("\t") for line in (source / "qrels" / "dev.tsv").read_text().splitlines()[1:]]
    held = {key for key, row in corpus.items() if is_held_out(row["title"])}
    rows = [
        {
            "query": queries[query]["text"],
            "pos": [f"{corpus[document]['title']} {corpus[document]['text']}"],
            "doc_id": [document],
            "answers": queries[query]["answers"],
        }
        for query, document, _ in judged
        if document not in held
    ]
    write(folder / "train.jsonl", rows)
    write(folder / "corpus.jsonl", [row for key, row in corpus.items() if key not in held])
    evaluation = folder / "held-out"
    (evaluation / "qrels").mkdir(parents=True, exist_ok=True)
    write(evaluation / "corpus.jsonl", list(corpus.values()))
    write(evaluation / "queries.jsonl", list(queries.values()))
    lines = ["\t".join(line) for line in judged if line[1] in held]
    (evaluation / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def is_held_out(title: str) -> bool:
    """By a hash: no article is on both sides."""
    return int.from_bytes(blake2b(title.encode(), digest_size=4).digest(), "big") % HELD_OUT == 0


def random_negatives(folder: Path, name: str) -> Path:
    """Any paragraphs but the row's own: what `embed mine` has to beat."""
    import numpy as np

    rng = np.random.default_rng(0)
    texts = {row["_id"]: f"{row['title']} {row['text']}" for row in read(folder / "corpus.jsonl")}
    keys = sorted(texts)
    rows = read(folder / "train.jsonl")
    for row in rows:
        drawn = [keys[n] for n in rng.permutation(len(keys))[: NEGATIVES + 1]]
        row["neg"] = [texts[key] for key in drawn if key not in row["doc_id"]][:NEGATIVES]
    return write(folder / f"{name}.jsonl", rows)


def mined(*arguments: str) -> Callable[[Path, str], Path]:
    """An arm by ``embed mine``."""

    def make(folder: Path, name: str) -> Path:
        output = folder / f"{name}.jsonl"
        command = [sys.executable, "-m", "embed_cli", "mine", str(folder / "train.jsonl"), "--output", str(output)]
        command += ["--corpus", str(folder / "corpus.jsonl"), "-n", str(NEGATIVES), "--overwrite", *arguments]
        subprocess.run(command, check=True)
        return output

    return make


def train(rows: Path, folder: Path, seed: int, steps: int) -> float:
    """nDCG@10 on the held-out questions after ``steps``."""
    from embed_bge import BGETrainer, BGETrainerConfig

    config = BGETrainerConfig(
        train_data=str(rows),
        eval_data=(str(folder / "held-out"),),
        output_dir=folder / "run",
        seed=seed,
        unified_finetuning=False,
        train_group_size=GROUP,
        per_device_train_batch_size=BATCH,
        query_max_len=32,
        passage_max_len=128,
        learning_rate=LEARNING_RATE,
        max_steps=steps,
        model={"from_scratch": SHAPE},
    )
    overrides = {"checkpoint": {"every_minutes": 0}, "tracking": {"report_to": []}, "engine": {"device": "cpu"}}
    result = BGETrainer(config=config, overrides=overrides, announce=lambda line: None).train(overwrite=True)
    last = result.evaluations[max(result.evaluations)]
    return next(value for name, value in last.items() if name.endswith("dense/nDCG@10"))


def holding_the_answer(path: Path) -> str:
    """How many negatives hold their row's answer to the letter."""
    rows = read(path)
    bad = sum(any(answer in text for answer in row["answers"]) for row in rows for text in row["neg"])
    return f"{bad:,} of {sum(len(row['neg']) for row in rows):,}"


def table(found: dict[str, list[float]]) -> str:
    """A line per arm: each seed, mean, and the difference to random ones seed by seed."""
    seeds = max(map(len, found.values()))
    lines = [f"{'negatives':<12}" + "".join(f"  seed {n + 1}" for n in range(seeds)) + "    mean   over random"]
    for name, values in found.items():
        against = [a - b for a, b in zip(values, found.get("random", values), strict=True)]
        cells = "".join(f"  {value:.4f}" for value in values)
        over = "" if name == "random" else "  ".join(f"{gain:+.4f}" for gain in against)
        lines.append(f"{name:<12}{cells}  {statistics.mean(values):.4f}   {over}")
    return "\n".join(lines)


def read(path: Path) -> list[Row]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Row]) -> Path:
    """The same back."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


STEPS, BATCH, GROUP, LEARNING_RATE = 150, 32, 3, 2e-3
SHAPE = {"vocab_size": 8_000, "hidden": 128, "layers": 2, "heads": 4}
ARMS: dict[str, Callable[[Path, str], Path]] = {"random": random_negatives, "bm25": mined()}

if __name__ == "__main__":
    main()
