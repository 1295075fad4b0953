"""`embed plan` on real parts: counts against plain loops, memory against a whole batch that is watched, devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from embed_cli.run_command import RunRequest, resolve
from embed_core.batch.chunks import cut
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.config.run import RunConfig
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import to_float32, values
from embed_core.errors import ConfigError
from embed_core.hardware import specs
from embed_core.inspection.explain import explain
from embed_core.inspection.parts import Parts
from embed_core.inspection.plan.data_profile import text_tokenizer
from embed_core.inspection.plan.plan import plan
from embed_core.inspection.plan.report import Plan
from embed_core.inspection.plan.target import PlanRequest
from embed_core.losses.config import InfoNCEConfig
from embed_core.profiling.activation_memory import trace_on_cpu
from embed_core.profiling.flops import cost_of
from embed_core.profiling.loss_memory import LossProbe, _grown, synthetic
from embed_core.testing.datasets import RowsDataset
from embed_core.testing.tiny import TinyModel
from embed_core.types import Embeddings, Example

torch.set_num_threads(1)
SMALL = (
    "model={from_scratch: {vocab_size: 200, hidden: 16, layers: 2, heads: 2}, query_max_len: 24, passage_max_len: 40}",
    "per_device_train_batch_size=6",
    "data={held_out_rows: 0}",
    "evaluation=[]",
    "engine={precision: fp32, token_budget: 200}",
)
CPU = Ranks(0, 1, 0, "cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def rows() -> RowsDataset:
    """Lengths from a few words to far too many, and a passage that occurs in every row."""
    made = []
    for n in range(24):
        question = f"what is told of the {n}th king" + " and of his horses" * (n % 4)
        made.append((question, [f"the king {n} " + "rode out " * (n % 9) * 2], ["nobody knows", f"not {n}"]))
    return RowsDataset(made, name="kings")


def resolved(*settings: str, ranks: int = 1) -> tuple[RunConfig, Registry]:
    config, _, registry = resolve(RunRequest(("bge",), overrides=(*SMALL, *settings)), ranks)
    return config, registry


def planned(*settings: str, **request: Any) -> Plan:
    config, registry = resolved(*settings, ranks=request.get("ranks", 1))
    return plan(config, registry, PlanRequest(**request), dataset=rows())


def parts_of(*settings: str) -> tuple[Parts, Any]:
    config, registry = resolved(*settings)
    parts = Parts(config, registry, CPU, dataset=rows())
    return parts, parts.model()


def test_the_data_is_what_explain_shows() -> None:
    """Padding, repeated texts, tokens and steps: the batches of the first steps, seen one by one."""
    settings = ("train.max_steps=7", "train.gradient_accumulation_steps=2")
    made = planned(*settings, batches=4)
    config, registry = resolved(*settings)
    views = [b for step in (1, 2) for b in explain(config, registry, step, dataset=rows()).batches]
    tokens, padded = sum(v.tokens for v in views), sum(v.padded_tokens for v in views)
    assert made.data.tokens == tokens / 4
    assert made.data.padding_share == pytest.approx(1 - tokens / padded)
    assert 0 < made.data.padding_share < 0.5
    assert made.data.rows == 6
    assert made.data.texts == sum(v.texts for v in views) / 4
    assert made.data.repeated_share == pytest.approx(
        1 - sum(v.distinct_texts for v in views) / sum(v.texts for v in views)
    )
    assert made.data.repeated_share > 0.2
    assert (made.speed.steps, made.speed.tokens_per_step) == (7, tokens / 2)


def test_truncation_by_a_plain_loop() -> None:
    settings = ("query_instruction_for_retrieval='tell me: '", "model.query_max_len=64")
    made = planned(*settings, batches=2)
    parts, model = parts_of(*settings)
    examples = [e for number in range(2) for e in parts.batches.examples(number)]
    tokenizer = model.tokenizer
    whole = {
        "query": [len(tokenizer("tell me: " + e.query)["input_ids"]) for e in examples],
        "passage": [len(tokenizer(text)["input_ids"]) for e in examples for text in e.passages],
    }
    for column, limit in zip(made.data.columns, (64, 40), strict=True):
        lengths = whole[column.role]
        assert column.texts == len(lengths)
        assert column.truncated_share == sum(n > limit for n in lengths) / len(lengths)
        assert column.tokens_lost_share == pytest.approx(sum(max(0, n - limit) for n in lengths) / sum(lengths))
        assert column.mean_tokens == pytest.approx(np.mean([min(n, limit) for n in lengths]))
        assert column.longest == min(limit, max(lengths))
        assert 0 < column.truncated_share < 1


def test_a_model_that_does_not_tell_what_it_cuts() -> None:
    assert text_tokenizer(TinyModel()) is None
    config, _, registry = resolve(RunRequest(("hello",), overrides=("evaluation=[]", "batch_size=8")), 1)
    made = plan(config, registry, PlanRequest(batches=1), dataset=rows())
    assert [c.truncated_share for c in made.data.columns] == [None, None]
    assert made.speed.flops_by_shape is False
    assert made.speed.model_flops_per_step > 0
    assert made.speed.measured is not None


def test_parameters_and_flops() -> None:
    made = planned(batches=3)
    parts, model = parts_of()
    every = list(model.parameters())
    assert made.parameters.total == sum(p.numel() for p in every)
    assert made.parameters.trainable == sum(p.numel() for p in every if p.requires_grad)
    cost = cost_of(model)
    assert cost is not None
    lengths = [one.length for number in range(3) for one in parts.batches.host(model, number).encoded]
    wanted = cost.training(sum(lengths), sum(n * n for n in lengths)) / 3
    assert made.speed.model_flops_per_step == pytest.approx(wanted)
    assert made.speed.flops_by_shape
    assert made.device.peak_flops is not None
    rate = made.device.peak_flops * made.data.tokens / wanted
    assert made.speed.ceiling == pytest.approx(rate)
    assert made.speed.realistic == pytest.approx(0.4 * rate)


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        (("engine.strategy=direct",), 1),
        (("engine.strategy=cached",), 2),
        (("engine.strategy=direct", "engine.gradient_checkpointing=true"), 2),
        (("engine.strategy=cached", "engine.gradient_checkpointing=true"), 3),
    ],
)
def test_forwards_that_are_repeated_cost(settings: Sequence[str], forwards: int) -> None:
    """8·N for GradCache or checkpointing, 10·N for both, of 6·N."""
    made = planned(*settings, batches=1)
    ratio = made.speed.flops_per_step / made.speed.model_flops_per_step
    assert ratio == pytest.approx((2 + forwards) / 3, rel=0.01)
    assert made.speed.ceiling is not None
    assert made.device.peak_flops is not None
    assert made.speed.ceiling == pytest.approx(
        made.device.peak_flops * made.speed.tokens_per_step / made.speed.flops_per_step
    )


def outputs(model: Any, inputs: Sequence[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [value for each in inputs for value in values(to_float32(model(**each)))]


def test_a_whole_batch_takes_what_was_foreseen() -> None:
    """All chunks of the largest batch forward, graphs kept, then backward, as the direct strategy runs them."""
    made = planned(batches=3)
    parts, model = parts_of()
    model.train()
    loss = next(part.bytes for part in made.memory if part.name == "loss")
    most = 0.0
    for number in range(3):
        host = parts.batches.host(model, number)
        chunks = [[host.encoded[i] for i in chunk] for chunk in cut([e.length for e in host.encoded], 200)]
        inputs = [model.collate(chunk) for chunk in chunks]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        known = [*model.parameters(), *model.buffers(), *gradients, *(v for each in inputs for v in each.values())]
        trace = trace_on_cpu(
            partial(outputs, model, inputs),
            known,
        )
        most = max(most, trace.peak, trace.kept + loss)
    direct, cached = made.strategies
    assert direct.activations == pytest.approx(most, rel=0.1)
    assert cached.activations < direct.activations
    assert direct.total < cached.total + direct.activations


def test_the_verdict_and_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = planned(batches=1)
    direct, cached = roomy.strategies
    assert (direct.fits, cached.fits, roomy.strategy) == (True, True, "direct")
    held = sum(part.bytes for part in roomy.memory[:4])
    assert direct.total > held

    def small(count: float) -> Plan:
        real = specs.local
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(specs, "local", lambda ranks, precision: replace(real(ranks, precision), memory=count))
            return planned(batches=1)

    between = small((direct.total + cached.total) / 2)
    assert ([s.fits for s in between.strategies], between.strategy) == ([False, True], "cached")
    nothing = small(held)
    assert not any(s.fits for s in nothing.strategies)
    assert nothing.largest_chunk.tokens == 0


def test_a_gpu_that_is_not_here() -> None:
    made = planned("engine.precision=auto", "engine.token_budget=auto", device="H200", batches=1)
    assert (made.device.name, made.device.here, made.precision, made.token_budget) == ("h200", False, "bf16", 16384)
    assert made.device.peak_flops == specs.named("h200").bf16
    assert made.device.peak_measured is False
    assert (made.speed.measured, made.speed.loss_seconds) == (None, None)
    assert made.speed.realistic is not None
    assert made.speed.seconds == pytest.approx(made.speed.steps * made.speed.tokens_per_step / made.speed.realistic)
    memory = {part.name: part.bytes for part in made.memory}
    assert (made.zero_stage, memory["weights"]) == (0, 4 * made.parameters.total)
    half = planned("engine.precision=bf16-weights", device="h200", batches=1)
    memory = {part.name: part.bytes for part in half.memory}
    assert half.zero_stage == 1, "weights in half precision need masters"
    assert memory["weights"] == 2 * half.parameters.total
    assert memory["communication buffers"] == 2 * 2 * (half.parameters.trainable + half.parameters.trainable % 2)
    assert half.device.peak_flops == made.device.peak_flops


def test_stages_and_ranks() -> None:
    alone = planned(batches=1, zero_stage=0)
    shared = planned(batches=1, zero_stage=3, ranks=2)
    count = alone.parameters.trainable
    by_name = {part.name: part.bytes for part in shared.memory}
    assert (alone.zero_stage, shared.zero_stage, shared.ranks) == (0, 3, 2)
    assert by_name["weights"] == 4 * shared.parameters.total / 2
    assert by_name["Adam moments"] == 8 * count / 2
    assert shared.data.rows == 12, "per_device_train_batch_size counts per rank"
    assert shared.speed.ceiling is not None
    assert shared.device.memory == pytest.approx(alone.device.memory / 2, rel=0.3)


def test_messages() -> None:
    with pytest.raises(ConfigError, match=r"^--device 'h300': did you mean 'h[12]00'\?; without --device it is"):
        planned(device="h300")
    with pytest.raises(ConfigError) as error:
        planned("engine.precision=bf16", device="t4")
    assert str(error.value) == (
        "engine.precision: 'bf16' is nothing that t4 multiplies: use fp16 or fp32, or plan for another --device"
    )
    with pytest.raises(ConfigError) as error:
        planned("engine.precision=fp16", device="cpu")
    assert str(error.value) == (
        "engine.precision: 'fp16' needs CUDA: use bf16 or fp32 on this machine, or name a --device"
    )
    with pytest.raises(ConfigError, match="batch 0 has 1 rows for 3 ranks"):
        planned("sampler.batch_size=1", ranks=3)


def test_fp16_is_planned_for_gpus() -> None:
    made = planned("engine.precision=fp16", device="t4", batches=1)
    assert (made.precision, made.device.peak_flops) == ("fp16", 65e12)


def test_notes_say_what_was_extrapolated() -> None:
    assert planned(batches=1).notes == ()
    (note,) = planned("engine.compile=true", batches=1).notes
    assert note.startswith("engine.compile is not part of the plan")


class Quadratic:
    """A loss that keeps B×P and nothing else of note."""

    def __call__(self, batch: Any, targets: Any) -> Any:
        context = BuildContext(registry=Registry(), announce=lambda line: None)
        return InfoNCEConfig(temperature=0.05).build(context)(batch, targets)


def test_the_loss_of_a_batch() -> None:
    model = TinyModel(vocabulary=100_003)
    examples = [Example(n, f"query {n}", (f"passage number {n}", f"negative {n}")) for n in range(40)]
    encoded = model.tokenize(["one two", "three four five"], "query", [None, None])
    with torch.no_grad():
        sample = model(**model.collate(encoded))
    found = LossProbe(Quadratic(), model, sample, 5, 1, "cpu").measure(examples, deduplicate=True)
    assert found.measured_rows == 40
    assert found.peak > 0
    assert found.seconds > 0
    # 120 texts: dense of 16, one lexical weight and one token vector of 16 per word, and their gradients.
    words = sum(len(t.split()) for e in examples for t in (e.query, *e.passages))
    assert found.embeddings == pytest.approx(2 * 4 * (120 * 16 + words + 16 * words), rel=0.05)


def test_synthetic_embeddings_are_embeddings() -> None:
    model = TinyModel()
    encoded = model.tokenize(["a b c d", "e f"], "passage", [None, None])
    with torch.no_grad():
        sample = model(**model.collate(encoded))
    made = synthetic(sample, 6, [4, 1, 9])
    assert isinstance(made, Embeddings)
    assert made.dense_ND is not None
    assert made.sparse is not None
    assert made.multi is not None
    assert made.dense_ND.shape == (3, 16)
    assert made.dense_ND.norm(dim=-1) == pytest.approx(torch.ones(3), abs=1e-5)
    assert made.multi.offsets_N1.tolist() == [0, 4, 5, 14]
    assert made.sparse.offsets_N1.tolist() == [0, 4, 5, 14]
    for start, stop in ((0, 4), (4, 5), (5, 14)):
        ids = made.sparse.ids_K[start:stop].tolist()
        assert len(set(ids)) == len(ids)


def test_growth_with_the_rows() -> None:
    def bytes_of(rows: int) -> float:
        return 3.0 * rows + 0.25 * rows**2

    assert _grown([(32, bytes_of(32)), (64, bytes_of(64))], 512) == pytest.approx(bytes_of(512))
    assert _grown([(32, 96.0), (64, 192.0)], 512) == pytest.approx(3 * 512)
    assert _grown([(32, 5.0), (64, 7.0)], 64) == 7.0
    assert _grown([(32, 5.0)], 64) == 20.0
    assert _grown([(32, 10.0), (64, 10.0)], 128) == pytest.approx(20), "constant: not less than in proportion"
