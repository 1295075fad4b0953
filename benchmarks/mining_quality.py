"""Do mined negatives train a better model than random ones? JaQuAD, the same steps, three seeds.

    python -m benchmarks.mining_quality

A small random model (dense, one layer) learns from questions of ``jaquad/train`` with the batch's other paragraphs as
negatives, as a first stage; then it goes on with negatives from all paragraphs of that split, random or mined ones,
and is measured on ``jaquad/dev``, which shares no article with it (``--dev``: the same within that split). All but the
negatives is the same: the model the second stage starts from, tokenizer, rows, their order, steps. ``dense`` mines with
that model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.fixture import ROOT

SEEDS = (1, 2, 3)
NEGATIVES = 7
"""In the data; ``train_group_size - 1`` of them are drawn each time."""
ROWS = 6_400
"""Questions trained on."""
FIRST = {"steps": 300, "batch": 32, "group": 1, "learning_rate": 2e-3}
"""In-batch negatives only."""
SECOND = {"steps": 250, "batch": 16, "group": 4, "learning_rate": 5e-4}
"""With the arm's negatives."""
VOCABULARY, HIDDEN, LAYERS = 8_000, 128, 1
QUERY, PASSAGE = 32, 128
"""Tokens."""
Row = dict[str, Any]
Arm = Callable[[Path, Path, Path, str], Path]
"""Folder of a seed, its trained first stage, JaQuAD, own name → rows with negatives."""


def main() -> None:
    """Train every arm with every seed, print the table."""
    options = parse()
    data = jaquad()
    if data is None:
        sys.exit("jaquad is not in $EMBED_TEST_DATA or ../shared/data: nothing to measure on")
    with TemporaryDirectory(prefix="embed-mining-") as made:
        folder = options.output_dir or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if options.dev:
            data = by_article(data / "dev", folder / "jaquad")
        prepare(data / "train", folder)
        wanted = [name for name in ARMS if not options.arm or name in options.arm]
        found: dict[str, list[float]] = {name: [] for name in ("first stage", *wanted)}
        for seed in options.seeds:
            own = folder / f"seed-{seed}"
            own.mkdir(exist_ok=True)
            start = write_start(folder, data, seed)
            found["first stage"].append(train(folder / "train.jsonl", start, data / "dev", own / "first", seed, FIRST))
            print(f"first stage, seed {seed}: nDCG@10 {found['first stage'][-1]:.4f}", flush=True)
            for name in wanted:
                rows = ARMS[name](own, own / "first", data, name)
                started = time.monotonic()
                value = train(rows, own / "first" / "model", data / "dev", own / name, seed, SECOND)
                found[name].append(value)
                seconds = time.monotonic() - started
                holding = holding_the_answer(rows)
                print(
                    f"{name}, seed {seed}: nDCG@10 {value:.4f} after {seconds:.0f} s; {holding} of its negatives hold "
                    "the answer",
                    flush=True,
                )
        print(table(found))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mining_quality", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="of the dev split: two thirds of its articles, and the rest")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="this one only; repeatable")
    parser.add_argument("--output-dir", type=Path, help="keep data and runs there")
    return parser.parse_args(arguments)


def jaquad() -> Path | None:
    """``jaquad`` of ``$EMBED_TEST_DATA`` or ``../shared/data``."""
    data = os.environ.get("EMBED_TEST_DATA")
    path = (Path(data) if data else ROOT.parent / "shared" / "data") / "jaquad"
    return path if path.is_dir() else None


def by_article(source: Path, folder: Path) -> Path:
    """``train`` and ``dev`` of one split, as BEIR folders: a third of its articles, chosen by a hash, is held out."""
    corpus, queries = read(source / "corpus.jsonl"), read(source / "queries.jsonl")
    (qrels,) = (source / "qrels").glob("*.tsv")
    head, *judged = qrels.read_text(encoding="utf-8").splitlines()
    held_out = {t for t in {row["title"] for row in corpus} if blake2b(t.encode(), digest_size=8).digest()[0] % 3 == 0}
    for name, wanted in (("train", False), ("dev", True)):
        part = folder / name
        (part / "qrels").mkdir(parents=True, exist_ok=True)
        documents = [row for row in corpus if (row["title"] in held_out) == wanted]
        ids = {row["_id"] for row in documents}
        lines = [line for line in judged if line.split("\t")[1] in ids]
        asked = {line.split("\t")[0] for line in lines}
        write(part / "corpus.jsonl", documents)
        write(part / "queries.jsonl", [row for row in queries if row["_id"] in asked])
        text = "".join(f"{line}\n" for line in (head, *lines))
        (part / "qrels" / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder


def prepare(source: Path, folder: Path) -> None:
    """``train.jsonl``, ROWS questions of the train split with their answers, chosen by a hash."""
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
    write(folder / "train.jsonl", rows)


def random_negatives(folder: Path, model: Path, data: Path, name: str) -> Path:
    """Any paragraphs but the row's own: what `embed mine` has to beat."""
    import numpy as np

    rng = np.random.default_rng(0)
    texts = {row["_id"]: f"{row['title']} {row['text']}" for row in read(data / "train" / "corpus.jsonl")}
    keys = sorted(texts)
    rows = read(folder.parent / "train.jsonl")
    for row in rows:
        drawn = [keys[n] for n in rng.permutation(len(keys))[: NEGATIVES + 1]]
        row["neg"] = [texts[key] for key in drawn if key not in row["doc_id"]][:NEGATIVES]
    return write(folder / f"{name}.jsonl", rows)


def mined(*arguments: str, dense: bool = False) -> Arm:
    """An arm by ``embed mine``; ``dense``: with the model of the first stage."""

    def make(folder: Path, model: Path, data: Path, name: str) -> Path:
        output = folder / f"{name}.jsonl"
        command = [sys.executable, "-m", "embed_cli", "mine", str(folder.parent / "train.jsonl")]
        command += ["--output", str(output), "--corpus", str(data / "train"), "-n", str(NEGATIVES), "--overwrite"]
        by = ["--by", "dense", "--model", str(model)] if dense else []
        subprocess.run([*command, *by, *arguments], check=True)
        return output

    return make


def write_start(folder: Path, data: Path, seed: int) -> Path:
    """A random model of ``seed``, with a tokenizer of the training paragraphs."""
    from embed_bge.checkpoint import BGEM3Checkpointer
    from embed_bge.config import BGEM3ModelConfig
    from embed_bge.model import BGEM3Model
    from embed_core.export.model_card import RunCard
    from embed_core.models.from_scratch.config import EncoderShape
    from embed_core.models.from_scratch.encoder import xlm_roberta
    from embed_core.models.from_scratch.unigram import unigram_tokenizer

    texts = [row["text"] for row in read(data / "train" / "corpus.jsonl")]
    tokenizer = unigram_tokenizer(texts, VOCABULARY, folder / "cache", print)
    shape = EncoderShape(vocab_size=len(tokenizer), hidden=HIDDEN, layers=LAYERS, heads=4)
    encoder = xlm_roberta(len(tokenizer), shape, max_length=PASSAGE, seed=seed)
    config = BGEM3ModelConfig(unified_finetuning=False, sentence_pooling_method="mean")
    model = BGEM3Model.from_parts(config, encoder, tokenizer, {})
    directory = folder / f"start-{seed}"
    if not directory.exists():
        directory.mkdir()
        card = RunCard("start", "from-scratch", {}, {"name": "none", "rows": 0, "fingerprint": ""}, {}, "", 0, {})
        BGEM3Checkpointer().export(model, model.state_dict(), directory, card)
    return directory


def train(rows: Path, model: Path, evaluation: Path, output: Path, seed: int, stage: Mapping[str, Any]) -> float:
    """nDCG@10 on the questions of ``evaluation`` after the stage."""
    from embed_bge import BGETrainer, BGETrainerConfig

    config = BGETrainerConfig(
        model_name_or_path=str(model),
        train_data=str(rows),
        eval_data=(str(evaluation),),
        output_dir=output,
        seed=seed,
        unified_finetuning=False,
        sentence_pooling_method="mean",
        train_group_size=stage["group"],
        per_device_train_batch_size=stage["batch"],
        query_max_len=QUERY,
        passage_max_len=PASSAGE,
        learning_rate=stage["learning_rate"],
        max_steps=stage["steps"],
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
        over = "" if name in ("random", "first stage") else "  ".join(f"{gain:+.4f}" for gain in against)
        lines.append(f"{name:<12}{cells}  {statistics.mean(values):.4f}   {over}")
    return "\n".join(lines)


def read(path: Path) -> list[Row]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Row]) -> Path:
    """The same back."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


ARMS: dict[str, Arm] = {
    "random": random_negatives,
    "bm25": mined(),
    "dense": mined("--absolute-margin", "0", dense=True),
}

if __name__ == "__main__":
    main()
