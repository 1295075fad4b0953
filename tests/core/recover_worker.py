"""Run as a process per rank by test_zero_reset.py: whole runs with planted faults, one after another."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from embed_core.config import document
from embed_core.config.component import LossConfig, ModelConfig, SamplerConfig
from embed_core.config.resolve import Request, resolve
from embed_core.distributed.process_group import RankLostError, environment, leave
from embed_core.errors import EmbedError
from embed_core.plugin.hookspecs import hookimpl
from embed_core.plugin.manager import activate
from embed_core.testing.datasets import tiny_dataset
from embed_core.train.run import Options, run
from embed_core.types import Batch, LossOutput, Targets
from embed_hello.config import HelloModelConfig

SMALL = (
    "train={max_steps: 3, schedule: {kind: constant, warmup_ratio: 0}, optimizer: {learning_rate: 0.01}}",
    "tracking.report_to=[]",
    "checkpoint.every_minutes=0",
    "engine.precision=fp32",
    "evaluation=[]",
)


class Planted(ModelConfig):
    """The hello model, which has no memory for chunks of more than ``tokens`` where it is asked for a gradient."""

    kind: Literal["planted"] = "planted"
    where: Literal["forward", "backward"] = "forward"
    tokens: int = 10**9
    passing: int = 0
    """So many chunks with a gradient get through whatever their size; counted from the start of the run."""
    once: bool = False
    rank: int | None = None
    """The rank it happens on; all of them where it is None."""
    really_mib: int = 0
    """With this, a chunk does ask the allocator for 64 KiB a token, and the process gets so many MiB more."""

    def build(self, context: Any) -> Any:
        model: Any = HelloModelConfig(buckets=64, width=8, dimension=8).build(context)
        plain, seen, raised = model.forward, [0], [0]
        here = self.rank is None or self.rank == context.rank

        if self.really_mib:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            soft = pages * resource.getpagesize() + self.really_mib * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))

        def is_due(tokens: int) -> bool:
            seen[0] += 1
            due = here and tokens > self.tokens and seen[0] > self.passing and not (self.once and raised[0])
            raised[0] += due
            return due

        def no_memory(*_: Any) -> Any:
            raise torch.OutOfMemoryError("planted: tried to allocate 20.00 MiB")

        def in_the_middle(module: Any, inputs: Any) -> None:
            """In the backward: the perceptron above has its gradient by then, the table below has none."""
            if self.where == "backward" and inputs[0].requires_grad and is_due(model.tokens):
                inputs[0].register_hook(no_memory)

        def forward(ids_NL: torch.Tensor) -> Any:
            model.tokens = ids_NL.numel()
            if self.really_mib:
                torch.empty(ids_NL.numel(), 2**16, dtype=torch.uint8)
            if self.where == "forward" and torch.is_grad_enabled() and is_due(ids_NL.numel()):
                no_memory()
            return plain(ids_NL)

        model.forward = forward
        model.refine.register_forward_pre_hook(in_the_middle)
        return model


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * torch.nan


class Sick(LossConfig):
    """1 - cosine per row; its value or only its gradient is NaN in some steps."""

    kind: Literal["sick"] = "sick"
    bad_losses: tuple[int, ...] = ()
    bad_gradients: tuple[int, ...] = ()

    def build(self, context: Any) -> Any:
        def loss(batch: Batch, targets: Targets) -> LossOutput:
            assert batch.passage.dense_ND is not None
            assert batch.query.dense_ND is not None
            positive_BD = batch.passage.dense_ND[targets.positive_columns_B]
            value = (1 - (batch.query.dense_ND * positive_BD).sum(1)).mean()
            if targets.step in self.bad_gradients:
                value = _NaNGradient.apply(value)
            if targets.step in self.bad_losses:
                value = value * torch.nan
            return LossOutput(value, {"cosine": value.detach()})

        return loss


class Listed(SamplerConfig):
    """The rows of the batches listed, in the order of the rows."""

    kind: Literal["listed"] = "listed"
    batches: tuple[int, ...] = tuple(range(20))

    def build(self, context: Any, dataset: Any) -> Any:
        def batch(draw: int) -> Sequence[int]:
            start = self.batches[draw] * self.batch_size
            return [row % len(dataset) for row in range(start, start + self.batch_size)]

        return SimpleNamespace(batch=batch, draws_per_epoch=len(self.batches))


class Recorder:
    """Keeps what the run tells."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    @hookimpl
    def embed_step_ended(self, event: Any) -> None:
        self.steps.append([event.loss, event.gradient_norm, dict(event.metrics), event.padded_tokens])


def one(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run a case; the recorded steps, the announced lines and the error."""
    manager, registry = activate(["hello"])
    flags = {"output_dir": str(out / case["name"]), "plugins": ["hello"]}
    overrides = document.overrides([*SMALL, *case.get("settings", ())])
    config = resolve(registry, Request(registry.recipe("hello"), overrides=overrides, flags=flags))
    parts = {
        "model": Planted(**case.get("model", {})),
        "loss": Sick(**case.get("loss", {})),
        "sampler": Listed(batch_size=case.get("batch_size", 6), **case.get("sampler", {})),
    }
    recorder, error = Recorder(), None
    lines: list[str] = []
    manager.register(recorder)
    options = Options(dataset=tiny_dataset(), announce=lines.append, resume=case.get("resume", False))
    try:
        run(config.model_copy(update=parts), manager, registry, options)
    except EmbedError as caught:
        error = str(caught)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"steps": recorder.steps, "lines": lines, "error": error}


def main(out: Path, cases: list[dict[str, Any]]) -> None:
    """One file per case and rank. A rank that a run stops on several ranks ends as the command's ranks do."""
    torch.set_num_threads(1)
    rank, world_size, _ = environment()
    for case in cases:
        try:
            answer = one(case, out)
        except RankLostError:
            sys.exit(os.EX_PROTOCOL)
        (out / f"{case['name']}.{rank}.json").write_text(json.dumps(answer))
        if answer["error"] and world_size > 1:
            print(f"error: {answer['error']}", file=sys.stderr)
            sys.exit(2)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
