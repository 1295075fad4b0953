"""Every loss against sentence-transformers' own code: over embeddings, and through a whole model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from sbert_parts import TEXTS, build, context
from torch import Tensor, nn

from embed_core.embeddings import select
from embed_core.errors import ConfigError
from embed_core.losses.config import InfoNCEConfig, MaskConfig
from embed_core.testing import check_loss, random_batch
from embed_core.testing.batches import leaves, to_dtype
from embed_core.types import Batch, Embeddings, Targets, TeacherVectors
from embed_sbert.loss import GivenEmbeddings, build_loss
from embed_sbert.loss_config import MultipleNegativesRankingConfig, SentenceTransformersLossConfig
from embed_sbert.loss_names import REFUSED, SUPPORTED

B, D = 6, 16
NO_MASK = MaskConfig(same_text=False, same_id=False)


def of(name: str, **arguments: Any) -> Any:
    """Our adapter of a loss."""
    return build_loss(SentenceTransformersLossConfig(name=name, arguments=arguments), context(model=Wide()))


class Wide(nn.Module):
    """As much of a model as a loss asks about."""

    embedding_dimension = D


def theirs(name: str, **arguments: Any) -> Any:
    from sentence_transformers.sentence_transformer import losses

    return getattr(losses, name)(model=GivenEmbeddings(D), **arguments)


def batch_of(negatives: int, *, scores: str = "", seed: int = 1) -> tuple[Batch, Targets]:
    """float64, no unit length, no text twice."""
    batch, targets = random_batch(B, negatives=(negatives,), width=D, repeats=False, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    batch = Batch(*(e._replace(dense_ND=e.dense_ND.detach() * 1.7) for e in batch))  # type: ignore[union-attr]
    count = len(targets.passage_ids_P)
    drawn = {
        "": None,
        "float": torch.rand(count, generator=generator),
        "binary": torch.arange(count) % 2,
        "class": torch.arange(count) % 3,
    }[scores]
    return to_dtype(batch, torch.float64), targets._replace(scores_P=None if drawn is None else drawn.float())


def columns(batch: Batch, negatives: int) -> list[Tensor]:
    """As sentence-transformers' collator gives them, by hand."""
    query, passage = batch.query.dense_ND, batch.passage.dense_ND
    assert query is not None
    assert passage is not None
    return [query, *(torch.stack([passage[b * (negatives + 1) + n] for b in range(B)]) for n in range(negatives + 1))]


def gradients(loss: Tensor, batch: Batch) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(leaves(batch).values()), allow_unused=True, retain_graph=True)
    return [torch.zeros(1, dtype=torch.float64) if one is None else one for one in found]


def value(loss: nn.Module, vectors: list[Tensor], labels: Tensor | None) -> Tensor:
    """Their forward; the cached ones compute value and gradient through their own caches."""
    if not hasattr(loss, "calculate_loss"):
        return loss([{"sentence_embedding": one} for one in vectors], labels)  # type: ignore[no-any-return]
    return loss.calculate_loss([list(one.split(2)) for one in vectors], labels)  # type: ignore[no-any-return]


CASES: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "mnrl": ("MultipleNegativesRankingLoss", {}, 0, ""),
    "mnrl-negatives": ("MultipleNegativesRankingLoss", {"scale": 7.0}, 2, ""),
    "mnrl-directions": (
        "MultipleNegativesRankingLoss",
        {"directions": ["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]},
        1,
        "",
    ),
    "mnrl-hardness": (
        "MultipleNegativesRankingLoss",
        {"hardness_mode": "all_negatives", "hardness_strength": 3.0},
        1,
        "",
    ),
    "mnrl-symmetric": ("MultipleNegativesSymmetricRankingLoss", {}, 0, ""),
    "cached": ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 4}, 2, ""),
    "cached-symmetric": ("CachedMultipleNegativesSymmetricRankingLoss", {"mini_batch_size": 3}, 0, ""),
    "cosent": ("CoSENTLoss", {"scale": 5.0}, 0, "float"),
    "cosent-groups": ("CoSENTLoss", {}, 2, "float"),
    "angle": ("AnglELoss", {}, 0, "float"),
    "angle-tuples": ("AnglELoss", {}, 2, ""),
    "cosine": ("CosineSimilarityLoss", {"loss_fct": "torch.nn.L1Loss"}, 0, "float"),
    "contrastive": ("ContrastiveLoss", {"distance_metric": "EUCLIDEAN", "margin": 2.0}, 0, "binary"),
    "contrastive-groups": ("ContrastiveLoss", {}, 1, ""),
    "online": ("OnlineContrastiveLoss", {"margin": 1.5}, 0, "binary"),
    "triplet": ("TripletLoss", {}, 1, ""),
    "triplet-cosine": ("TripletLoss", {"distance_metric": "COSINE", "triplet_margin": 0.4}, 1, ""),
    "margin-mse": ("MarginMSELoss", {}, 1, "float"),
    "margin-mse-groups": ("MarginMSELoss", {"similarity_fct": "pairwise_cos_sim"}, 3, "float"),
    "kl": ("DistillKLDivLoss", {"temperature": 2.0}, 2, "float"),
    "mega": ("MegaBatchMarginLoss", {"mini_batch_size": 4}, 0, ""),
    "orthogonal": ("GlobalOrthogonalRegularizationLoss", {}, 1, ""),
    "mse": ("MSELoss", {}, 1, "teacher"),
    "distill": ("EmbedDistillLoss", {"distance_metric": "l2"}, 0, "teacher"),
    "softmax": ("SoftmaxLoss", {"num_labels": 3}, 0, "class"),
    "batch-all": ("BatchAllTripletLoss", {"margin": 1.0}, 1, ""),
    "batch-hard": ("BatchHardTripletLoss", {"distance_metric": "cosine_distance", "margin": 0.5}, 1, ""),
    "batch-soft": ("BatchHardSoftMarginTripletLoss", {}, 0, ""),
    "batch-semi": ("BatchSemiHardTripletLoss", {"margin": 1.0}, 1, ""),
}


def test_every_loss_has_a_case() -> None:
    assert {name for name, *_ in CASES.values()} == set(SUPPORTED)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_over_embeddings(case: str) -> None:
    name, arguments, negatives, kind = CASES[case]
    batch, targets = batch_of(negatives, scores="" if kind == "teacher" else kind)
    if kind == "teacher":
        vectors = torch.randn(B * (negatives + 2), D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        targets = targets._replace(teacher=TeacherVectors(vectors[:B], vectors[B:]))
    ours = of(name, **arguments).double()
    plain = {key: given for key, given in arguments.items() if not isinstance(given, str)}
    plain |= given_by_name(name, arguments)
    peer = theirs(name, **({**plain, "embedding_dimension": D} if name == "SoftmaxLoss" else plain)).double()
    peer.load_state_dict(ours.loss.state_dict())
    wanted = value(peer, *by_hand(name, batch, targets, negatives))
    wanted = torch.stack(list(wanted.values())).sum() if isinstance(wanted, dict) else wanted
    output = ours(batch, targets)
    torch.testing.assert_close(output.loss, wanted, atol=1e-9, rtol=1e-9)
    assert float(output.loss.detach()) != 0
    for found, expected in zip(gradients(output.loss, batch), gradients(wanted, batch), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)
    assert all(one.abs().max() > 0 for one in gradients(output.loss, batch))
    assert not any(metric.requires_grad for metric in output.metrics.values())
    assert output.metrics["loss"] == output.loss


def given_by_name(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the words of the cases stand for, written out."""
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import pairwise_cos_sim

    meant = {
        "torch.nn.L1Loss": nn.L1Loss(),
        "EUCLIDEAN": losses.SiameseDistanceMetric.EUCLIDEAN,
        "COSINE": losses.TripletDistanceMetric.COSINE,
        "cosine_distance": losses.BatchHardTripletLossDistanceFunction.cosine_distance,
        "pairwise_cos_sim": pairwise_cos_sim,
    }
    return {key: meant.get(given, given) for key, given in arguments.items() if isinstance(given, str)}


def by_hand(name: str, batch: Batch, targets: Targets, negatives: int) -> tuple[list[Tensor], Tensor | None]:
    """The columns and labels that its documentation asks for, made with loops."""
    form, cut = SUPPORTED[name], columns(batch, negatives)
    scores = None if targets.scores_P is None else targets.scores_P.double()
    if form == "scored-pairs" or (form == "angle" and scores is not None):
        anchors = torch.stack([cut[0][b] for b in range(B) for _ in range(negatives + 1)])
        others = torch.stack([cut[1 + n][b] for b in range(B) for n in range(negatives + 1)])
        labels = [1.0, *[0.0] * negatives] * B if scores is None else scores.tolist()
        return [anchors, others], torch.tensor(labels, dtype=torch.float64)
    if form == "scored-tuples":
        assert scores is not None
        return cut, torch.stack([scores[b * (negatives + 1) : (b + 1) * (negatives + 1)] for b in range(B)])
    if form == "labelled":
        assert scores is not None
        return cut, scores.long()
    if form == "teacher":
        assert targets.teacher is not None
        query, passage = targets.teacher
        rows = [torch.stack([query[b], *passage[b * (negatives + 1) : (b + 1) * (negatives + 1)]]) for b in range(B)]
        return cut, torch.stack(rows)
    if form == "classes":
        alone = torch.arange(B * negatives) + 100
        return [torch.cat(cut)], torch.cat([torch.arange(B), torch.arange(B), alone])
    return cut, None


class WholeModel:
    """A tiny model of ours and sentence-transformers' own of the same directory, on the same texts."""

    def __init__(self, path: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.ours = build(path)
        self.ours.train()
        self.peer = SentenceTransformer(str(path), device="cpu").train()
        self.texts = [[TEXTS[(start + n) % 6] for n in range(4)] for start in (0, 1, 2)]

    def their_gradients(self, loss: Any, columns: int, labels: Tensor | None) -> tuple[float, dict[str, Tensor]]:
        features = [self.peer.preprocess(texts) for texts in self.texts[:columns]]
        found = loss(features, labels)
        found.backward()
        return float(found.detach()), {n: p.grad for n, p in self.peer.named_parameters() if p.grad is not None}

    def our_gradients(self, loss: Any, columns: int, scores: Tensor | None) -> tuple[float, dict[str, Tensor]]:
        flat = [text for texts in self.texts[:columns] for text in texts]
        encoded = self.ours.tokenize(flat, "query", [None] * len(flat))
        whole: Embeddings = self.ours(**self.ours.collate(encoded))
        order = torch.tensor([4 * column + row for row in range(4) for column in range(1, columns)])
        batch = Batch(select(whole, torch.arange(4)), select(whole, order))
        _, targets = random_batch(4, negatives=(columns - 2,), width=D, repeats=False)
        found = loss(batch, targets._replace(scores_P=scores)).loss
        found.backward()
        named = self.ours.named_parameters()
        prefix = "sentence_transformer."
        return float(found.detach()), {n.removeprefix(prefix): p.grad for n, p in named if p.grad is not None}


WHOLE = {
    "MultipleNegativesRankingLoss": (3, None),
    "CachedMultipleNegativesRankingLoss": (3, None),
    "CoSENTLoss": (2, torch.tensor([0.9, 0.1, 0.5, 0.4])),
    "TripletLoss": (3, None),
}


@pytest.mark.parametrize("chain", ["mean", "sqrt"])
@pytest.mark.parametrize("name", WHOLE)
def test_gradient_through_the_whole_model(name: str, chain: str, saved: Callable[..., Path]) -> None:
    """With and without unit length; the cached one through its own caching, ours through one graph."""
    from sentence_transformers.sentence_transformer import losses

    count, labels = WHOLE[name]
    models = WholeModel(saved(chain))
    more = {"mini_batch_size": 2} if name.startswith("Cached") else {}
    wanted, their_gradient = models.their_gradients(getattr(losses, name)(models.peer, **more), count, labels)
    found, our_gradient = models.our_gradients(of(name, **more), count, labels)
    assert found == pytest.approx(wanted, abs=1e-5)
    same_gradients(our_gradient, their_gradient)


@pytest.mark.parametrize("chain", ["mean", "sqrt"])
def test_our_own_ranking_loss_through_the_whole_model(chain: str, saved: Callable[..., Path]) -> None:
    """Kind `multiple-negatives-ranking`; for a model of unit length `infonce` with temperature 1/scale is the same."""
    from sentence_transformers.sentence_transformer import losses

    kinds: list[Any] = [MultipleNegativesRankingConfig(scale=20, mask=NO_MASK)]
    if chain == "sqrt":
        kinds.append(InfoNCEConfig(temperature=0.05, mask=NO_MASK))
    for kind in kinds:
        models = WholeModel(saved(chain))
        wanted, their_gradient = models.their_gradients(losses.MultipleNegativesRankingLoss(models.peer), 3, None)
        found, our_gradient = models.our_gradients(kind.build(context()), 3, None)
        assert found == pytest.approx(wanted, abs=1e-5)
        same_gradients(our_gradient, their_gradient)


def same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert max(float(one.abs().max()) for one in wanted.values()) > 1e-3
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_our_ranking_loss_keeps_the_promises_of_a_loss() -> None:
    check_loss(MultipleNegativesRankingConfig().build(context()))
    check_loss(MultipleNegativesRankingConfig(symmetric=True).build(context()))
    assert MultipleNegativesRankingConfig().build(context()).shares_rows


def test_our_ranking_loss_is_theirs_over_embeddings() -> None:
    for options, arguments in (
        ({"scale": 7.0}, {"scale": 7.0}),
        ({"similarity": "dot", "scale": 1.0}, {"scale": 1.0, "similarity_fct": "dot_score"}),
    ):
        batch, targets = batch_of(2)
        ours = MultipleNegativesRankingConfig(**options, mask=NO_MASK).build(context())(batch, targets).loss
        wanted = of("MultipleNegativesRankingLoss", **arguments)(batch, targets).loss
        torch.testing.assert_close(ours, wanted)
        for one, other in zip(gradients(ours, batch), gradients(wanted, batch), strict=True):
            torch.testing.assert_close(one, other)


def test_every_loss_of_the_installed_version_is_supported_or_refused_by_name() -> None:
    from sentence_transformers.sentence_transformer import losses

    there = {
        name
        for name in losses.__all__
        if inspect.isclass(getattr(losses, name)) and issubclass(getattr(losses, name), nn.Module)
    }
    assert there == set(SUPPORTED) | set(REFUSED)
    assert not set(SUPPORTED) & set(REFUSED)
    for name, why in REFUSED.items():
        with pytest.raises(ValidationError, match=r"cannot be computed from embeddings: .*use"):
            SentenceTransformersLossConfig(name=name)
        assert "use" in why


def test_names_and_arguments_that_are_refused() -> None:
    for options, message in (
        ({"name": "CosentLoss"}, "there is no loss 'CosentLoss': did you mean 'CoSENTLoss'"),
        ({"name": "CoSENTLoss", "arguments": {"gather_across_devices": True}}, "is always so here"),
        ({"name": "CoSENTLoss", "arguments": {"model": "x"}}, "the loss is given embeddings, no model"),
    ):
        with pytest.raises(ValidationError, match=message):
            SentenceTransformersLossConfig(**options)  # type: ignore[arg-type]
    for name, arguments, message in (
        ("CoSENTLoss", {"scal": 1}, r"loss.arguments.scal: CoSENTLoss has no such argument: did you mean 'scale'"),
        ("CoSENTLoss", {"similarity_fct": "cos"}, r"similarity_fct: 'cos' is no similarity: one of|did you mean"),
        ("TripletLoss", {"distance_metric": "COSIN"}, "'COSIN' is no distance: did you mean 'COSINE'"),
        ("CosineSimilarityLoss", {"loss_fct": "os.system"}, "'os.system' is no module of torch: write its path"),
        ("SoftmaxLoss", {}, r"SoftmaxLoss needs 'num_labels': set loss.arguments.num_labels"),
        ("MultipleNegativesRankingLoss", {"scale": -1}, "refuses them: Scale must be a positive value"),
    ):
        with pytest.raises(ConfigError, match=message):
            of(name, **arguments)


def test_batches_that_lack_what_a_loss_needs() -> None:
    for name, arguments, negatives, scores, message in (
        ("TripletLoss", {}, 0, "", r"takes triplets, the rows have 0 hard negatives: it needs rows with negatives"),
        ("TripletLoss", {}, 2, "", r"the rows have 2 hard negatives: set data.negatives: 1"),
        ("MegaBatchMarginLoss", {}, 1, "", r"takes pairs, the rows have 1 hard negatives: set data.negatives: 0"),
        ("CoSENTLoss", {}, 0, "", r"needs scores, the rows have none: give them a `score`"),
        ("MarginMSELoss", {}, 0, "float", r"the rows have one: it needs negatives"),
        ("MarginMSELoss", {}, 1, "", r"needs scores, the rows have none"),
        ("MSELoss", {}, 0, "", r"needs a teacher's vectors, the data has none: set `teacher_model_name`"),
    ):
        with pytest.raises(ConfigError, match=f"loss {name} .*{message}|{message}"):
            of(name, **arguments)(*batch_of(negatives, scores=scores))
    batch, targets = batch_of(0, scores="float")
    assert targets.scores_P is not None
    targets.scores_P[2] = float("nan")
    with pytest.raises(ConfigError, match=r"1 rows of this batch lack some \(row 2 first\)"):
        of("CoSENTLoss")(batch, targets)
    ragged = random_batch(4, negatives=(2, 1), width=D)
    with pytest.raises(ConfigError, match=r"these have 1 to 2 hard negatives: give all of them negatives"):
        of("MultipleNegativesRankingLoss")(*ragged)
    sparse = Batch(*(Embeddings(sparse=e.sparse) for e in random_batch(4, parts=("sparse",))[0]))
    with pytest.raises(ConfigError, match="dense"):
        of("MultipleNegativesRankingLoss")(sparse, batch_of(0)[1])


def test_a_projection_is_as_wide_as_the_model_and_is_trained(saved: Callable[..., Path]) -> None:
    config = SentenceTransformersLossConfig(name="MSELoss", arguments={"projection_dim": 5})
    loss = build_loss(config, context(model=build(saved("dense"))))
    assert loss.loss.projection.weight.shape == (5, 8)
    assert {name for name, _ in loss.named_parameters()} == {"loss.projection.weight", "loss.projection.bias"}
    again = build_loss(config, context(model=build(saved("dense"))))
    torch.testing.assert_close(loss.state_dict(), again.state_dict(), atol=0, rtol=0)
    batch, targets = random_batch(3, negatives=(0,), width=8, repeats=False)
    teacher = TeacherVectors(torch.randn(3, 5), torch.randn(3, 5))
    half = loss.bfloat16()
    half(batch, targets._replace(teacher=teacher)).loss.backward()
    assert half.loss.projection.weight.grad is not None


def test_the_width_of_any_model_is_found() -> None:
    from embed_core.testing.tiny import TinyModel

    config = SentenceTransformersLossConfig(name="SoftmaxLoss", arguments={"num_labels": 2})
    assert build_loss(config, context(model=TinyModel(width=16))).loss.classifier.in_features == 48
