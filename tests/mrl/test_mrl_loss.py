"""The loss: against sentence-transformers' own, against a loop in float64, and whole against its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from embed_bge.loss_config import BGEUnifiedConfig
from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError
from embed_core.losses import tiled_cross_entropy
from embed_core.losses.config import InfoNCEConfig, MaskConfig
from embed_core.protocols import TakesOtherDense, provides
from embed_core.testing import check_loss, random_batch
from embed_core.testing.batches import leaves
from embed_core.types import Batch, Embeddings, LossOutput, Targets
from embed_mrl import prefix
from embed_mrl.config import MatryoshkaConfig
from embed_mrl.dims import halvings
from embed_mrl.loss import MatryoshkaLoss, cut

torch.set_num_threads(1)

OFF = MaskConfig(same_text=False, same_id=False)


def context(seed: int = 42) -> BuildContext:
    return BuildContext(registry=Registry(), seed=seed, announce=lambda line: None)


def build(inner: Any = None, seed: int = 42, **options: Any) -> MatryoshkaLoss:
    return MatryoshkaConfig(inner=inner or InfoNCEConfig(temperature=0.1), **options).build(context(seed))


def gradients(loss: Tensor, batch: Batch) -> dict[str, Tensor]:
    found = leaves(batch)
    given = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
    return {name: torch.zeros_like(found[name]) if g is None else g for name, g in zip(found, given, strict=True)}


def assert_same(one: tuple[Tensor, Batch], other: tuple[Tensor, Batch], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    wanted = gradients(*other)
    for name, gradient in gradients(*one).items():
        assert gradient.any(), f"{name} has no gradient: nothing is compared"
        torch.testing.assert_close(gradient, wanted[name], rtol=tolerance, atol=tolerance)


class Given(nn.Module):
    """What sentence-transformers' losses ask of a model, giving the vectors it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self) -> int:
        return self.width


@pytest.mark.parametrize("least", [0, 1000], ids=["one product", "a product for each"])
@pytest.mark.parametrize(
    ("dims", "weights", "drawn"),
    [
        ((16, 8, 4), None, None),
        ((4, 16, 8), (0.25, 1.0, 0.5), None),
        ((16, 8, 4, 2), (1.0, 2.0, 3.0, 4.0), 2),
    ],
)
def test_is_sentence_transformers_matryoshka(
    dims: tuple[int, ...], weights: tuple[float, ...] | None, drawn: int | None, least: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Over MultipleNegativesRankingLoss, with a hard negative each: value and gradient, drawn dimensions included."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss as TheirLoss
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    count = -1 if drawn is None else drawn
    batch, targets = random_batch(rows=7, negatives=(1,), repeats=False, step=5)
    # Vectors that are no unit vectors: both have to normalise the full dimension too.
    batch = Batch(*(Embeddings((3 * side.dense_ND.detach()).requires_grad_()) for side in batch))
    ours = build(InfoNCEConfig(temperature=1 / 20, mask=OFF), dims=dims, weights=weights, n_dims_per_step=count)
    monkeypatch.setattr(prefix, "LEAST_SAVED", least)
    chosen = ours._dims(16, targets.step)
    assert prefix.serves(ours.inner, batch, targets, chosen) == (least == 0)
    assert len(chosen) == (drawn or len(dims))
    descending = sorted(dims, reverse=True)
    monkeypatch.setattr("random.sample", lambda options, k: [descending.index(dim) for dim in chosen])
    model: Any = Given(16)
    theirs = TheirLoss(model, MultipleNegativesRankingLoss(model, scale=20.0), list(dims), weights, count)
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    columns = [query_BD, passage_PD[0::2], passage_PD[1::2]]
    wanted = theirs([{"vectors": column} for column in columns], torch.arange(7))
    assert_same((ours(batch, targets).loss, batch), (wanted, batch), tolerance=1e-5)


def by_hand(batch: Batch, targets: Targets, dims: Sequence[int], temperature: float) -> Tensor:
    """A loop over dimensions in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for dim in dims:
        query_BD, passage_PD = (normalize(side.dense_ND.double()[:, :dim], dim=-1) for side in batch)
        total = total + cross_entropy(query_BD @ passage_PD.T / temperature, targets.positive_columns_B)
    return total


@pytest.mark.parametrize("least", [0, 1000])
def test_is_the_loop_over_dimensions(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one product for all dimensions, and by one for each."""
    monkeypatch.setattr(prefix, "LEAST_SAVED", least)
    batch, targets = random_batch(width=32, repeats=False)
    loss = build(InfoNCEConfig(temperature=0.1, mask=OFF), dims=(8, 24))(batch, targets).loss
    assert_same((loss, batch), (by_hand(batch, targets, (32, 24, 8), 0.1).float(), batch), tolerance=2e-6)


INNER = {
    "plain": InfoNCEConfig(temperature=0.1),
    "symmetric": InfoNCEConfig(temperature=0.1, symmetric=True),
    "margin": InfoNCEConfig(temperature=0.1, mask=MaskConfig(margin=-0.2)),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("own_rows", [None, (1, 5)])
def test_one_product_for_all_dimensions_changes_nothing(
    inner: str, own_rows: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, gradient and metrics are those of the inner loss called once per dimension; also of a rank's part."""
    batch, targets = random_batch(rows=8, width=32, seed=3)
    targets = targets._replace(own_rows=own_rows)
    monkeypatch.setattr(prefix, "LEAST_SAVED", 0)
    loss = build(INNER[inner], dims=(16, 8, 5), weights=(0.5, 2.0, 1.0))
    assert prefix.serves(loss.inner, batch, targets, [32, 16, 8, 5])
    fast: LossOutput = loss(batch, targets)
    monkeypatch.setattr(prefix, "serves", lambda *_: False)
    slow: LossOutput = loss(batch, targets)
    assert_same((fast.loss, batch), (slow.loss, batch), tolerance=3e-6)
    assert fast.metrics.keys() == slow.metrics.keys()
    for name, value in fast.metrics.items():
        torch.testing.assert_close(value, slow.metrics[name], rtol=1e-6, atol=1e-6)
    assert float(fast.metrics["masked"]) > 0
    assert float(fast.metrics["loss@8"]) != pytest.approx(float(fast.metrics["loss@5"])), "the dimensions differ"


def test_the_product_is_not_shared_where_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, targets = random_batch()
    wide = halvings(1024)
    assert prefix.serves(build().inner, batch, targets, wide)
    assert not prefix.serves(build().inner, batch, targets, halvings(128)), "nothing to gain"
    assert not prefix.serves(build(InfoNCEConfig(in_batch=False)).inner, batch, targets, wide)
    assert not prefix.serves(build(BGEUnifiedConfig()).inner, batch, targets, wide)
    monkeypatch.setattr(prefix, "LEAST_SAVED", 0)
    whole = build(dims=(4,))(batch, targets).loss
    monkeypatch.setattr(tiled_cross_entropy, "TILE_BYTES", 64)
    tiled = build(dims=(4,))
    assert not prefix.serves(tiled.inner, batch, targets, wide), "the table is computed in tiles"
    assert_same((tiled(batch, targets).loss, batch), (whole, batch))


def test_cosines_of_all_dimensions_and_their_gradient() -> None:
    """In float64 against differences; a dimension that is not asked for has no gradient."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(rows, 7, generator=generator, dtype=torch.float64).requires_grad_() for rows in (3, 4)]
    found = prefix.cosines(*sides, [6, 2, 5])
    for dim, table_NP in zip((6, 2, 5), found, strict=True):
        one, other = (normalize(side[:, :dim], dim=-1) for side in sides)
        torch.testing.assert_close(table_NP, one @ other.T)
    assert torch.autograd.gradcheck(lambda *both: tuple(prefix.cosines(*both, [6, 2, 5])), sides)
    assert not torch.autograd.grad(found[0].sum(), sides[0])[0][:, 6].any()


@pytest.mark.parametrize(
    "inner",
    [InfoNCEConfig(temperature=0.1, symmetric=True), InfoNCEConfig(in_batch=False), BGEUnifiedConfig()],
    ids=str,
)
def test_keeps_what_a_loss_promises(inner: Any) -> None:
    parts = ("dense", "sparse", "multi") if inner.kind == "bge-unified" else ("dense",)
    check_loss(build(inner, dims=(8, 4), n_dims_per_step=2), parts=parts, tolerance=1e-4)


def test_parts_of_the_ranks_add_up_to_the_whole() -> None:
    """Loss, metrics and gradient of three ranks' rows; the metrics' names are the same on all."""
    batch, targets = random_batch(rows=9, width=32)
    loss = build(InfoNCEConfig(temperature=0.1, symmetric=True), dims=(16, 4))
    assert loss.shares_rows
    whole = loss(batch, targets)
    parts = [loss(batch, targets._replace(own_rows=rows)) for rows in ((0, 4), (4, 5), (5, 9))]
    assert_same((torch.stack([part.loss for part in parts]).sum(), batch), (whole.loss, batch))
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value, rtol=1e-5, atol=1e-6)


def test_shares_rows_if_the_inner_loss_does() -> None:
    assert build().shares_rows
    assert not build(BGEUnifiedConfig()).shares_rows


def test_dimensions_of_a_step_are_drawn_by_seed_and_step() -> None:
    dims = (128, 64, 32, 16, 8)
    one, other = build(dims=dims, n_dims_per_step=3), build(dims=dims, n_dims_per_step=3)
    drawn = [tuple(one._dims(128, step)) for step in range(60)]
    assert drawn[::-1] == [tuple(other._dims(128, step)) for step in range(59, -1, -1)], "in any order of the steps"
    assert all(len(step) == 3 and step[0] == 128 for step in drawn)
    assert len(set(drawn)) == 6, "all pairs of the four others occur"
    assert drawn != [tuple(build(seed=7, dims=dims, n_dims_per_step=3)._dims(128, step)) for step in range(60)]
    assert one._dims(128, 0) != list(dims)
    assert build(dims=dims, n_dims_per_step=9)._dims(128, 0) == list(dims)
    assert build(dims=dims, n_dims_per_step=1)._dims(128, 0) == [128]


def test_the_full_dimension_is_always_trained() -> None:
    batch, targets = random_batch(width=32)
    output = build(dims=(8, 16), weights=(2.0, 3.0))(batch, targets)
    parts = {name: float(value) for name, value in output.metrics.items()}
    assert float(output.loss.detach()) == pytest.approx(parts["loss"] + 2 * parts["loss@8"] + 3 * parts["loss@16"])
    assert set(output.metrics) == {"loss", "accuracy", "masked", "loss@16", "accuracy@16", "loss@8", "accuracy@8"}
    weighted = build(dims=(8, 32), weights=(2.0, 5.0))(batch, targets)
    assert float(weighted.loss.detach()) == pytest.approx(5 * parts["loss"] + 2 * parts["loss@8"])


def test_without_dims_they_are_halved() -> None:
    assert halvings(768) == (768, 384, 192, 96, 48)
    assert halvings(128) == (128, 64, 32, 16)
    assert halvings(20) == (20,)
    batch, targets = random_batch(width=64)
    assert {"loss@32", "loss@16"} < build()(batch, targets).metrics.keys()


def test_over_bge_unified_only_the_dense_head_is_cut() -> None:
    """The sum of the loss over the dimensions, less the repeats of the terms without dense vectors."""
    config = BGEUnifiedConfig(temperature=0.1, mask=OFF)
    batch, targets = random_batch(parts=("dense", "sparse", "multi"))
    inner = config.build(context())
    weights = config.weights
    total = torch.zeros(())
    for dim in (16, 8, 4):
        output = inner(Batch(*(cut(side, dim) for side in batch)), targets)
        total = total + output.loss
        if dim < 16:
            alone = config.model_copy(update={"weights": weights.model_copy(update={"dense": 0.0, "ensemble": 0.0})})
            total = total - alone.build(context())(batch, targets).loss
    loss = build(config, dims=(8, 4))
    assert provides(loss.inner, TakesOtherDense)
    found = loss(batch, targets)
    assert_same((found.loss, batch), (total, batch))
    assert {"sparse", "multi", "ensemble", "dense", "loss@8", "loss@4"} <= found.metrics.keys()


def test_bge_s_self_distillation_teaches_every_dimension_by_the_whole_ensemble() -> None:
    """By hand: the dense and ensemble terms of the cut vectors, and the dense vectors' divergence from the teacher."""
    config = BGEUnifiedConfig(temperature=0.5, mask=OFF, use_self_distill=True, self_distill_start_step=0)
    batch, targets = random_batch(parts=("dense", "sparse", "multi"), step=1)
    inner = config.build(context())
    full = Batch(*(cut(side, 16) for side in batch))
    whole, scores = inner(full, targets).loss, inner._logits(full)
    query_BD, passage_PD = (side.dense_ND for side in Batch(*(cut(side, 8) for side in batch)))
    dense_BP = query_BD @ passage_PD.T / 0.5
    ensemble_BP = scores["ensemble"] - scores["dense"] + dense_BP
    teacher_BP = scores["ensemble"].detach().softmax(-1)
    own_B = targets.positive_columns_B
    terms = (cross_entropy(dense_BP, own_B) + cross_entropy(ensemble_BP, own_B)) / 4
    distilled = -(teacher_BP * dense_BP.log_softmax(-1)).sum(-1).mean() / 3
    expected = whole + 3 * (terms + distilled) / 2
    found = build(config, dims=(8,), weights=(3.0,))(batch, targets).loss
    assert_same((found, batch), (expected, batch))


@pytest.mark.parametrize(
    "options",
    [
        {"weights": {"dense": 0.0, "ensemble": 0.0}},
        {"ensemble": {"dense": 0.0}},
        {"unified_finetuning": False},
        {"use_self_distill": True, "self_distill_weights": {"dense": 0.0}},
    ],
    ids=str,
)
def test_bge_terms_of_weight_zero_are_not_trained_at_smaller_dimensions(options: dict[str, Any]) -> None:
    config = BGEUnifiedConfig.model_validate({"temperature": 0.1, "mask": OFF, **options})
    batch, targets = random_batch(parts=("dense", "sparse", "multi"))
    found = build(config, dims=(8,))(batch, targets)
    rest = float((found.loss - config.build(context())(batch, targets).loss).detach())
    assert rest == pytest.approx(float(found.metrics["loss@8"]), abs=1e-5)
    if "weights" in options:
        assert rest == 0
    else:
        assert rest > 0


class BothKinds(nn.Module):
    """A third party's loss over dense and lexical values that knows nothing of Matryoshka."""

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        dense, lexical = (
            sum(value.square().sum() for value in found)
            for found in (
                [side.dense_ND[:, ::2] for side in batch],
                [side.sparse.weights_K for side in batch],
            )
        )
        return LossOutput(dense + lexical, {})


def test_another_loss_gets_the_other_kinds_with_one_gradient() -> None:
    batch, targets = random_batch(parts=("dense", "sparse"))
    loss = MatryoshkaLoss(MatryoshkaConfig(inner=InfoNCEConfig(), dims=(8, 4)), BothKinds(), 0)
    found = gradients(loss(batch, targets).loss, batch)
    torch.testing.assert_close(found["query.sparse"], 2 * batch.query.sparse.weights_K.detach())
    assert found["query.dense"].any()


def test_a_parameter_of_the_inner_loss_is_trained_and_saved() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(1, 1, bias=False)

        def forward(self, batch: Batch, targets: Targets) -> LossOutput:
            value = batch.query.dense_ND[:, 0].mean()
            return LossOutput(self.scale(value.view(1)).squeeze(), {})

    config = MatryoshkaConfig(inner=InfoNCEConfig(), dims=(4,))
    loss = MatryoshkaLoss(config, Scaled(), 0)
    loss(*random_batch()).loss.backward()
    assert float(loss.inner.scale.weight.grad.abs()) > 0
    fresh = MatryoshkaLoss(config, Scaled(), 0)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.inner.scale.weight, loss.inner.scale.weight)
    assert list(loss.state_dict()) == ["inner.scale.weight"]


def test_errors_say_what_to_do() -> None:
    batch, targets = random_batch(width=16)
    with pytest.raises(ConfigError) as wide:
        build(dims=(768, 8))(batch, targets)
    assert str(wide.value) == "loss.dims: 768 is more than the 16 dimensions of the model's vectors: use [8]"
    with pytest.raises(ConfigError, match=r"use \[16\]"):
        build(dims=(768, 384))(batch, targets)
    with pytest.raises(ConfigError, match="'dense' scores are asked for, but the model gives only: sparse"):
        build()(*random_batch(parts=("sparse",)))
