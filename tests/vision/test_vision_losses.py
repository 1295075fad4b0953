"""The losses against the peers' own code and against loops over pairs in float64; value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError
from embed_core.losses.config import MaskConfig
from embed_core.testing import check_loss, random_batch
from embed_core.testing.batches import leaves
from embed_core.types import Batch, Targets
from embed_vision.losses.config import ClipLossConfig, CoSENTLossConfig, SiglipLossConfig, TripletLossConfig

torch.set_num_threads(1)
TOLERANCE = 1e-5
UNMASKED = MaskConfig(same_text=False, same_id=False)


def built(config: Any, model: Any = None) -> Any:
    return config.build(BuildContext(Registry(), model=model))


def gradients(loss: Any, batch: Batch, targets: Targets) -> tuple[Tensor, list[Tensor]]:
    """The value, and its gradient for queries, passages and the loss's own parameters."""
    output = loss(batch, targets)
    wanted = [*leaves(batch).values(), *loss.parameters()]
    found = torch.autograd.grad(output.loss, wanted)
    return output.loss.detach(), [g.squeeze(0) if g.shape == (1,) else g for g in found]


def same(mine: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(mine[0], theirs[0].to(mine[0]), rtol=TOLERANCE, atol=TOLERANCE)
    assert len(mine[1]) == len(theirs[1])
    for a, b in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b.to(a), rtol=TOLERANCE, atol=TOLERANCE)


def tiny_clip(kind: str) -> Any:
    """A random CLIPModel or SiglipModel of a few thousand weights, without dropout."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 12}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(3)
    if kind == "clip":
        ends = {"eos_token_id": 59, "bos_token_id": 58}
        return CLIPModel(CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=32)).eval()
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_parity_with_the_model_s_own_loss(kind: str) -> None:
    """Texts and pictures through the peer's forward with ``return_loss``: the same value, and the same gradient of
    both sides' vectors and of the scale."""
    model = tiny_clip(kind)
    rows = 7
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 57, (rows, 12), generator=generator)
    ids[:, -1] = 59
    pixels = torch.randn(rows, 3, 16, 16, generator=generator)
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: Any, arguments: Any, result: Any) -> None:
            vectors = result if isinstance(result, Tensor) else result.pooler_output
            vectors.retain_grad()
            kept[name] = vectors

        return hook

    text, vision = (
        (model.text_projection, model.visual_projection) if kind == "clip" else (model.text_model, model.vision_model)
    )
    text.register_forward_hook(keep("text"))
    vision.register_forward_hook(keep("image"))
    theirs = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), return_loss=True)
    theirs.loss.backward()

    raw = [kept[name].detach().clone().requires_grad_() for name in ("text", "image")]
    batch, targets = random_batch(rows, negatives=(0,), width=32, repeats=False)
    query, passage = (nn.functional.normalize(v, dim=-1) for v in raw)
    batch = Batch(batch.query._replace(dense_ND=query), batch.passage._replace(dense_ND=passage))
    loss = built((ClipLossConfig if kind == "clip" else SiglipLossConfig)(), model)
    output = loss(batch, targets)
    output.loss.backward()
    torch.testing.assert_close(output.loss, theirs.loss, rtol=TOLERANCE, atol=TOLERANCE)
    assert kept["text"].grad is not None
    for mine, name in zip(raw, ("text", "image"), strict=True):
        torch.testing.assert_close(mine.grad, kept[name].grad, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(loss.logit_scale.grad, model.logit_scale.grad.reshape(1), rtol=TOLERANCE, atol=1e-6)
    if kind == "siglip":
        torch.testing.assert_close(loss.logit_bias.grad, model.logit_bias.grad.reshape(1), rtol=TOLERANCE, atol=1e-6)


def peer_distance(name: str) -> Any:
    from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric

    return getattr(TripletDistanceMetric, name.upper())


@pytest.mark.parametrize(
    ("distance", "margin"), [("euclidean", 5.0), ("euclidean", 0.1), ("cosine", 0.5), ("manhattan", 1.0)]
)
def test_parity_with_triplet_loss(distance: Any, margin: float) -> None:
    from sentence_transformers.sentence_transformer.losses import TripletLoss

    batch, targets = random_batch(8, negatives=(1,), repeats=False)
    mine = gradients(built(TripletLossConfig(distance=distance, margin=margin, mask=UNMASKED)), batch, targets)
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    peer: Any = TripletLoss(None, peer_distance(distance), margin)
    value = peer.compute_loss_from_embeddings([query, passage[0::2], passage[1::2]], None)
    same(mine, (value.detach(), list(torch.autograd.grad(value, [query, passage]))))


def test_parity_with_cosent_loss() -> None:
    """(text, text, score) rows: one scored passage each, some scores equal."""
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    batch, targets = random_batch(9, negatives=(0,), repeats=False)
    labels = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 1.0, 0.9, 0.3, 0.2])
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    peer: Any = CoSENTLoss(None)
    value = peer.compute_loss_from_embeddings([query, passage], labels)
    mine = gradients(built(CoSENTLossConfig()), batch, targets._replace(scores_P=labels))
    same(mine, (value.detach(), list(torch.autograd.grad(value, [query, passage]))))


def test_cosent_without_scores_against_a_loop() -> None:
    """Positives are 1, hard negatives 0; without those, the other rows' passages, known positives left out."""
    for negatives in ((2, 0, 1), (0,)):
        batch, targets = random_batch(6, negatives=negatives, dtype=torch.float64)
        query, passage = batch.query.dense_ND, batch.passage.dense_ND
        assert query is not None
        assert passage is not None
        groups = targets.groups_B1.tolist()
        owner = [row for row in range(6) for _ in range(groups[row], groups[row + 1])]
        high = [(b, groups[b]) for b in range(6)]
        if negatives == (0,):
            low = [(b, p) for b in range(6) for p in range(6) if targets.passage_ids_P[p] != targets.passage_ids_P[b]]
        else:
            low = [(owner[p], p) for p in range(len(owner)) if p not in groups]
        cosine = nn.functional.normalize(query, dim=-1) @ nn.functional.normalize(passage, dim=-1).T
        terms = [20 * (cosine[j] - cosine[i]) for i in high for j in low]
        value = torch.log1p(torch.stack(terms).exp().sum())
        mine = gradients(built(CoSENTLossConfig()), batch, targets)
        same(mine, (value.detach(), list(torch.autograd.grad(value, [query, passage]))))


def test_clip_with_hard_negatives_against_a_loop() -> None:
    batch, targets = random_batch(5, negatives=(2, 0, 1), dtype=torch.float64)
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    loss = built(ClipLossConfig(temperature=0.1))
    scale = torch.tensor(math.log(10.0), dtype=torch.float64, requires_grad=True)
    logits, first, ids = scale.exp() * query @ passage.T, targets.positive_columns_B.tolist(), targets.passage_ids_P
    total = torch.zeros((), dtype=torch.float64)
    for b, own in enumerate(first):
        rivals = [p for p in range(len(ids)) if p == own or ids[p] != ids[own]]
        total = total + torch.logsumexp(logits[b, rivals], 0) - logits[b, own]
        askers = [q for q in range(5) if q == b or ids[first[q]] != ids[own]]
        total = total + torch.logsumexp(logits[askers, own], 0) - logits[b, own]
    value = total / 10
    same(gradients(loss, batch, targets), (value.detach(), list(torch.autograd.grad(value, [query, passage, scale]))))


def test_siglip_with_hard_negatives_against_a_loop() -> None:
    batch, targets = random_batch(5, negatives=(2, 0, 1), dtype=torch.float64)
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    loss = built(SiglipLossConfig(scale=3.0, bias=-2.0))
    scale = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    logits, first, ids = (
        scale.exp() * query @ passage.T + bias,
        targets.positive_columns_B.tolist(),
        targets.passage_ids_P,
    )
    total = torch.zeros((), dtype=torch.float64)
    for b, own in enumerate(first):
        for p in range(len(ids)):
            if p == own:
                total = total + torch.log1p(torch.exp(-logits[b, p]))
            elif ids[p] != ids[own]:
                total = total + torch.log1p(torch.exp(logits[b, p]))
    value = total / 5
    wanted = [query, passage, scale, bias]
    same(gradients(loss, batch, targets), (value.detach(), list(torch.autograd.grad(value, wanted))))


@pytest.mark.parametrize("negatives", ["all", "hardest"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean", "manhattan"])
def test_triplet_over_ragged_groups_against_a_loop(distance: Any, negatives: Any) -> None:
    batch, targets = random_batch(7, negatives=(2, 0, 3), dtype=torch.float64)
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    groups, ids = targets.groups_B1.tolist(), targets.passage_ids_P

    def far(b: int, p: int) -> Tensor:
        if distance == "cosine":
            return 1 - nn.functional.cosine_similarity(query[b], passage[p], dim=0)
        return (query[b] - passage[p]).abs().sum() if distance == "manhattan" else (query[b] - passage[p]).norm()

    value = torch.zeros((), dtype=torch.float64)
    for b in range(7):
        own, rivals = groups[b], list(range(groups[b] + 1, groups[b + 1]))
        if not rivals:
            rivals = [p for p in range(len(ids)) if ids[p] != ids[own]]
            rivals = [min(rivals, key=lambda p: far(b, p).item())]
        elif negatives == "hardest":
            rivals = [min(rivals, key=lambda p: far(b, p).item())]
        terms = [torch.relu(far(b, own) - far(b, p) + 0.5) for p in rivals]
        value = value + torch.stack(terms).mean() / 7
    config = TripletLossConfig(distance=distance, negatives=negatives, margin=0.5)
    same(
        gradients(built(config), batch, targets),
        (value.detach(), list(torch.autograd.grad(value, [query, passage]))),
    )


CONFIGS = [
    ClipLossConfig(),
    ClipLossConfig(mask=MaskConfig(margin=0.1)),
    SiglipLossConfig(),
    SiglipLossConfig(mask=MaskConfig(margin=0.1)),
    TripletLossConfig(),
    TripletLossConfig(distance="euclidean", negatives="hardest"),
    TripletLossConfig(in_batch=False),
    CoSENTLossConfig(),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{CONFIGS.index(c)}")
def test_the_contract(config: Any) -> None:
    check_loss(built(config))


def test_the_contract_of_cosent_with_scores() -> None:
    check_loss(built(CoSENTLossConfig()), scores=True)


@pytest.mark.parametrize(
    "config", [ClipLossConfig(), SiglipLossConfig(), TripletLossConfig()], ids=lambda c: str(c.kind)
)
def test_the_ranks_parts_add_up(config: Any) -> None:
    """As the engine shares rows: the parts' sum is the whole, gradient and metrics included."""
    loss = built(config)
    batch, targets = random_batch(7)
    whole = gradients(loss, batch, targets)
    bounds = ((0, 3), (3, 4), (4, 7))
    parts = [gradients(loss, batch, targets._replace(own_rows=rows)) for rows in bounds]
    total = (
        torch.stack([part[0] for part in parts]).sum(),
        [torch.stack(g).sum(0) for g in zip(*(p[1] for p in parts), strict=True)],
    )
    same(total, whole)
    metrics = [loss(batch, targets._replace(own_rows=rows)).metrics for rows in bounds]
    for name, value in loss(batch, targets).metrics.items():
        torch.testing.assert_close(sum(m[name] for m in metrics), value, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "config", [ClipLossConfig(), SiglipLossConfig(), TripletLossConfig()], ids=lambda c: str(c.kind)
)
def test_in_blocks_it_is_the_same(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables larger than a tile are computed in blocks of rows."""
    import embed_core.losses.tiled_cross_entropy as search
    from embed_vision.losses import siglip

    loss = built(config)
    batch, targets = random_batch(9)
    whole = gradients(loss, batch, targets)
    monkeypatch.setattr(search, "TILE_BYTES", 256)
    monkeypatch.setattr(siglip, "TILE_BYTES", 256)
    same(gradients(loss, batch, targets), whole)


def test_a_batch_without_any_negative_costs_nothing() -> None:
    batch, targets = random_batch(4, negatives=(0,))
    value, given = gradients(built(TripletLossConfig(in_batch=False)), batch, targets)
    assert float(value) == 0
    assert not any(bool(g.any()) for g in given)
    value, given = gradients(built(CoSENTLossConfig(in_batch=False)), batch, targets)
    assert float(value) == 0
    assert not any(bool(g.any()) for g in given)


def test_equal_vectors_have_a_finite_gradient() -> None:
    """A query on top of its positive: the root of a square has no gradient there."""
    batch, targets = random_batch(3, negatives=(1,))
    query = batch.query.dense_ND
    assert query is not None
    passage = torch.stack([query.detach()[0], *batch.passage.dense_ND.detach()[1:]]).requires_grad_()  # type: ignore[union-attr]
    batch = batch._replace(passage=batch.passage._replace(dense_ND=passage))
    _, given = gradients(built(TripletLossConfig(distance="euclidean")), batch, targets)
    assert all(bool(torch.isfinite(g).all()) for g in given)


class TestTheScale:
    def test_starts_as_the_model_has_it(self) -> None:
        model = tiny_clip("siglip")
        with torch.no_grad():
            model.logit_scale.fill_(1.5)
            model.logit_bias.fill_(-3)
        wrapped = nn.ModuleDict({"inner": model})
        loss = built(SiglipLossConfig(), wrapped)
        assert (loss.logit_scale.item(), loss.logit_bias.item()) == (1.5, -3.0)
        assert built(ClipLossConfig(), wrapped).logit_scale.item() == 1.5
        assert built(SiglipLossConfig(scale=2.0, bias=0.0), wrapped).logit_bias.item() == 0.0

    def test_starts_as_in_the_papers_otherwise(self) -> None:
        assert math.isclose(built(ClipLossConfig()).logit_scale.item(), math.log(1 / 0.07), rel_tol=1e-6)
        loss = built(SiglipLossConfig())
        assert math.isclose(loss.logit_scale.item(), math.log(10), rel_tol=1e-6)
        assert loss.logit_bias.item() == -10

    def test_is_bounded_and_comes_back(self) -> None:
        """Beyond ln 100 the scale counts as 100; a gradient that leads further is none, one that leads back passes."""
        loss = built(ClipLossConfig(max_scale=20.0, temperature=0.05))
        with torch.no_grad():
            loss.logit_scale.fill_(5.0)
        batch, targets = random_batch(6, negatives=(0,), repeats=False)
        output = loss(batch, targets)
        assert math.isclose(float(output.metrics["scale"]), 20.0, rel_tol=1e-5)
        (back,) = torch.autograd.grad(output.loss, [loss.logit_scale])
        assert float(back) > 0  # random vectors: a smaller scale would cost less
        equal = batch._replace(passage=batch.query)
        (further,) = torch.autograd.grad(loss(equal, targets).loss, [loss.logit_scale])
        assert float(further) == 0

    def test_can_be_fixed(self) -> None:
        assert not any(p.requires_grad for p in built(ClipLossConfig(learnable=False)).parameters())
        assert not any(p.requires_grad for p in built(SiglipLossConfig(learnable=False)).parameters())

    def test_a_start_beyond_the_limit_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"temperature=0.001 is a scale of 1000, above max_scale=100"):
            built(ClipLossConfig(temperature=0.001))


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda c: str(c.kind))
def test_dense_vectors_are_needed(config: Any) -> None:
    batch, targets = random_batch(3, parts=("sparse",))
    with pytest.raises(ConfigError, match="dense"):
        built(config)(batch, targets)
