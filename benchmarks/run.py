"""``make bench``: every case, its systems in turn (A B A B), each in a process of its own on one core."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, GPU, LARGE, MAIN, Case, System
from benchmarks.fixture import NEGATIVES, ROOT, SEED, read_rows, tokens_per_row, write_model, write_rows
from benchmarks.report import Measurement, case_report
from benchmarks.vision_fixture import read_pictures, write_clip, write_pictures

from embed_core.config.context import cache_root

TIMEOUT = 1_200
"""Seconds of one process."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
}
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
PACKAGES = ("embed-core", "torch", "transformers", "deepspeed", "sentence-transformers", "FlagEmbedding", "ms-swift")


def main() -> None:
    """Run the cases that were asked for, print the report and write it beside the raw measurements."""
    options = parse()
    chosen = [case for case in CASES if case.name in options.case] if options.case else default_cases(options)
    if any(case.device == "cuda" for case in chosen) and not gpu():
        sys.exit("no CUDA device is visible here: the GPU cases need one")
    folder = options.output_dir or ROOT / "runs" / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    data, rows = read_rows()
    report = folder / "report.md"
    report.write_text(heading(data), encoding="utf-8")
    for case in chosen:
        section = run_case(case, rows, folder / case.name, options.repeats or case.repeats)
        with report.open("a", encoding="utf-8") as file:
            file.write(section + "\n")
    print(f"\n{report.read_text(encoding='utf-8')}\nwritten to {report}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, help="run this case only; repeatable")
    parser.add_argument("--large", action="store_true", help="also the cases that need several GB")
    parser.add_argument("--gpu", action="store_true", help="instead, the shapes of bge-m3 and Qwen3-0.6B on a GPU")
    parser.add_argument("--repeats", type=int, help="instead of each case's own number")
    parser.add_argument("--output-dir", type=Path, help="default: runs/bench-DATE-TIME")
    return parser.parse_args(arguments)


def default_cases(options: argparse.Namespace) -> list[Case]:
    """The main ones, and the large ones where asked for; or those of a GPU."""
    if options.gpu:
        return list(GPU)
    return [case for case in CASES if case.name in MAIN or (options.large and case.name in LARGE)]


def gpu() -> str:
    """Name of the first CUDA device; empty where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def heading(data: str) -> str:
    """When, on what, with which versions, by which command."""
    command = " ".join(["python -m benchmarks.run", *sys.argv[1:]])
    return (
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n\n{hardware()}; one core per process; data: {data}; "
        f"{', '.join(f'{name} {installed(name)}' for name in PACKAGES)}.\n\n    {command}\n\n"
    )


def hardware() -> str:
    """Processor, cores, memory, and how busy the machine was at the start."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = models[0] if models else platform.processor()
    processor = ", ".join(filter(None, [gpu(), processor]))
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f} before the start"


def installed(package: str) -> str:
    """Its version, or ``missing``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def run_case(case: Case, rows: Sequence[dict[str, Any]], folder: Path, repeats: int) -> str:
    """Prepare, then every system once per repeat; the report's section."""
    folder.mkdir()
    plain, ordered, tokens = prepare(case, rows, folder)
    found: dict[str, list[Measurement | None]] = {system.name: [] for system in case.systems}
    for repeat in range(repeats):
        # Every other repeat backwards: a machine that slows down, or warms up, favours nobody.
        for system in case.systems if repeat % 2 == 0 else reversed(case.systems):
            place = folder / f"{system.name.replace(' ', '-')}-{repeat + 1}"
            place.mkdir()
            measured = train(system, order(case, system, folder / "model", plain, ordered, place), place)
            found[system.name].append(measured)
            speed = f"{measured.rows_per_second(case):.2f} rows/s" if measured else f"failed: see {place / 'log.txt'}"
            print(f"{case.name} {repeat + 1}/{repeats} {system.name}: {speed}", flush=True)
    return case_report(case, found, tokens)


def prepare(case: Case, rows: Sequence[dict[str, Any]], folder: Path) -> tuple[Path, Path, float]:
    """Write the model and the rows: as they are, as embed will draw them, and how many tokens one has."""
    if case.loss == "clip":
        pictures = read_pictures(case, cache_root(), folder)
        tokens = write_clip(case, pictures, cache_root(), folder / "model")
        return *write_pictures(pictures, case, folder), tokens
    texts = [text for row in rows for text in (row["query"], *row["pos"])]
    tokenizer = write_model(case, texts, cache_root(), folder / "model")
    plain, ordered = write_rows(rows, case, folder)
    drawn = [json.loads(line) for line in ordered.read_text(encoding="utf-8").splitlines()]
    return plain, ordered, tokens_per_row(tokenizer, drawn, case)


def order(case: Case, system: System, model: Path, plain: Path, ordered: Path, place: Path) -> dict[str, Any]:
    """Everything a trainer is told."""
    same = ("loss", "batch_size", "steps", "query_max_len", "passage_max_len", "learning_rate", "mini_batch_size")
    same += ("device", "family")
    return {
        "model": str(model),
        "rows": str(plain),
        "ordered_rows": str(ordered),
        "output": str(place / "run"),
        "measured": str(place / "measured.json"),
        "strategy": system.strategy,
        "precision": system.precision or case.precision,
        "seed": SEED,
        "group_size": NEGATIVES + 1 if case.loss == "m3" else 1,
    } | {name: getattr(case, name) for name in same}


def train(system: System, told: dict[str, Any], place: Path) -> Measurement | None:
    """One process on the last core; ``None`` where it failed, its output being in ``log.txt`` either way."""
    (place / "order.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", f"benchmarks.{system.script}", str(place / "order.json")]
    on_cpu = told["device"] == "cpu"
    # The whole process on one core, tokenising threads included: two would measure who uses the second better.
    pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if on_cpu else []
    environment = os.environ | ENVIRONMENT | (ON_CPU if on_cpu else {})
    started = time.monotonic()
    with (place / "log.txt").open("w", encoding="utf-8") as log:
        try:
            subprocess.run(
                [*pinned, *command], cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=TIMEOUT, check=True
            )
        except (subprocess.SubprocessError, OSError) as error:
            log.write(f"\n{type(error).__name__} after {time.monotonic() - started:.0f} s: {error}\n")
            return None
    return Measurement(**json.loads(Path(told["measured"]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
