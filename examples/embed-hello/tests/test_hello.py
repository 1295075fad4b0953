"""The plugin, tested with nothing but the kit that embed-core ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import CheckpointError, ConfigError
from embed_core.testing import (
    build,
    check_checkpointer,
    check_loss,
    check_model,
    check_plugin,
    check_sampler,
    encode,
    random_batch,
    sample_card,
    tiny_dataset,
)
from embed_hello.checkpoint import load
from embed_hello.loss import HardestMargin
from embed_hello.recipe import PACKAGED_ROWS

LONG = "Split the pathname into a pair (drive, rest). " * 20
TEXTS = ["", "a", "Return a string.", LONG, "Zeichenkette, naïveté, 文字列"]
SMALL = {"kind": "hello", "buckets": 64, "width": 8, "dimension": 4}

Registries = Callable[..., Registry]
Contexts = Callable[..., BuildContext]


@pytest.fixture
def registry(embed_registry: Registries) -> Registry:
    return embed_registry("hello")


@pytest.fixture
def context(registry: Registry, embed_context: Contexts) -> BuildContext:
    return embed_context(registry)


def test_plugin_loads_light_and_documented() -> None:
    check_plugin("hello")


def test_model_keeps_its_promises(registry: Registry, context: BuildContext) -> None:
    model = build(registry, "model", SMALL, context)
    check_model(model, TEXTS)
    norms_N = encode(model, TEXTS).dense_ND.norm(dim=-1)
    assert torch.allclose(norms_N, torch.ones_like(norms_N))


def test_model_depends_on_the_seed_alone(registry: Registry, embed_context: Contexts) -> None:
    first = build(registry, "model", SMALL, embed_context(registry, seed=1))
    torch.rand(3)
    again, other = (build(registry, "model", SMALL, embed_context(registry, seed=seed)) for seed in (1, 2))
    assert torch.equal(first.ngrams.weight, again.ngrams.weight)
    assert not torch.equal(first.ngrams.weight, other.ngrams.weight)


def test_model_reads_so_many_characters(registry: Registry, context: BuildContext) -> None:
    model = build(registry, "model", {**SMALL, "max_characters": 5}, context)
    short, long, prompted = model.tokenize(["12345", "12345 more", "12345"], "passage", [None, None, "to: "])
    assert short.key == long.key
    assert prompted.key == model.tokenize(["to: 12345"], "passage", [None])[0].key != short.key


def test_loss_keeps_its_promises(registry: Registry, context: BuildContext) -> None:
    for options in ({}, {"margin": 1.0, "hardest": 1}, {"hardest": 1000}):
        check_loss(build(registry, "loss", {"kind": "hello", **options}, context))


@pytest.mark.parametrize("hardest", [1, 3])
def test_loss_value_and_gradient_by_loops(hardest: int) -> None:
    batch, targets = random_batch(6, dtype=torch.float64)
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    assert query_BD is not None
    assert passage_PD is not None
    rows = []
    for row in range(6):
        column = int(targets.groups_B1[row])
        positive = torch.cosine_similarity(query_BD[row], passage_PD[column], dim=0)
        hinges = []
        for other in range(len(passage_PD)):
            if targets.passage_ids_P[other] == targets.passage_ids_P[column]:
                continue
            negative = torch.cosine_similarity(query_BD[row], passage_PD[other], dim=0)
            hinges.append((0.3 - positive + negative).clamp(min=0))
        rows.append(torch.stack(sorted(hinges, key=Tensor.item, reverse=True)[:hardest]).mean())
    expected = torch.stack(rows).mean()
    output = HardestMargin(0.3, hardest)(batch, targets)
    torch.testing.assert_close(output.loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(output.loss, [query_BD, passage_PD]),
        torch.autograd.grad(expected, [query_BD, passage_PD]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    assert set(output.metrics) == {"hinge", "violations"}
    assert 0 < float(output.metrics["violations"]) <= 1


def test_known_positives_by_id_are_no_negatives() -> None:
    """Row 0 knows the document of row 1's positive as one of its own, by external id."""
    batch, targets = random_batch(2, negatives=(0,), repeats=False)
    keys_P = torch.tensor([0, 77])
    known = targets._replace(
        passage_keys_P=keys_P,
        positives_K=torch.cat([targets.positives_K[:1], torch.tensor([77]), targets.positives_K[1:]]),
        positive_offsets_B1=torch.tensor([0, 2, 3]),
    )
    loss = HardestMargin(margin=2.0, hardest=1)
    both = loss(batch, targets).loss
    cosine_BP = batch.query.dense_ND @ batch.passage.dense_ND.T  # type: ignore[operator, union-attr]
    second = (2.0 - cosine_BP[1, 1] + cosine_BP[1, 0]) / 2
    torch.testing.assert_close(loss(batch, known).loss, second)
    assert bool(both > second)


def test_sampler_keeps_its_promises(registry: Registry, embed_context: Contexts) -> None:
    def factory(dataset: Any, seed: int) -> Any:
        options = {"kind": "hello", "batch_size": 5}
        return build(registry, "sampler", options, embed_context(registry, seed=seed), dataset)

    check_sampler(factory, tiny_dataset(), batch_size=5)
    dataset = tiny_dataset()
    sampler = factory(dataset, 3)
    lengths = [[len(dataset._rows[row][0]) for row in sampler.batch(draw)] for draw in range(sampler.draws_per_epoch)]
    spread = [max(batch) - min(batch) for batch in lengths]
    assert sum(spread) / len(spread) < max(map(max, lengths)) - min(map(min, lengths))
    drawn = {row for draw in range(20 * sampler.draws_per_epoch) for row in sampler.batch(draw)}
    assert drawn == set(range(len(dataset))), "no row is left out for good"


def test_sampler_needs_a_full_batch(registry: Registry, context: BuildContext) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=99: animals has only 36 training rows: set .* to at most 36"):
        build(registry, "sampler", {"kind": "hello", "batch_size": 99}, context, tiny_dataset())


def test_checkpoint_keeps_its_promises(registry: Registry, context: BuildContext, tmp_path: Path) -> None:
    checkpointer = build(registry, "checkpoint", {"kind": "hello"}, context)
    model = build(registry, "model", SMALL, context)
    check_checkpointer(checkpointer, model, load, TEXTS, tmp_path / "export")
    card = (tmp_path / "export/README.md").read_text()
    assert "embed run --plugin sample" in card
    assert "| 8 | held-out/dense/nDCG@10 | 0.5000 |" in card
    again = build(registry, "model", {"kind": "hello", "name_or_path": str(tmp_path / "export")}, context)
    assert torch.equal(again.ngrams.weight, model.ngrams.weight)


def test_checkpoint_errors_name_the_fix(registry: Registry, context: BuildContext, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read \(FileNotFoundError\): name a directory"):
        load(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="is no model of layout 'hello-1'"):
        load(tmp_path)
    model = build(registry, "model", SMALL, context)
    build(registry, "checkpoint", {"kind": "hello"}, context).export(model, model.state_dict(), tmp_path, sample_card())
    with pytest.raises(CheckpointError, match=r"config.json: width is 8, not 9: leave model.width out"):
        build(registry, "model", {"kind": "hello", "name_or_path": str(tmp_path), "width": 9}, context)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be loaded .*: export the model again"):
        load(tmp_path)


def test_packaged_rows_are_rows() -> None:
    rows = [json.loads(line) for line in PACKAGED_ROWS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 320
    assert len({row["query"] for row in rows}) == 320
    assert all(isinstance(row["pos"], list) and len(row["pos"][0]) > 60 for row in rows)


def test_recipe_fits_the_whole_run(registry: Registry) -> None:
    """Every component of the compiled recipe validates, on any number of ranks, and its keys arrive."""
    from embed_core.config.run import RunConfig

    recipe = registry.recipe("hello")
    assert recipe is not None
    for world_size in (1, 4):
        compiled = recipe(batch_size=24, margin=0.5).compile(world_size)  # type: ignore[call-arg]
        run = RunConfig.model_validate(compiled, context={"registry": registry})
        assert run.sampler.batch_size == 24
        assert run.loss.margin == 0.5  # type: ignore[attr-defined]
    assert recipe(held_out_rows=0).compile(1)["evaluation"] == []  # type: ignore[call-arg]
    assert recipe().sanity() == {"model": {"buckets": 256}}
    assert recipe(name_or_path="somewhere").sanity() == {}  # type: ignore[call-arg]
