"""Losses added up: weights, shares of the rows, scales that survive a resume."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from embed_core.config.component import LossConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.losses.config import InfoNCEConfig
from embed_core.testing import build, random_batch
from embed_core.testing.batches import leaves
from embed_core.types import Batch, Targets, TeacherVectors
from embed_distill.losses import config as configs
from embed_mrl.config import MatryoshkaConfig

CONTEXT = BuildContext(registry=Registry(), announce=lambda line: None)
TERMS: dict[str, tuple[LossConfig, float]] = {
    "nce": (InfoNCEConfig(temperature=0.1), 0.8),
    "mse": (configs.TeacherMSEConfig(), 0.2),
    "spread": (configs.SpreadOutConfig(mean_weight=1.0), 0.5),
}


def summed(auto_scale: bool = False, **changed: float) -> configs.WeightedSumConfig:
    terms = {name: configs.TermConfig(loss=loss, weight=changed.get(name, w)) for name, (loss, w) in TERMS.items()}
    return configs.WeightedSumConfig(terms=terms, auto_scale=auto_scale)


def taught(seed: int = 0, rows: int = 7) -> tuple[Batch, Targets]:
    batch, targets = random_batch(rows, dtype=torch.float64, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    counts = (rows, len(targets.passage_ids_P))
    vectors = [normalize(torch.randn(count, 16, generator=generator).double(), dim=-1) for count in counts]
    return batch, targets._replace(teacher=TeacherVectors(*vectors))


def gradient(value: Tensor, batch: Batch) -> Tensor:
    found = torch.autograd.grad(value, list(leaves(batch).values()), retain_graph=True)
    return torch.cat([one.flatten() for one in found])


def test_it_is_the_weighted_sum() -> None:
    batch, targets = taught()
    found = summed().build(CONTEXT)(batch, targets)
    parts = {name: loss.build(CONTEXT)(batch, targets).loss for name, (loss, _) in TERMS.items()}
    wanted = sum(TERMS[name][1] * value for name, value in parts.items())
    assert isinstance(wanted, Tensor)
    assert torch.allclose(found.loss, wanted)
    assert torch.allclose(gradient(found.loss, batch), gradient(wanted, batch))
    for name, value in parts.items():
        assert float(found.metrics[name]) == pytest.approx(float(value.detach()))


def test_metrics_of_the_terms_keep_their_names_where_these_are_unique() -> None:
    batch, targets = taught()
    terms = {"a": InfoNCEConfig(), "cosine": InfoNCEConfig(temperature=0.5), "mse": configs.TeacherMSEConfig()}
    config = configs.WeightedSumConfig(terms={n: configs.TermConfig(loss=c) for n, c in terms.items()})
    found = config.build(CONTEXT)(batch, targets).metrics
    # `cosine` is a term here, so the metric of that name belongs to `mse`.
    assert set(found) == {
        "a",
        "cosine",
        "mse",
        "a.accuracy",
        "cosine.accuracy",
        "a.masked",
        "cosine.masked",
        "mse.cosine",
    }
    assert "accuracy" in summed().build(CONTEXT)(batch, targets).metrics


def test_a_term_without_weight_is_not_computed() -> None:
    batch, targets = taught()
    loss = summed(mse=0.0).build(CONTEXT)
    found = loss(batch, targets._replace(teacher=None))
    assert set(loss.names) == {"nce", "spread"}
    assert "mse" not in found.metrics


@pytest.mark.parametrize("auto_scale", [False, True])
def test_the_shares_of_the_rows_add_up(auto_scale: bool) -> None:
    """`spread` cannot share: computed whole by each of three ranks, it is counted once; one rank has no rows."""
    batch, targets = taught()
    whole = summed(auto_scale).build(CONTEXT)(batch, targets)
    ranks = [summed(auto_scale).build(CONTEXT) for _ in range(3)]
    parts = [
        loss(batch, targets._replace(own_rows=rows)) for loss, rows in zip(ranks, ((0, 2), (2, 2), (2, 7)), strict=True)
    ]
    assert all(loss.shares_rows for loss in ranks)
    total = torch.stack([part.loss for part in parts]).sum()
    assert torch.allclose(total, whole.loss)
    assert torch.allclose(gradient(total, batch), gradient(whole.loss, batch))
    for name, value in whole.metrics.items():
        assert sum(float(part.metrics[name]) for part in parts) == pytest.approx(float(value)), name
    for loss in ranks[1:]:
        assert torch.equal(loss.scale_bits, ranks[0].scale_bits)


def test_it_shares_rows_where_a_term_does() -> None:
    spread = configs.TermConfig(loss=configs.SpreadOutConfig())
    assert not configs.WeightedSumConfig(terms={"spread": spread}).build(CONTEXT).shares_rows
    assert summed().build(CONTEXT).shares_rows


def test_scaled_terms_start_with_gradients_as_long_as_their_weights() -> None:
    batch, targets = taught()
    loss = summed(auto_scale=True).build(CONTEXT)
    loss(batch, targets)
    for (config, _), scale in zip(TERMS.values(), loss.scales.tolist(), strict=True):
        value = config.build(CONTEXT)(batch, targets).loss
        assert scale * float(gradient(value, batch).norm()) == pytest.approx(1)
    scales = loss.scales.clone()
    other, other_targets = taught(seed=1)
    again = loss(other, other_targets)
    assert torch.equal(loss.scales, scales), "fixed from the first batch on"
    parts = [config.build(CONTEXT)(other, other_targets).loss for config, _ in TERMS.values()]
    wanted = sum(w * a * part for (_, w), a, part in zip(TERMS.values(), scales.tolist(), parts, strict=True))
    assert torch.allclose(again.loss, wanted)


def test_a_resume_goes_on_with_the_scales_whatever_the_precision() -> None:
    batch, targets = taught()
    loss = summed(auto_scale=True).build(CONTEXT)
    loss(batch, targets)
    resumed = summed(auto_scale=True).build(CONTEXT)
    resumed.load_state_dict(loss.state_dict())
    for cast in (copy.deepcopy(resumed), resumed.bfloat16()):
        other, other_targets = taught(seed=1)
        assert torch.equal(cast(other, other_targets).loss, loss(other, other_targets).loss)
        assert torch.equal(cast.scales, loss.scales)
    fresh = summed(auto_scale=True).build(CONTEXT)
    fresh(*taught(seed=1))
    assert not torch.equal(fresh.scales, loss.scales)


def test_a_term_without_a_gradient_keeps_its_scale() -> None:
    """One query and one passage have no other text to part from."""
    batch, targets = taught(rows=1)
    batch = Batch(batch.query, batch.passage._replace(dense_ND=batch.passage.dense_ND[:1].detach().requires_grad_()))  # type: ignore[index]
    assert targets.teacher is not None
    targets = targets._replace(
        groups_B1=torch.tensor([0, 1]), passage_ids_P=targets.passage_ids_P[:1],
        passage_keys_P=targets.passage_keys_P[:1],
        teacher=TeacherVectors(targets.teacher.query_BW, targets.teacher.passage_PW[:1]),
    )  # fmt: skip
    loss = summed(auto_scale=True).build(CONTEXT)
    assert bool(torch.isfinite(loss(batch, targets).loss))
    assert loss.scales[list(loss.names).index("spread")] == 1
    assert loss.scales[list(loss.names).index("mse")] != 1


def test_the_steps_gradient_is_not_measured_again() -> None:
    """Measuring leaves no gradient behind, and needs none to be on."""
    batch, targets = taught()
    loss = summed(auto_scale=True).build(CONTEXT)
    with torch.no_grad():
        loss(batch, targets)
    assert all(value.grad is None for value in leaves(batch).values())
    other = summed(auto_scale=True).build(CONTEXT)
    other(batch, targets)
    assert torch.equal(other.scales, loss.scales)


def test_under_matryoshka_the_teacher_is_cut_too() -> None:
    batch, targets = taught()
    first = configs.WeightedSumConfig(
        terms={"mse": configs.TermConfig(loss=configs.TeacherMSEConfig(teacher_dims="first"), weight=2.0)}
    )
    found = MatryoshkaConfig(inner=first, dims=(16, 4)).build(CONTEXT)(batch, targets)
    assert targets.teacher is not None
    wanted: Any = 0
    for dim in (16, 4):
        pairs = [
            (normalize(side.dense_ND[:, :dim], dim=-1), normalize(taught_by[:, :dim], dim=-1))  # type: ignore[index]
            for side, taught_by in zip(batch, targets.teacher, strict=True)
        ]
        texts = torch.cat([(s - t).pow(2).mean(-1) for s, t in pairs])
        wanted = wanted + 2 * texts.mean()
    assert torch.allclose(found.loss, wanted)
    assert torch.allclose(gradient(found.loss, batch), gradient(wanted, batch))


def test_the_kinds_are_what_a_config_file_names(embed_registry: Any) -> None:
    registry = embed_registry("distill")
    options = {
        "kind": "weighted-sum",
        "terms": {
            "infonce": {"loss": {"kind": "infonce", "temperature": 0.02}, "weight": 0.8},
            "mse": {"loss": {"kind": "teacher-mse"}, "weight": 0.2},
        },
    }
    loss = build(registry, "loss", options, CONTEXT)
    assert bool(torch.isfinite(loss(*taught()).loss))
    kinds = set(registry.kinds("loss"))
    assert kinds >= {
        "teacher-mse", "teacher-cosine", "teacher-l2", "teacher-similarity", "teacher-kl", "margin-mse", "spread-out",
    }  # fmt: skip
