"""What the teacher store costs, and what it saves.

    python -m benchmarks.teacher_store

First the store alone: vectors written and read per second, fp16 and int8, with random vectors. Then training: the same
steps of the same student, with a teacher that computes every batch again and with a store that has the vectors already,
in turn, in one process. A step's time includes the teacher's: on a GPU or a free core some of it would overlap. Teacher
and student have random weights, which makes no difference to the speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from embed_core.plugin.hookspecs import hookimpl

BLOCK = 2_048
BATCH = 512
DTYPES: tuple[Any, ...] = ("fp16", "int8")
ARMS = ("computed each step", "warm store")


@dataclass
class Clock:
    """An observer: wall-clock and processor time at the end of every step."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    @hookimpl
    def embed_step_ended(self, event: Any) -> None:
        """Steps only."""
        if event.evaluation is None:
            self.marks.append((time.perf_counter(), time.process_time()))

    def seconds(self, skip: int) -> tuple[float, float]:
        """Of a step: (wall-clock, processor), without the first ``skip``, which warm up."""
        first, last, steps = self.marks[skip - 1], self.marks[-1], len(self.marks) - skip
        return (last[0] - first[0]) / steps, (last[1] - first[1]) / steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Print two tables; exit code 1 where the warm store does not make training faster."""
    options = parse(arguments)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    with TemporaryDirectory(prefix="embed-teacher-store-") as made:
        print(store_table(Path(made), options.vectors, options.width), flush=True)
        found = training(Path(made), options)
    print(training_table(found, options))
    if statistics.median(one[0] for one in ratios(found)) <= 1:
        sys.exit("training with the warm store is no faster than with the teacher")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teacher_store", description=__doc__)
    parser.add_argument("--vectors", type=int, default=200_000, help="written and read")
    parser.add_argument("--width", type=int, default=1024, help="values of each")
    parser.add_argument("--steps", type=int, default=25, help="of each training")
    parser.add_argument("--skip", type=int, default=5, help="of them, not counted")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--teacher", type=int, nargs=2, default=(384, 6), metavar=("HIDDEN", "LAYERS"))
    parser.add_argument("--student", type=int, nargs=2, default=(128, 2), metavar=("HIDDEN", "LAYERS"))
    parser.add_argument("--threads", type=int, default=1, help="of torch; 0 = its own choice")
    return parser.parse_args(arguments)


def store_table(folder: Path, count: int, width: int) -> str:
    """Markdown: vectors per second of wall-clock time, a row per dtype."""
    rows = [
        f"| {count:,} vectors of {width:,} | bytes each | written/s | read/s, all | read/s, batches of {BATCH} |",
        "|---|---|---|---|---|",
    ]
    for dtype in DTYPES:
        size, *rates = store_rates(folder / dtype, dtype, count, width)
        rows.append(f"| {dtype} | {size:,.0f} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    return "\n".join(rows)


def store_rates(folder: Path, dtype: Any, count: int, width: int) -> tuple[float, float, float, float]:
    """Bytes of a vector on disk; vectors per second: written (joined into large files at the end), read one block after
    another, read at random."""
    from embed_distill.store.store import VectorStore

    rng = np.random.default_rng(0)
    keys = rng.integers(0, 1 << 63, size=(count, 2)).astype(np.uint64)
    block = rng.standard_normal((min(BLOCK, count), width)).astype(np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    store = VectorStore(folder, dtype, {"teacher": "random"}, print)

    def write() -> None:
        for start in range(0, count, BLOCK):
            part = keys[start : start + BLOCK]
            store.put(part, block[: len(part)])
        store.compact()

    def read(order: np.ndarray, size: int) -> None:
        for start in range(0, len(order), size):
            _, found = reader.get(keys[order[start : start + size]])
            assert found.all()

    written = rate(write, count)
    reader = VectorStore(folder, dtype, {}, print)
    whole = rate(lambda: read(np.arange(count), BLOCK), count)
    drawn = rng.permutation(count)[: min(count, 40 * BATCH)]
    batches = rate(lambda: read(drawn, BATCH), len(drawn))
    return sum(path.stat().st_size for path in folder.glob("*.vec")) / count, written, whole, batches


def rate(action: Callable[[], None], count: int) -> float:
    """``count`` per second."""
    began = time.perf_counter()
    action()
    return count / (time.perf_counter() - began)


Found = dict[str, list[tuple[float, float]]]
"""Arm → (wall-clock, processor) seconds of a step, one for each repeat."""


def training(folder: Path, options: argparse.Namespace) -> Found:
    """Both arms in turn."""
    from embed_core.distributed.process_group import leave
    from embed_core.plugin.manager import activate

    _, registry = activate(["mrl"])
    teacher = made_teacher(folder / "teacher", registry, options)
    config = run_config(registry, folder, teacher, options)
    found: Found = {arm: [] for arm in ARMS}
    for repeat in range(options.repeats):
        for arm in ARMS:
            with dataset_of(arm, config, registry, folder) as dataset:
                clock = Clock()
                train(config, dataset, folder / f"{arm}-{repeat}", clock)
                found[arm].append(clock.seconds(options.skip))
    leave()
    return found


def made_teacher(folder: Path, registry: Any, options: argparse.Namespace) -> Path:
    """An encoder of random weights with a tokenizer of the data's texts."""
    from embed_core.config.context import BuildContext
    from embed_core.export.layout import write_directory
    from embed_core.models.transformers_encoder.config import TransformersEncoderConfig

    data = registry.get("dataset", "pydocs").model_validate({"kind": "pydocs"}, context={"registry": registry})
    context = BuildContext(registry, announce=lambda line: None)
    context.dataset_factory = lambda: data.build(context)
    hidden, layers = options.teacher
    shape = {"hidden": hidden, "layers": layers, "heads": max(1, hidden // 32), "vocab_size": 8_000}
    plain = {"from_scratch": shape, "query_max_length": 192, "passage_max_length": 192}
    model: Any = TransformersEncoderConfig.model_validate(plain).build(context)
    folder.mkdir()
    write_directory(model, dict(model.state_dict()), folder)
    return folder


def run_config(registry: Any, folder: Path, teacher: Path, options: argparse.Namespace) -> Any:
    """The recipe `mrl` with the teacher, small, without evaluation and checkpoints."""
    from embed_core.config.document import Document
    from embed_core.config.resolve import Request, resolve

    hidden, layers = options.student
    rows = options.batch_size * options.steps
    keys = {
        "teacher_model_name": str(teacher),
        "model": {"from_scratch": {"hidden": hidden, "layers": layers, "vocab_size": 8_000}},
        "data": {"limit": rows},
        "per_device_train_batch_size": options.batch_size,
        "max_steps": options.steps,
        "held_out_rows": 1,
        "evaluation": [],
        "checkpoint": {"every_minutes": 0},
        "tracking": {"report_to": []},
        "engine": {"precision": "fp32", "strategy": "direct"},
    }
    config = resolve(registry, Request(registry.recipe("mrl"), Document(keys)))
    data: Any = config.data
    teachers = tuple(one.model_copy(update={"dtype": "fp32"}) for one in data.teachers)
    taught = data.model_copy(update={"store": str(folder / "store"), "teachers": teachers})
    return config.model_copy(update={"data": taught})


@contextmanager
def dataset_of(arm: str, config: Any, registry: Any, folder: Path) -> Iterator[Any]:
    """The rows with their vectors: from the store, which is filled first, or from the teacher every time."""
    from embed_core.config.context import BuildContext
    from embed_distill.datasets.with_teacher import WithTeacher
    from embed_distill.teacher.cached import Sources

    context = BuildContext(registry, announce=lambda line: None)
    if arm == "warm store":
        dataset = config.data.build(context)
        yield dataset
        assert not dataset.sources.each[0].loaded, "a vector was missing"
        return
    sources = Sources.of(config.data.teachers, str(folder / "unused"), "fp16", context)
    teacher = sources.each[0].load()
    sources.vectors = lambda asked: teacher.vectors(list(dict.fromkeys(asked)))[places(asked)]  # type: ignore[method-assign]
    yield WithTeacher(config.data.inner.build(context), sources)


def places(asked: Sequence[Any]) -> list[int]:
    """Where each of ``asked`` is among the distinct ones."""
    at = {one: place for place, one in enumerate(dict.fromkeys(asked))}
    return [at[one] for one in asked]


def train(config: Any, dataset: Any, output: Path, clock: Clock) -> None:
    """One run, its steps timed by ``clock``."""
    from embed_core.plugin.manager import activate
    from embed_core.train.run import Options, run

    manager, registry = activate(["mrl"])
    manager.register(clock)
    alone = config.model_copy(update={"data": config.data.inner, "output_dir": output})
    run(alone, manager, registry, Options(dataset=dataset, announce=lambda line: None))


def ratios(found: Found) -> list[tuple[float, float]]:
    """How many times faster the second arm is, repeat by repeat: (wall-clock, processor)."""
    slow, fast = (found[arm] for arm in ARMS)
    return [(a[0] / b[0], a[1] / b[1]) for a, b in zip(slow, fast, strict=True)]


def training_table(found: Found, options: argparse.Namespace) -> str:
    """Markdown: medians of the repeats."""
    rows = [
        f"| teacher {options.teacher[0]} × {options.teacher[1]}, student {options.student[0]} × {options.student[1]}, "
        f"batches of {options.batch_size} | ms a step | processor ms |",
        "|---|---|---|",
    ]
    for arm, seconds in found.items():
        wall, cpu = (1e3 * statistics.median(one[at] for one in seconds) for at in (0, 1))
        rows.append(f"| {arm} | {wall:,.0f} | {cpu:,.0f} |")
    wall, cpu = (statistics.median(one[at] for one in ratios(found)) for at in (0, 1))
    rows.append(f"| ratio | {wall:.2f}× | {cpu:.2f}× |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
