"""State per rank: against real optimizers, real DeepSpeed engines, and the figures of the ZeRO paper."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from embed_core.config.run import EngineConfig, TrainConfig
from embed_core.distributed.process_group import Ranks, join, leave
from embed_core.profiling.model_state_memory import state_memory
from embed_core.testing.tiny import TinyModel
from embed_core.zero import engine as zero_engine
from embed_core.zero.engine import BUCKET_ELEMENTS, Trainable, deepspeed_config, initialize

torch.set_num_threads(1)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    yield join("cpu")
    leave()


def zero(engine: EngineConfig, ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = deepspeed_config(engine, TrainConfig(), ranks, 1)["zero_optimization"]
    return found


@pytest.mark.parametrize(("trainable", "bucket"), [(0, 2), (600, 600), (601, 602), (10**12, BUCKET_ELEMENTS)])
def test_buffers_are_no_larger_than_what_is_trained(trainable: int, bucket: int, ranks: Ranks) -> None:
    found = deepspeed_config(EngineConfig(zero_stage=2), TrainConfig(), ranks, trainable)
    sizes = [found["zero_optimization"][f"{name}_bucket_size"] for name in ("reduce", "allgather")]
    assert sizes == [bucket, bucket]


def test_a_real_adamw() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 20))
    model[0].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    count = sum(p.numel() for p in model.parameters())
    found = state_memory(count, sum(p.numel() for p in trained), "fp32", 1, {"stage": 0}, on_gpu=False)
    moments = [v for s in optimizer.state.values() for v in s.values() if v.ndim]
    assert found.moments == sum(v.nbytes for v in moments)
    assert found.weights == sum(p.nbytes for p in model.parameters())
    assert found.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert (found.master, found.buckets, found.optimizer_step) == (0, 0, 0)
    assert found.held == found.weights + found.gradients + found.moments


def live(bucket: int = 0) -> dict[int, int]:
    """Bytes of all storages on the CPU, the buffers of ``bucket`` elements left out."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
        # Others' tests leave tensors of other kinds behind, some of which have no storage to ask.
        tensors = [one for one in tensors if one.device.type == "cpu" and one.layout == torch.strided]
        tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
        for one in tensors:
            storage = one.untyped_storage()
            if storage.nbytes() not in (2 * bucket, 4 * bucket):
                found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.parametrize(
    ("precision", "stage"),
    [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 0), ("bf16-weights", 1), ("bf16-weights", 3)],
)
def test_a_real_engine(precision: str, stage: int, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a backward that follows a step: weights, gradients, masters and moments are all there."""
    bucket = 10**6
    monkeypatch.setattr(zero_engine, "count_parameters", lambda parameters: bucket)
    before = live()
    engine = EngineConfig.model_validate({"precision": precision, "zero_stage": stage})
    module = Trainable(TinyModel(vocabulary=3000, width=64), None)
    total = sum(p.numel() for p in module.parameters())
    built = initialize(module, engine, TrainConfig(), ranks, lambda line: None)
    for step in range(2):
        loss = built(input_ids=torch.randint(1, 2999, (2, 8))).dense_ND.sum()
        built.set_gradient_accumulation_boundary(True)
        built.backward(loss)
        if step == 0:
            built.step()
    del loss
    real = sum(size for pointer, size in live(bucket).items() if pointer not in before)
    found = state_memory(total, total, precision, 1, zero(engine, ranks), on_gpu=False)
    assert found.held == pytest.approx(real, rel=0.03)
    assert found.held / total == (20 if precision == "fp32" and stage else 16)


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_figures_of_the_paper(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1: 7.5 billion parameters on 64 GPUs, in fp16 with Adam."""
    count = 7_500_000_000
    found = state_memory(count, count, "fp16", 64, {"stage": stage}, on_gpu=True)
    assert found.held / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_frozen_parameters_are_weights_only() -> None:
    found = state_memory(1000, 10, "bf16-weights", 1, {"stage": 1}, on_gpu=False)
    assert (found.weights, found.gradients, found.master, found.moments) == (2000, 20, 40, 80)
    assert found.optimizer_step == 40


def test_buffers_of_communication() -> None:
    """A GPU reserves DeepSpeed's buffers whole, two where they overlap the backward; main memory as far as used."""
    count, overlapping = 1000, {"stage": 2, "overlap_comm": True}
    buffers = [
        state_memory(count, count, "bf16-weights", 2, section, on_gpu=on_gpu).buckets
        for section, on_gpu in (
            (overlapping, True),
            ({"stage": 2}, True),
            (overlapping | {"reduce_bucket_size": 700}, True),
            (overlapping, False),
            ({"stage": 3}, True),
            ({"stage": 0}, True),
        )
    ]
    whole = 2 * BUCKET_ELEMENTS
    assert buffers == [2 * whole, whole, 2 * 2 * 700, 2 * count, whole + 2 * count, 0]
