"""What a teacher is worth: a student distilled in two phases against the same student trained alone, at equal steps.

    python -m benchmarks.distill_quality

The embedded models of `embed run --plugin distill`, from scratch on the documentation of installed packages: a teacher
that is wider, deeper and has read all of it; a student, projected to its width, that is given 5,000 rows. The other arm
is the same encoder without a teacher, on the same rows, for as many steps as both phases have, at the best of several
learning rates. Measured on held-out modules.
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
from typing import Any

from embed_distill.evaluation.table import WAYS
from embed_distill.recipe.demo import embedded_student
from embed_distill.recipe.sections import SCRATCH_STUDENT_DIM, SCRATCH_TEACHER_DIM

SEEDS = (1, 2, 3)
MEASURE = "nDCG@10"
ALONE = "alone"
RATES = (4e-3, 8e-3, 1.6e-2)
"""Learning rates of the arm without a teacher; the distilled one has the recipe's 4e-3 in both phases."""
Figures = dict[str, float]
"""Who encodes queries and documents (:data:`WAYS`), or :data:`ALONE` → the measure."""


def main() -> None:
    """Train both arms with every seed, print the tables; exit code 1 where a claim of the page does not hold."""
    options = parse()
    with TemporaryDirectory(prefix="embed-distill-") as made:
        folder = options.output_dir or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        found: list[Figures] = []
        for seed in options.seeds:
            started = time.monotonic()
            figures, steps = distilled(folder, seed, options)
            figures[ALONE] = alone(folder, seed, steps, options)
            found.append(figures)
            print(
                f"seed {seed}: distilled {figures['student-student']:.4f}, alone {figures[ALONE]:.4f}, teacher "
                f"{figures['teacher-teacher']:.4f}; {steps} steps each, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    print(table(found))
    faults = broken(found)
    if faults:
        sys.exit("\n".join(faults))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill_quality", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--teacher-dim", type=int, default=SCRATCH_TEACHER_DIM)
    parser.add_argument("--student-dim", type=int, default=SCRATCH_STUDENT_DIM)
    parser.add_argument("--rows", type=int, default=5_000, help="training rows of both arms")
    parser.add_argument("--phase1-epochs", type=float, default=4.0)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of the student alone")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the distilled arm")
    parser.add_argument("--output-dir", type=Path, help="keep the runs there")
    return parser.parse_args(arguments)


def distilled(folder: Path, seed: int, options: argparse.Namespace) -> tuple[Figures, int]:
    """The 2×2 table of one run, and how many steps both its phases had."""
    texts = json.dumps([{"kind": "auto", "path": "pydocs", "limit": options.rows}])
    settings = [
        f"model.teacher_dim={options.teacher_dim}",
        f"model.student_dim={options.student_dim}",
        f"phase1.datasets={texts}",
        f"phase1.num_epochs={options.phase1_epochs}",
        f"phase2.max_samples={options.rows}",
        *options.set,
    ]
    state = run("distill", folder / f"distilled-{seed}", seed, settings)
    last = last_evaluation(state)
    return {way: last[f"held-out/{way}/{MEASURE}"] for way in WAYS}, state["steps"]


def alone(folder: Path, seed: int, steps: int, options: argparse.Namespace) -> float:
    """The student without a teacher, after as many steps on the same rows; the best of the learning rates."""
    shape = json.dumps(embedded_student(options.student_dim))
    common = [f"model.from_scratch={shape}", f"max_steps={steps}", f"data.limit={options.rows}"]
    measured = []
    for rate in options.rates:
        state = run("data", folder / f"alone-{seed}-{rate:g}", seed, [*common, f"learning_rate={rate}"])
        measured.append(last_evaluation(state)[f"held-out/dense/{MEASURE}"])
        print(f"  alone at {rate:g}: {measured[-1]:.4f}", flush=True)
    return max(measured)


def run(plugin: str, output: Path, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """``run.json`` of one run. A run that is there already is read, not repeated."""
    if not (output / "model").is_dir():
        command = [sys.executable, "-m", "embed_cli", "run", "--plugin", plugin, "--seed", str(seed)]
        command += [part for one in (*settings, "tracking.log_every_steps=50") for part in ("--set", one)]
        command += ["--output-dir", str(output), *(["--overwrite"] if output.exists() else [])]
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            sys.exit(f"the training failed:\n{answer.stderr}")
    state: dict[str, Any] = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return state


def last_evaluation(state: Mapping[str, Any]) -> Figures:
    """Of a run's evaluations the last."""
    evaluations: Mapping[str, Figures] = state["evaluations"]
    return evaluations[max(evaluations, key=int)]


def table(found: Sequence[Figures]) -> str:
    """Markdown: means over the seeds, with the smallest and the largest; the share of the teacher."""
    names = {
        "teacher-teacher": "teacher",
        "student-student": "student, distilled",
        ALONE: "student, alone",
        "student-teacher": "student's queries, teacher's documents",
        "teacher-student": "teacher's queries, student's documents",
    }
    whole = statistics.mean(one["teacher-teacher"] for one in found)
    lines = [f"| | {MEASURE} | from – to | of the teacher |", "|---|---|---|---|"]
    for way, name in names.items():
        values = [one[way] for one in found]
        mean = statistics.mean(values)
        lines.append(f"| {name} | {mean:.4f} | {min(values):.4f} – {max(values):.4f} | {mean / whole:.1%} |")
    return "\n".join(lines)


def broken(found: Sequence[Figures]) -> list[str]:
    """What does not hold: in every run the distilled student beats the other, the teacher beats both, and the student's
    queries find at least 70 % of what the teacher's find on the teacher's documents."""
    faults = []
    for number, one in enumerate(found, start=1):
        for better, worse in (("student-student", ALONE), ("teacher-teacher", "student-student")):
            if one[better] <= one[worse]:
                faults.append(f"run {number}: {better} {one[better]:.4f} is no more than {worse} {one[worse]:.4f}")
        if one["student-teacher"] < 0.7 * one["teacher-teacher"]:
            faults.append(
                f"run {number}: student-teacher {one['student-teacher']:.4f} is less than 70 % of the teacher"
            )
    return faults


if __name__ == "__main__":
    main()
