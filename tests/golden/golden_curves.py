"""Golden curves: the loss and the gradient norm of a dozen steps of every recipe, in miniature.

``make golden`` (or ``python tests/golden/golden_curves.py``) records them anew into ``tests/golden/NAME.json``. Whoever
changes mathematics on purpose does that, and says so in the changelog; any other change leaves the curves as they are.

Rows and models are made here and small, so that the curves do not depend on the machine, its Python packages or a hub.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

HERE = Path(__file__).parent
TOPICS = ("rivers", "engines", "gardens", "letters", "bridges", "winters", "markets", "planets")
COMMON = (
    "engine.precision=fp32",
    "engine.device=cpu",
    "engine.token_budget=1024",
    "tracking.report_to=[]",
    "evaluation=[]",
)
ROWS, TEACHER, STUDENT = "{folder}/rows.jsonl", "{folder}/data/model", "{folder}/data-cached/model"
TWELVE = ("max_steps=12", "per_device_train_batch_size=8")


@dataclass(frozen=True)
class Case:
    """A run of ``embed run --plugin PLUGIN --sanity``; ``{folder}`` in its settings is where all cases write."""

    plugin: str
    settings: Sequence[str]
    strategy: str = "direct"
    after: Sequence[str] = ()
    """Cases whose exported models this one loads."""


CASES = {
    "bge": Case("bge", (f"train_data={ROWS}", "use_self_distill=true", *TWELVE)),
    # The recipe's learning rate of 1e-3 would multiply what processors round differently to more than the tolerance.
    "bge-cached": Case(
        "bge", (f"train_data={ROWS}", "learning_rate=1e-4", "engine.token_budget=256", *TWELVE), "cached"
    ),
    "data": Case("data", (f"train_data={ROWS}", *TWELVE)),
    "data-cached": Case("data", (f"train_data={ROWS}", "seed=7", "engine.token_budget=256", *TWELVE), "cached"),
    "distill": Case(
        "distill",
        (
            f"model.teacher={TEACHER}",
            f"model.student={STUDENT}",
            "model.teacher_dim=null",
            "model.student_dim=null",
            "model.teacher_model={{dtype: fp32}}",
            f"phase1.datasets=[{ROWS}]",
            f"phase2.dataset={ROWS}",
            "train.max_steps=8",
        ),
        after=("data", "data-cached"),
    ),
    "mrl": Case("mrl", (f"train_data={ROWS}", *TWELVE)),
    "qwen": Case("qwen", (f"dataset_paths=[{ROWS}]", "curriculum=true", "per_device_train_batch_size=8")),
    "sbert": Case("sbert", ("data.kind=file", f"data.path={ROWS}", "train.max_steps=12", "train.batch_size=8")),
    "vision": Case("vision", ("data.drawn=shapes", "max_steps=12")),
    "hello": Case("hello", (f"data.path={ROWS}", "data.held_out_rows=8", "train.max_steps=12")),
}


def curve(name: str, folder: Path) -> list[dict[str, Any]]:
    """Run case ``name`` in ``folder`` and return its steps: number, phase, loss and gradient norm before clipping."""
    case = CASES[name]
    for earlier in case.after:
        if not (folder / earlier / "model").is_dir():
            curve(earlier, folder)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        rows.write_text("".join(json.dumps(row) + "\n" for row in _rows()), encoding="utf-8")
    settings = [*COMMON, f"engine.strategy={case.strategy}", *case.settings]
    arguments = [word for one in settings for word in ("--set", one.format(folder=folder))]
    _run("run", "--plugin", case.plugin, "--sanity", "--output-dir", str(folder / name), *arguments)
    logged = map(json.loads, (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {
            "step": one["step"],
            "phase": one.get("phase", ""),
            "loss": float(f"{one['loss']:.9g}"),
            "gradient_norm": float(f"{one['grad_norm']:.9g}"),
        }
        for one in logged
        if "terms" in one
    ]


def recorded(name: str) -> list[dict[str, Any]]:
    """The steps of case ``name`` as they were recorded."""
    steps: list[dict[str, Any]] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["steps"]
    return steps


def _run(*arguments: str) -> None:
    from embed_cli.main import app

    torch.set_num_threads(1)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, f"embed {' '.join(arguments)} ended with {result.exit_code}: {result.output}"


def _rows() -> list[dict[str, Any]]:
    """48 rows in FlagEmbedding's form, with passages of several lengths and scripts and five hard negatives."""
    scripts = ("über", "実験", "данные", "plain")
    return [
        {
            "query": f"what of {topic} number {i}, {scripts[i % 4]}",
            "pos": [f"{topic} {i} at length: " + " ".join(f"{topic[:3]}{i}{k}{topic[-2:]}" for k in range(4 + i % 5))],
            "neg": [f"{topic} {k} in short, and {TOPICS[(n + k) % 8]} too" for k in range(6) if k != i],
        }
        for n, topic in enumerate(TOPICS)
        for i in range(6)
    ]


def main(names: Sequence[str]) -> None:
    """Record the named cases, or all of them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EMBED_CACHE"] = f"{folder}/cache"
        for name in names or CASES:
            steps = curve(name, Path(folder))
            lines = ",\n".join("  " + json.dumps(step, ensure_ascii=False) for step in steps)
            (HERE / f"{name}.json").write_text(f'{{"plugin": "{CASES[name].plugin}", "steps": [\n{lines}\n]}}\n')
            print(f"{name}: {len(steps)} steps recorded")


if __name__ == "__main__":
    main(sys.argv[1:])
