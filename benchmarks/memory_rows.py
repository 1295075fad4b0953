"""How the memory and the start of a run grow with its rows: ``python -m benchmarks.memory_rows --rows 5000000``.

Writes a JSONL file of so many (query, positive) rows, runs ``embed run`` on it for 50 steps with a small encoder from
scratch, once with an empty cache and once with what the first run left there, and prints for each the seconds until the
first step, wall-clock and of processor time (which a busy machine does not distort), and the largest memory of the
process tree, sampled from ``/proc``: resident (RSS), and of that what is the processes' own (RssAnon) rather than pages
of files, which the kernel may drop. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WORDS = 30_000
"""Distinct words, drawn with Zipf's frequencies."""
SETTINGS = ("model.from_scratch={hidden: 128, layers: 2, heads: 4, vocab_size: 8000}",)


@dataclass
class Usage:
    """Of a process tree: largest sums, in MiB, each at its own moment, and what it is now."""

    rss: float = 0.0
    anonymous: float = 0.0
    now: float = 0.0
    cpu: float = 0.0
    """Seconds of processor time of the processes that live."""

    def watch(self, process: subprocess.Popen[str], every: float = 0.1) -> None:
        """Sample until the process ends; ``every`` in seconds."""
        while process.poll() is None:
            pids = tree(process.pid)
            sums = [memory(pid) for pid in pids]
            self.now = sum(rss for rss, _ in sums)
            self.rss = max(self.rss, self.now)
            self.anonymous = max(self.anonymous, sum(own for _, own in sums))
            self.cpu = sum(map(cpu_seconds, pids))
            time.sleep(every)


def main() -> None:
    """Generate, run twice, print."""
    options = parse()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows-{options.rows}.jsonl"
    if not path.exists():
        write_rows(path, options.rows, options.shared)
    print(f"{path}: {options.rows:,} rows, {path.stat().st_size / 1e9:.2f} GB", flush=True)
    data = ["bge", f"train_data={path}"]
    if options.mix:
        data = ["data", f"dataset_config={mixed(path, options)}"]
    cache = folder / f"cache-{options.rows}"
    shutil.rmtree(cache, ignore_errors=True)
    for attempt in ("empty cache", "again"):
        print(f"| {options.rows:,} | {options.sampler} | {attempt} | {measure(data, cache, options)} |", flush=True)
    kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    print(f"cache: {kept / 1e6:.0f} MB")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--shared", type=int, default=1, help="rows that share a positive")
    parser.add_argument("--steps", type=int, default=50)
    samplers = ("shuffled", "no-duplicates", "by-source")
    parser.add_argument("--sampler", choices=samplers, default="no-duplicates")
    parser.add_argument("--folder", type=Path, default=Path("runs/memory-rows"), help="for the file, cache and runs")
    parser.add_argument("--mix", action="store_true", help="with a second file of a fifth as many rows")
    parser.add_argument("--set", action="append", default=[], help="more settings of the run, KEY=VALUE")
    return parser.parse_args(arguments)


def write_rows(path: Path, rows: int, shared: int, seed: int = 0) -> None:
    """``rows`` rows of 6 to 12 words as query and 15 to 35 as positive; ``shared`` rows in a row have one positive."""
    rng = np.random.default_rng(seed)
    words = vocabulary(rng)
    partial = path.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8") as file:
        positives = texts(rng, words, 15, 35)
        positive = ""
        for number, query in zip(range(rows), texts(rng, words, 6, 12), strict=False):
            if number % shared == 0:
                positive = next(positives)
            file.write(json.dumps({"query": f"{query} {number}", "pos": [positive]}) + "\n")
    partial.rename(path)


def vocabulary(rng: np.random.Generator) -> np.ndarray:
    """Words of 2 to 10 letters; letters in the frequencies of English."""
    letters = np.array(list("etaoinshrdlucmfwygpbvkxqjz"))
    weights = 1 / np.arange(1, 27) ** 0.7
    lengths = rng.integers(2, 11, size=WORDS)
    flat = rng.choice(letters, size=int(lengths.sum()), p=weights / weights.sum())
    ends = np.cumsum(lengths)
    return np.array(["".join(flat[end - length : end]) for end, length in zip(ends, lengths, strict=True)])


def texts(rng: np.random.Generator, words: np.ndarray, shortest: int, longest: int) -> Iterator[str]:
    """Texts without end."""
    weights = 1 / np.arange(1, WORDS + 1)
    bounds = np.cumsum(weights / weights.sum())
    while True:
        lengths = rng.integers(shortest, longest + 1, size=4096)
        drawn = words[np.minimum(np.searchsorted(bounds, rng.random(int(lengths.sum()))), WORDS - 1)].tolist()
        at = 0
        for length in lengths.tolist():
            yield " ".join(drawn[at : at + length])
            at += length


def mixed(path: Path, options: argparse.Namespace) -> Path:
    """A dataset YAML: as many rows as ``path`` has, of it and a second file, which has fewer than its share."""
    second = path.with_name(f"second-{options.rows // 5}.jsonl")
    if not second.exists():
        write_rows(second, options.rows // 5, options.shared, seed=1)
    text = f"""use_all: false
num_total_data: {options.rows}
allow_duplicate: true
datasets:
  - {{name: first, data_path: {path.resolve()}, data_ratio: 5}}
  - {{name: second, data_path: {second.resolve()}, data_ratio: 2}}
"""
    config = path.with_name(f"mix-{options.rows}.yaml")
    config.write_text(text, encoding="utf-8")
    return config


def measure(data: Sequence[str], cache: Path, options: argparse.Namespace) -> str:
    """One run of a plugin on a training set: seconds until the first step is done, seconds of all steps, MiB."""
    out = options.folder / "run"
    kind = f"sampler={{kind: {options.sampler}, batch_size: 64}}"
    settings = [*SETTINGS, f"max_steps={options.steps}", *data[1:], "tracking.report_to=[]", kind]
    flags = [flag for setting in [*settings, *options.set] for flag in ("--set", setting)]
    command = [sys.executable, "-m", "embed_cli", "run", "--plugin", data[0], "--output-dir", str(out), "--overwrite"]
    environment = os.environ | {"EMBED_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, *flags], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    usage = Usage()
    watcher = threading.Thread(target=usage.watch, args=(process,))
    watcher.start()
    assert process.stdout is not None
    lines, first = [], ""
    for line in process.stdout:
        lines.append(line)
        clock = f"{time.perf_counter() - started:.0f} s ({usage.cpu:.0f} s CPU)"
        print(f"    {clock:>18} {usage.now:5.0f} MiB  {line.rstrip()[:150]}", flush=True)
        first = clock if line.startswith("step 1/") else first
    watcher.join()
    if process.wait():
        raise SystemExit("".join(lines[-20:]))
    steps = [event["seconds"] for event in events(out / "metrics.jsonl") if "loss" in event]
    return (
        f"first step after {first}, {len(steps)} steps {sum(steps):.0f} s | "
        f"RSS {usage.rss:.0f} MiB | RssAnon {usage.anonymous:.0f} MiB"
    )


def events(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tree(root: int) -> list[int]:
    """A process and its descendants, threads' children included."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
        except OSError:  # gone meanwhile
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[float, float]:
    """Resident and anonymous MiB of a process; zeros where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "RssA"))}
    return sizes.get("VmRSS", 0.0), sizes.get("RssAnon", 0.0)


if __name__ == "__main__":
    main()
