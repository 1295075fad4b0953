"""ms-swift's losses behind our interface: their own values on their own layout, whatever the environment says."""

from __future__ import annotations

import os
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from swift.loss import loss_map
from torch import Tensor

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError
from embed_core.testing import check_loss, random_batch
from embed_core.types import Batch, Targets
from embed_qwen import swift
from embed_qwen.losses_config import (
    SwiftContrastiveConfig,
    SwiftCosineSimilarityConfig,
    SwiftInfoNCEConfig,
    SwiftOnlineContrastiveConfig,
)

torch.set_num_threads(1)
PAIRS = (SwiftCosineSimilarityConfig, SwiftContrastiveConfig, SwiftOnlineContrastiveConfig)


def build(config: Any) -> Any:
    return config.build(BuildContext(registry=Registry()))


def rows_of(batch: Batch, targets: Targets) -> list[tuple[Tensor, Tensor]]:
    """(query, its passages), row after row."""
    q, d = batch.query.dense_ND, batch.passage.dense_ND
    assert q is not None
    assert d is not None
    return [(q[row], d[start:stop]) for row, (start, stop) in enumerate(pairwise(targets.groups_B1.tolist()))]


def leaves(batch: Batch) -> list[Tensor]:
    return [one for one in (batch.query.dense_ND, batch.passage.dense_ND) if one is not None]


def theirs(name: str, sentences: Tensor, labels: Tensor) -> Tensor:
    value: Tensor = loss_map[name](None, object())({"last_hidden_state": sentences}, labels)
    return value


@pytest.mark.parametrize("negatives", [(2, 0, 1, 3), (2,)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        *(
            {"include_qq": qq, "include_dd": dd, "mask_fake_negative": masked, "fake_neg_margin": 0.05}
            for qq, dd, masked in product((False, True), repeat=3)
        ),
        {"use_batch": False},
        {"hard_negatives": 2},
        {"hard_negatives": 1, "use_batch": False},
    ],
    ids=str,
)
def test_infonce_is_swifts(
    monkeypatch: pytest.MonkeyPatch, negatives: tuple[int, ...], options: dict[str, Any]
) -> None:
    """On rows that are laid out by hand, with the environment variables set by hand."""
    if "hard_negatives" in options:
        negatives = tuple(max(1, n) for n in negatives)
    batch, targets = random_batch(7, negatives=negatives, width=5, step=11)
    found = build(SwiftInfoNCEConfig(temperature=0.07, **options))(batch, targets)
    gradients = torch.autograd.grad(found.loss, leaves(batch))
    for name, value in ({"temperature": 0.07} | options).items():
        monkeypatch.setenv(f"INFONCE_{name.upper()}", str(value))
    rows = rows_of(batch, targets)
    sentences = torch.cat([torch.cat([query[None], passages]) for query, passages in rows])
    labels = torch.tensor([1.0 if n == 0 else 0.0 for _, passages in rows for n in range(len(passages))])
    np.random.seed(11)
    wanted = theirs("infonce", sentences, labels)
    torch.testing.assert_close(found.loss, wanted, rtol=0, atol=0)
    for one, other in zip(gradients, torch.autograd.grad(wanted, leaves(batch)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("config", PAIRS)
def test_pairs_are_swifts(config: Any) -> None:
    batch, targets = random_batch(7, width=5)
    found = build(config())(batch, targets)
    rows = rows_of(batch, targets)
    pairs = [(query, passage) for query, passages in rows for passage in passages]
    labels = torch.tensor([1.0 if n == 0 else 0.0 for _, passages in rows for n in range(len(passages))])
    sentences = torch.stack([side for pair in pairs for side in pair])
    wanted = theirs(config().kind.removeprefix("swift-").replace("-", "_"), sentences, labels)
    torch.testing.assert_close(found.loss, wanted, rtol=0, atol=0)
    gradients = torch.autograd.grad(found.loss, leaves(batch))
    for one, other in zip(gradients, torch.autograd.grad(wanted, leaves(batch)), strict=True):
        assert float(one.abs().max()) > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    assert float(found.metrics["positives"]) == pytest.approx(7 / len(pairs))


def test_a_teachers_scores_are_labels() -> None:
    batch, targets = random_batch(2, negatives=(1,), scores=True)
    assert targets.scores_P is not None
    targets = targets._replace(scores_P=torch.tensor([0.9, 0.1, 0.5, -0.25]))
    found = build(SwiftCosineSimilarityConfig(labels="scores"))(batch, targets).loss
    pairs = [(query, passage) for query, passages in rows_of(batch, targets) for passage in passages]
    cosines = torch.stack([query @ passage for query, passage in pairs])
    torch.testing.assert_close(found, (cosines - torch.tensor([0.9, 0.1, 0.5, -0.25])).square().mean())


@pytest.mark.parametrize(
    ("config", "scores"),
    [
        (SwiftCosineSimilarityConfig, [0.0, 0.75, 1.0, 0.25]),
        (SwiftContrastiveConfig, [0.0, 0.75, 1.0, 0.25]),
        (SwiftOnlineContrastiveConfig, [0.0, 1.0, 1.0, 0.0]),
    ],
)
def test_labels_of_the_data_are_swifts(config: Any, scores: list[float]) -> None:
    """As its rows have them: a pair with `label: 0` is none, wherever it stands."""
    batch, targets = random_batch(4, negatives=(0,), seed=3)
    targets = targets._replace(scores_P=torch.tensor(scores))
    found = build(config(labels="scores"))(batch, targets)
    sentences = torch.stack([side for query, passages in rows_of(batch, targets) for side in (query, passages[0])])
    wanted = theirs(config().kind.removeprefix("swift-").replace("-", "_"), sentences, torch.tensor(scores))
    torch.testing.assert_close(found.loss, wanted, rtol=0, atol=0)
    assert float(found.metrics["positives"]) == 0.5
    with pytest.raises(ConfigError) as caught:
        build(config())(batch, targets)
    assert str(caught.value) == (
        f"loss.labels: 'relevance' would pull together {scores.count(0)} pairs of the batch of step 1 that are "
        "labelled 0: use 'scores'"
    )


@pytest.mark.parametrize(
    ("config", "score", "words"),
    [
        (SwiftContrastiveConfig, -0.5, "contrastive are from 0 to 1, and the batch of step 5 has -0.5"),
        (SwiftOnlineContrastiveConfig, 0.25, "online_contrastive are 0 or 1, and the batch of step 5 has 0.25"),
    ],
)
def test_scores_that_are_no_labels(config: Any, score: float, words: str) -> None:
    batch, targets = random_batch(2, negatives=(1,), step=4)
    targets = targets._replace(scores_P=torch.tensor([1.0, score, 0.0, 1.0]))
    with pytest.raises(ConfigError) as caught:
        build(config(labels="scores"))(batch, targets)
    assert str(caught.value) == f"loss.labels: 'scores' of {words}: use cosine_similarity, or 'relevance'"


@pytest.mark.parametrize(("scores", "bare"), [(None, 4), ([0.5, float("nan"), 0.1, float("nan")], 2)])
def test_scores_that_are_missing(scores: list[float] | None, bare: int) -> None:
    batch, targets = random_batch(2, negatives=(1,), step=4)
    targets = targets._replace(scores_P=None if scores is None else torch.tensor(scores))
    with pytest.raises(ConfigError) as caught:
        build(SwiftCosineSimilarityConfig(labels="scores"))(batch, targets)
    assert str(caught.value) == (
        f"loss.labels: 'scores' needs a teacher's score for every passage, and {bare} of 4 in the batch of step 5 have "
        "none: give the rows pos_scores and neg_scores, or use 'relevance'"
    )


@pytest.mark.parametrize(
    "config",
    [
        SwiftInfoNCEConfig(),
        SwiftInfoNCEConfig(include_qq=True, include_dd=True, mask_fake_negative=True),
        SwiftInfoNCEConfig(use_batch=False),
        SwiftCosineSimilarityConfig(),
        SwiftContrastiveConfig(),
    ],
    ids=repr,
)
def test_they_are_losses(config: Any) -> None:
    check_loss(build(config))


def test_the_sum_of_online_contrastive_is_no_mean() -> None:
    """As ms-swift has it: of four times the rows it is four times as large."""
    with pytest.raises(AssertionError, match="reduce by the mean over rows"):
        check_loss(build(SwiftOnlineContrastiveConfig()))


def test_the_environment_does_not_reach_in_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, targets = random_batch(5)
    loss = build(SwiftInfoNCEConfig())
    wanted = float(loss(batch, targets).loss.detach())
    given = {
        "INFONCE_TEMPERATURE": "9",
        "INFONCE_USE_BATCH": "False",
        "INFONCE_HARD_NEGATIVES": "3",
        "INFONCE_MASK_FAKE_NEGATIVE": "True",
        "INFONCE_INCLUDE_QQ": "True",
        # As a launcher sets them: with two ranks ms-swift would gather by itself.
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before, drawn = dict(os.environ), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    assert float(loss(batch, targets).loss.detach()) == wanted
    assert dict(os.environ) == before
    assert np.array_equal(np.random.get_state()[1], drawn)  # type: ignore[index]


def test_the_environment_is_put_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("INFONCE_TEMPERATURE", raising=False)
    within = swift.alone(INFONCE_TEMPERATURE="1")
    within.__enter__()
    assert "WORLD_SIZE" not in os.environ
    assert os.environ["INFONCE_TEMPERATURE"] == "1"
    within.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert os.environ["WORLD_SIZE"] == "2"
    assert "INFONCE_TEMPERATURE" not in os.environ


def test_missing_negatives_are_drawn_by_the_step() -> None:
    """And so alike on every rank, whatever its generator did before."""
    loss = build(SwiftInfoNCEConfig(hard_negatives=8))
    values = []
    for step, state in ((3, 0), (3, 1), (4, 1)):
        batch, targets = random_batch(6, negatives=(2, 3), step=step)
        np.random.seed(state)
        values.append(float(loss(batch, targets).loss.detach()))
    assert values[0] == values[1]
    assert values[1] != values[2]


def test_hard_negatives_must_be_there() -> None:
    batch, targets = random_batch(4, negatives=(2, 0), step=6)
    with pytest.raises(ConfigError) as caught:
        build(SwiftInfoNCEConfig(hard_negatives=2))(batch, targets)
    assert str(caught.value) == (
        "loss.hard_negatives 2 needs a negative in every row, and 2 of 4 in the batch of step 7 have none: leave the "
        "key out, or mine negatives for all rows"
    )


def test_options_that_swift_would_not_read() -> None:
    with pytest.raises(ValidationError, match="include_qq: true is not read by ms-swift with use_batch: false"):
        SwiftInfoNCEConfig(use_batch=False, include_qq=True)
