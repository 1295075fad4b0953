"""Steps that run out of memory or meet a NaN: planted in whole runs, at every ZeRO stage, on one and two ranks."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from embed_core.batch.chunks import ChunkSizes
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import EmbedError
from embed_core.hardware.oom import is_out_of_memory
from embed_core.testing.tiny import TinyModel
from embed_core.train.step import Step
from embed_core.train.trainer import Trainer
from processes import launch

WORKER = str(Path(__file__).parent / "recover_worker.py")
STAGES = (0, 1, 2, 3)
TWO = Ranks(1, 2, 1, "cpu")
FITS = 700
"""Tokens of the largest chunk that the planted model can take."""


def settings(stage: int, strategy: str, budget: int, *more: str) -> list[str]:
    return [f"engine.zero_stage={stage}", f"engine.strategy={strategy}", f"engine.token_budget={budget}", *more]


def planted(name: str, stage: int, strategy: str, model: dict[str, Any], *more: str) -> dict[str, Any]:
    return {"name": name, "settings": settings(stage, strategy, 100_000, *more), "model": model}


ACCUMULATED = "train.gradient_accumulation_steps=2"
BF16 = "engine.precision=bf16-weights"
SKIP = "train.non_finite=skip"
ONE_RANK = [
    {"name": "plain", "settings": settings(0, "direct", 100_000)},
    {"name": "plain-accumulated", "settings": settings(0, "direct", 100_000, ACCUMULATED)},
    {"name": "plain-two", "settings": settings(0, "direct", 100_000), "sampler": {"batches": [0, 2, 3]}},
    *(
        planted(f"{where}-{stage}", stage, "direct", {"where": where, "tokens": FITS})
        for where in ("forward", "backward")
        for stage in STAGES
    ),
    # The first batch of the step has gone backward already when the second does not fit.
    *(
        planted(
            f"accumulated-{s}", s, "direct", {"where": "backward", "tokens": 1, "passing": 1, "once": True}, ACCUMULATED
        )
        for s in STAGES
    ),
    # In chunks of 400: a first one went backward, the second fails.
    *(
        {
            "name": f"second-chunk-{stage}",
            "settings": settings(stage, "cached", 400),
            "model": {"where": "backward", "tokens": 1, "passing": 1, "once": True},
        }
        for stage in STAGES
    ),
    {
        "name": "many-chunks",
        "settings": settings(0, "direct", 400),
        "model": {"where": "backward", "tokens": 1, "once": True},
    },
    planted("hopeless", 0, "direct", {"tokens": 20}),
    planted("really", 0, "direct", {"really_mib": 64}),
    # In half precision gradients gather in fp32, apart from the weights: other buffers, also to be forgotten.
    *({"name": f"plain-bf16-{s}", "settings": settings(s, "cached", 200, BF16)} for s in (1, 2, 3)),
    *(
        {
            "name": f"again-bf16-{s}",
            "settings": settings(s, "cached", 400, BF16),
            "model": {"where": "backward", "tokens": 1, "passing": 1, "once": True},
        }
        for s in (1, 2, 3)
    ),
    *(
        {"name": f"{what}-{s}", "settings": settings(s, "direct", 400, SKIP, "train.max_steps=4"), "loss": {what: [1]}}
        for what in ("bad_losses", "bad_gradients")
        for s in STAGES
    ),
    {
        "name": "always",
        "settings": settings(1, "direct", 400, SKIP, "train.max_steps=20"),
        "loss": {"bad_gradients": list(range(2, 20))},
    },
    *(
        {
            "name": f"stop-{s}",
            "settings": settings(s, "direct", 400, "checkpoint.every_steps=1"),
            "loss": {"bad_gradients": [1]},
        }
        for s in (0, 3)
    ),
]
TWO_RANKS = [
    {"name": "plain", "settings": settings(0, "direct", 100_000)},
    {"name": "plain-two", "settings": settings(0, "direct", 100_000), "sampler": {"batches": [0, 2, 3]}},
    *({"name": f"auto-{s}", "settings": settings(s, "auto", 400)} for s in (0, 3)),
    *(planted(f"forward-{s}", s, "direct", {"tokens": FITS, "rank": 1}) for s in (0, 1, 2)),
    *(planted(f"cached-{s}", s, "cached", {"tokens": FITS, "rank": 1}) for s in (0, 1)),
    *(
        {"name": f"{what}-{s}", "settings": settings(s, "direct", 400, SKIP, "train.max_steps=4"), "loss": {what: [1]}}
        for what, s in (("bad_losses", 0), ("bad_losses", 3), ("bad_gradients", 0), ("bad_gradients", 2))
    ),
]


class Answers:
    """What each case told, and the weights it exported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, rank: int = 0) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{name}.{rank}.json").read_text()))

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return dict(load_file(self.folder / name / "model" / "model.safetensors"))

    def assert_same(self, name: str, other: str, tolerance: float = 1e-6) -> None:
        found, wanted = self(name), self(other)
        assert (found["error"], wanted["error"]) == (None, None)
        for one, reference in zip(found["steps"], wanted["steps"], strict=True):
            assert one[:2] == pytest.approx(reference[:2], abs=tolerance)
        for key, value in self.weights(other).items():
            torch.testing.assert_close(self.weights(name)[key], value, rtol=0, atol=10 * tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """All cases on one rank."""
    out = tmp_path_factory.mktemp("alone")
    assert launch([sys.executable, WORKER, str(out), json.dumps(ONE_RANK)], 1) == 0
    return Answers(out)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """All cases on two ranks."""
    out = tmp_path_factory.mktemp("both")
    assert launch([sys.executable, WORKER, str(out), json.dumps(TWO_RANKS)], 2) == 0
    return Answers(out)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_did_not_fit_is_the_step_that_does(alone: Answers, where: str, stage: int) -> None:
    alone.assert_same(f"{where}-{stage}", "plain")
    lines = alone(f"{where}-{stage}")["lines"]
    budgets = [int(n.replace(",", "")) for n in re.findall(r"chunks of at most ([\d,]+),", " ".join(lines))]
    assert budgets, lines
    assert all(later <= earlier / 2 for earlier, later in pairwise(budgets))
    assert FITS / 4 < budgets[-1] <= FITS


@pytest.mark.parametrize("stage", STAGES)
def test_batches_accumulated_before_are_neither_lost_nor_counted_twice(alone: Answers, stage: int) -> None:
    alone.assert_same(f"accumulated-{stage}", "plain-accumulated")
    assert len([line for line in alone(f"accumulated-{stage}")["lines"] if "out of memory" in line]) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_chunks_that_went_backward_before_are_not_counted_twice(alone: Answers, stage: int) -> None:
    alone.assert_same(f"second-chunk-{stage}", "plain")


def test_direct_becomes_cached_before_the_chunks_become_smaller(alone: Answers) -> None:
    alone.assert_same("many-chunks", "plain")
    (line,) = [line for line in alone("many-chunks")["lines"] if "memory" in line]
    assert re.fullmatch(
        r"out of memory with strategy direct: batches of 1,\d{3} tokens and more run cached from here on", line
    )


def test_one_text_per_chunk_is_the_end(alone: Answers) -> None:
    answer = alone("hopeless")
    assert re.fullmatch(
        r"out of memory at one text per chunk, of \d+ tokens: shorten the texts \(the model's maximum length\), set "
        r"engine\.gradient_checkpointing: true, or shard the model with engine\.zero_stage: 3",
        answer["error"],
    )
    assert answer["steps"] == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["bad_losses", "bad_gradients"])
def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(alone: Answers, what: str, stage: int) -> None:
    """The rest of the run is bit for bit that of a run that never saw the batch."""
    check_skipped(alone, what, stage)


@pytest.mark.parametrize(
    ("what", "stage"), [("bad_losses", 0), ("bad_losses", 3), ("bad_gradients", 0), ("bad_gradients", 2)]
)
def test_two_ranks_skip_together(both: Answers, what: str, stage: int) -> None:
    check_skipped(both, what, stage)
    assert both(f"{what}-{stage}", rank=1)["steps"] == both(f"{what}-{stage}")["steps"] or what == "bad_losses"


def check_skipped(answers: Answers, what: str, stage: int) -> None:
    answer = answers(f"{what}-{stage}")
    assert answer["error"] is None
    kept = [step for number, step in enumerate(answer["steps"]) if number != 1]
    wanted = answers("plain-two")["steps"]
    assert [step[:2] for step in kept] == [pytest.approx(step[:2], abs=1e-6) for step in wanted]
    for key, value in answers.weights("plain-two").items():
        torch.testing.assert_close(answers.weights(f"{what}-{stage}")[key], value, rtol=0, atol=1e-5)
    assert [step[2].get("skipped") for step in answer["steps"]] == [None, 1.0, 1.0, 1.0]
    skipped = answer["steps"][1]
    assert math.isnan(skipped[0]) == (what == "bad_losses")
    (said,) = [line for line in answer["lines"] if "step skipped" in line]
    name = "loss is nan" if what == "bad_losses" else "gradient norm is (nan|inf)"
    assert re.fullmatch(rf"the {name} at step 2 \(rows 6, 7, 8, 9, 10, 11\): step skipped, 1 so far", said)
    assert "1 of 4 steps were skipped: their loss or gradient was not finite" in answer["lines"]


def test_ten_skipped_steps_in_a_row_stop_the_run(alone: Answers) -> None:
    answer = alone("always")
    assert re.search(r"at step 12 \(rows .*\), and so were the 9 steps before it: lower train\.opt", answer["error"])
    assert len(answer["steps"]) == 11


@pytest.mark.parametrize("stage", [0, 3])
def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_last_state(alone: Answers, stage: int) -> None:
    answer = alone(f"stop-{stage}")
    assert re.match(r"the gradient norm is (nan|inf) at step 2 \(rows 6, 7, 8, 9, 10, 11\): lower", answer["error"])
    states = alone.folder / f"stop-{stage}" / "checkpoints"
    assert [path.name for path in states.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("name", ["forward-0", "forward-1", "forward-2", "cached-0", "cached-1"])
def test_two_ranks_go_back_together_where_one_runs_out_of_memory(both: Answers, name: str) -> None:
    both.assert_same(name, "plain")
    assert "out of memory" in " ".join(both(name)["lines"])


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_choose_one_strategy(both: Answers, stage: int) -> None:
    both.assert_same(f"auto-{stage}", "plain")
    (line,) = [line for line in both(f"auto-{stage}")["lines"] if "strategy" in line]
    assert re.fullmatch(r"strategy direct: a batch keeps [\d.]+ MiB of [\d.]+ GiB free", line)


def test_where_two_ranks_cannot_go_back_they_stop_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under ZeRO-3 a forward is a collective: the other rank waits in it."""
    case = planted("lost", 3, "direct", {"tokens": FITS, "rank": 1})
    assert launch([sys.executable, WORKER, str(tmp_path), json.dumps([case])], 2) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: rank 1 ran out of memory where 2 ranks cannot go back together (planted: tried to allocate 20.00 MiB): "
        "set engine.strategy: cached or engine.token_budget: "
    )


def no_memory() -> None:
    raise torch.OutOfMemoryError("planted: tried to allocate 20.00 MiB\nand a lot more to read")


@pytest.mark.parametrize(
    ("strategy", "remedy"),
    [("cached", "engine.token_budget: 300"), ("direct", "engine.strategy: cached or engine.token_budget: 300")],
)
def test_the_line_of_a_rank_that_cannot_go_back(strategy: Literal["cached", "direct"], remedy: str) -> None:
    step: Any = Step(None, TinyModel(), lambda *_: None, EngineConfig(strategy=strategy, token_budget=900), TWO)  # type: ignore[arg-type]
    wanted = (
        "rank 1 ran out of memory where 2 ranks cannot go back together (planted: tried to allocate 20.00 MiB): "
        f"set {remedy}"
    )
    with pytest.raises(EmbedError, match=f"^{re.escape(wanted)}$"):
        step._watched(no_memory, ChunkSizes(3, 1500, 600, 100))


def test_an_optimizer_without_memory_stops_the_run() -> None:
    trainer: Any = Trainer.__new__(Trainer)
    trainer.engine = SimpleNamespace(zero_optimization_stage=lambda: 1, step=no_memory)
    with pytest.raises(
        EmbedError, match=r"^out of memory in the optimizer's step \(planted: .* MiB\): share its states"
    ):
        trainer._step_weights()


def test_an_allocator_that_fails_is_believed(alone: Answers) -> None:
    """Nothing planted: the process may not grow as far as the chunks ask for."""
    alone.assert_same("really", "plain")
    assert "out of memory in a chunk of" in " ".join(alone("really")["lines"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_half_precision_forgets_its_buffers_too(alone: Answers, stage: int) -> None:
    alone.assert_same(f"again-bf16-{stage}", f"plain-bf16-{stage}", tolerance=2e-3)
    assert "out of memory in a chunk of" in " ".join(alone(f"again-bf16-{stage}")["lines"])


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_too_little_memory(error: Exception, wanted: bool) -> None:
    assert is_out_of_memory(error) is wanted
