"""What Matryoshka training keeps: quality by dimension, against the same model trained at its full dimension only.

    python -m benchmarks.mrl_quality

The encoder of `embed run --plugin mrl`, from scratch on the documentation of installed packages, once with all its
dimensions and once with the full one alone; data, order, steps and evaluation are the same. Measured on held-out
modules at every dimension and precision.
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
from pathlib import Path
from tempfile import TemporaryDirectory

WIDTH = 128
SEEDS = (1, 2, 3)
MEASURE = "nDCG@10"
ARMS: Mapping[str, Mapping[str, object]] = {
    "matryoshka": {},
    "full dimension only": {"mrl_dims": [WIDTH]},
}
Figures = dict[str, float]
"""``dimension/precision`` → the measure."""


def main() -> None:
    """Train every arm with every seed, print the table; exit code 1 where a claim of the page does not hold."""
    options = parse()
    with TemporaryDirectory(prefix="embed-mrl-") as made:
        folder = options.output_dir or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
        for seed in options.seeds:
            for number, arm in enumerate(ARMS):
                started = time.monotonic()
                figures = train(ARMS[arm], folder / f"{number}-{seed}", seed, options.epochs)
                found[arm].append(figures)
                seconds = time.monotonic() - started
                half = figures[f"{WIDTH // 2}/fp32"]
                print(
                    f"{arm}, seed {seed}: {MEASURE} {figures[f'{WIDTH}/fp32']:.4f} at {WIDTH}, {half:.4f} at half, "
                    f"{seconds:.0f} s",
                    flush=True,
                )
    print(table(found))
    faults = broken(found)
    if faults:
        sys.exit("\n".join(faults))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mrl_quality", description=__doc__)
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the data of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output-dir", type=Path, help="keep the runs there")
    return parser.parse_args(arguments)


def train(keys: Mapping[str, object], output: Path, seed: int, epochs: float) -> Figures:
    """The last evaluation of one run. A run that is there already is read, not repeated."""
    if not (output / "run.json").is_file():
        config = output.with_suffix(".yaml")
        config.write_text(json.dumps({**keys, "evaluation": [{"kind": "dimensions"}]}), encoding="utf-8")
        settings = (f"num_train_epochs={epochs}", f"model.from_scratch.hidden={WIDTH}", "logging_steps=50")
        command = [sys.executable, "-m", "embed_cli", "run", "--plugin", "mrl", "--config", str(config)]
        command += [part for setting in settings for part in ("--set", setting)]
        command += ["--seed", str(seed), "--output-dir", str(output)]
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            sys.exit(f"the training failed:\n{answer.stderr}")
    evaluations = json.loads((output / "run.json").read_text(encoding="utf-8"))["evaluations"]
    last = evaluations[max(evaluations, key=int)]
    prefix = "held-out/dense@"
    return {
        name.removeprefix(prefix).removesuffix(f"/{MEASURE}"): value
        for name, value in last.items()
        if name.startswith(prefix) and name.endswith(f"/{MEASURE}")
    }


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: means over the seeds, a row per dimension and precision, and the share of the full dimension kept."""
    names = list(next(iter(found.values()))[0])
    lines = [
        "| dimensions | " + " | ".join(f"{arm} | kept" for arm in found) + " |",
        "|---" * (1 + 2 * len(found)) + "|",
    ]
    for name in names:
        cells = [name]
        for runs in found.values():
            mean = statistics.mean(run[name] for run in runs)
            cells += [f"{mean:.4f}", f"{mean / statistics.mean(run[f'{WIDTH}/fp32'] for run in runs):.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def broken(found: Mapping[str, Sequence[Figures]]) -> list[str]:
    """What does not hold: at half the dimensions 95 % of the quality, and more than the other arm has there."""
    full, half = f"{WIDTH}/fp32", f"{WIDTH // 2}/fp32"
    trained, other = (found[arm] for arm in ARMS)
    faults = []
    for number, (ours, theirs) in enumerate(zip(trained, other, strict=True), start=1):
        if ours[half] < 0.95 * ours[full]:
            faults.append(f"run {number}: {ours[half]:.4f} at half is less than 95 % of {ours[full]:.4f}")
        if ours[half] <= theirs[half]:
            faults.append(f"run {number}: {ours[half]:.4f} at half is no more than {theirs[half]:.4f} without training")
    return faults


if __name__ == "__main__":
    main()
