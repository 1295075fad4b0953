"""The gather, with every rank a thread: values, order, targets, and the gradient of the whole batch on each rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embed_core.batch.collate import draw_examples, make_host_batch, share_of_rank
from embed_core.batch.global_batch import GlobalBatch
from embed_core.distributed.collectives import gather_embeddings, gather_rows, sum_parts
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import select, values
from embed_core.errors import DataError
from embed_core.scoring import combined_scores
from embed_core.testing.datasets import tiny_dataset
from embed_core.testing.tiny import TinyModel
from embed_core.types import LossOutput


class ThreadRanks:
    """``all_gather`` between threads: all put their tensor down, all wait, all take every tensor."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.own = threading.local()
        self.table: list[Tensor] = [torch.empty(0)] * world_size
        self.barrier = threading.Barrier(world_size, timeout=20)

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        self.table[self.own.rank] = tensor.detach().clone()
        self.barrier.wait()
        shapes = {tuple(other.shape) for other in self.table}
        assert len(shapes) == 1, f"collectives want equal shapes, got {shapes}"
        for part, other in zip(parts, self.table, strict=True):
            part.copy_(other)
        self.barrier.wait()

    def all_reduce(self, tensor: Tensor) -> None:
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        self.all_gather(parts, tensor)
        tensor.copy_(torch.stack(parts).sum(0))

    def run(self, function: Callable[[Ranks], Any]) -> list[Any]:
        answers: list[Any] = [None] * self.world_size

        def body(rank: int) -> None:
            self.own.rank = rank
            try:
                answers[rank] = function(Ranks(rank, self.world_size, rank, "cpu"))
            except BaseException as error:
                answers[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers


def on_ranks(monkeypatch: pytest.MonkeyPatch, world_size: int, function: Callable[[Ranks], Any]) -> list[Any]:
    ranks = ThreadRanks(world_size)
    monkeypatch.setattr(torch.distributed, "all_gather", ranks.all_gather)
    monkeypatch.setattr(torch.distributed, "all_reduce", ranks.all_reduce)
    return ranks.run(function)


@pytest.mark.parametrize("given", [True, False])
def test_rows_come_in_rank_order(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    sizes = [2, 0, 3]
    parts = [torch.arange(size * 2.0).view(size, 2) + 10 * rank for rank, size in enumerate(sizes)]
    found = on_ranks(monkeypatch, 3, lambda r: gather_rows(parts[r.rank], r, sizes if given else None))
    for answer in found:
        assert torch.equal(answer, torch.cat(parts))


def test_one_rank_gathers_nothing() -> None:
    rows = torch.ones(2, requires_grad=True)
    assert gather_rows(rows, Ranks(0, 1, 0, "cpu")) is rows


def test_gradient_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's own rows, then averaged as data-parallel training does: the gradient one process would have."""
    torch.manual_seed(0)
    x_ND, weight_DD = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)

    def loss_of(rows_ND: Tensor) -> Tensor:
        return torch.logsumexp(rows_ND @ rows_ND.T, 1).mean()

    whole = weight_DD.clone().requires_grad_()
    loss_of(x_ND @ whole).backward()

    def on_rank(ranks: Ranks) -> tuple[Tensor, Tensor]:
        weight = weight_DD.clone().requires_grad_()
        mine = x_ND[[0, 1]] if ranks.rank == 0 else x_ND[[2, 3, 4]]
        loss = loss_of(gather_rows(mine @ weight, ranks))
        loss.backward()
        return loss.detach(), weight.grad

    found = on_ranks(monkeypatch, 2, on_rank)
    for loss, _ in found:
        assert torch.equal(loss, loss_of(x_ND @ weight_DD))
    average = torch.stack([gradient for _, gradient in found]).mean(0)
    torch.testing.assert_close(average, whole.grad, rtol=1e-12, atol=1e-12)


def test_parts_of_a_loss_add_up_to_the_whole_in_value_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank its rows' part; averaged, the gradients of weights and of the loss's own are those of one process."""
    torch.manual_seed(0)
    x_ND, weight_DD = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    bounds = [0, 1, 3, 5]

    def loss_of(rows_ND: Tensor, scale: Tensor, own: slice) -> LossOutput:
        """Row i against all rows of which its part is taken: other ranks' rows get a gradient from here."""
        part = torch.logsumexp(scale * (rows_ND[own] @ rows_ND.T), 1).sum() / 5
        return LossOutput(part, {"rows": torch.tensor((own.stop - own.start) / 5), "loss": part.detach()})

    whole, whole_scale = weight_DD.clone().requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    wanted = loss_of(x_ND @ whole, whole_scale, slice(0, 5))
    wanted.loss.backward()

    def on_rank(ranks: Ranks) -> tuple[LossOutput, Tensor, Tensor]:
        own = slice(bounds[ranks.rank], bounds[ranks.rank + 1])
        weight, scale = weight_DD.clone().requires_grad_(), whole_scale.detach().clone().requires_grad_()
        rows_ND = gather_rows(x_ND[own] @ weight, ranks, parts=True)
        output = sum_parts(loss_of(rows_ND, scale, own), ranks)
        output.loss.backward()
        return output, weight.grad, scale.grad

    found = on_ranks(monkeypatch, 3, on_rank)
    for output, *_ in found:
        torch.testing.assert_close(output.loss, wanted.loss, rtol=1e-12, atol=1e-12)
        assert output.metrics["loss"].item() == pytest.approx(wanted.loss.item(), rel=1e-12)
        assert output.metrics["rows"].item() == pytest.approx(1)
        assert not output.metrics["loss"].requires_grad
    for place, gradient in ((1, whole.grad), (2, whole_scale.grad)):
        average = torch.stack([answer[place] for answer in found]).mean(0)
        torch.testing.assert_close(average, gradient, rtol=1e-12, atol=1e-12)


def test_one_rank_has_the_whole_loss() -> None:
    part = LossOutput(torch.ones(()), {})
    assert sum_parts(part, Ranks(0, 1, 0, "cpu")) is part


@pytest.mark.parametrize("world_size", [2, 3])
def test_global_batch_is_the_same_on_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    dataset, model, rows = tiny_dataset(), TinyModel(), list(range(7))
    scored = draw_examples(dataset, rows, 0, 0)
    scored[6] = type(scored[6])(**{**_fields(scored[6]), "scores": tuple(map(float, range(len(scored[6].passages))))})

    def on_rank(ranks: Ranks) -> tuple[Any, Any, Any]:
        host = make_host_batch(model, [scored[row] for row in share_of_rank(rows, ranks.rank, ranks.world_size)])
        batch = GlobalBatch(host, 5, ranks)
        with torch.no_grad():
            local = model(**model.collate(host.encoded))
        texts = gather_embeddings(local, ranks)
        own = range(len(rows))[slice(*batch.own_rows)]
        assert list(own) == list(share_of_rank(range(len(rows)), ranks.rank, ranks.world_size))
        return batch, select(texts, batch.query_index_B), select(texts, batch.passage_index_P)

    wanted, wanted_query, wanted_passage = on_rank(Ranks(0, 1, 0, "cpu"))
    for batch, query, passage in on_ranks(monkeypatch, world_size, on_rank):
        assert (batch.rows, batch.targets.step) == (7, 5)
        for name in ("groups_B1", "row_ids_B", "query_ids_B", "passage_ids_P", "passage_keys_P"):
            assert torch.equal(getattr(batch.targets, name), getattr(wanted.targets, name)), name
        assert torch.equal(batch.targets.positives_K, wanted.targets.positives_K)
        assert torch.equal(batch.targets.positive_offsets_B1, wanted.targets.positive_offsets_B1)
        torch.testing.assert_close(batch.targets.scores_P, wanted.targets.scores_P, equal_nan=True)
        # Padding differs between chunks, so the values are close, not equal.
        for one, other in zip(
            values(query) + values(passage), values(wanted_query) + values(wanted_passage), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        scores = combined_scores(query, passage, {"dense": 1.0, "sparse": 1.0, "multi": 1.0})
        oracle = combined_scores(wanted_query, wanted_passage, {"dense": 1.0, "sparse": 1.0, "multi": 1.0})
        torch.testing.assert_close(scores, oracle, rtol=1e-5, atol=1e-5)


def test_scores_are_none_where_no_row_of_any_rank_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = draw_examples(tiny_dataset(), range(4), 0, 0)

    def on_rank(ranks: Ranks) -> Any:
        return GlobalBatch(make_host_batch(TinyModel(), examples[ranks.rank :: 2]), 0, ranks).targets.scores_P

    assert on_ranks(monkeypatch, 2, on_rank) == [None, None]


def test_teacher_scores_travel_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = (1e-40, -0.0, 3.0000002, float("inf"))
    examples = draw_examples(tiny_dataset(), range(2), 0, 0)
    examples = [
        type(e)(**{**_fields(e), "passages": ("a", "b"), "scores": odd[2 * n : 2 * n + 2]})
        for n, e in enumerate(examples)
    ]

    def on_rank(ranks: Ranks) -> Any:
        return GlobalBatch(make_host_batch(TinyModel(), [examples[ranks.rank]]), 0, ranks).targets.scores_P

    for found in on_ranks(monkeypatch, 2, on_rank):
        assert found.numpy().tobytes() == np.array(odd, dtype=np.float32).tobytes()


def _fields(example: Any) -> dict[str, Any]:
    return {name: getattr(example, name) for name in type(example).__dataclass_fields__}


def taught(row: int, width: int) -> Any:
    """Row ``row`` of the tiny data with a teacher's vectors that say which text they are of."""
    (example,) = draw_examples(tiny_dataset(), [row], 0, 0)
    passages = np.array([[row, 1 + n] for n in range(len(example.passages))], np.float32).repeat(width // 2, axis=1)
    query = np.array([row, 0], np.float32).repeat(width // 2)
    return type(example)(**{**_fields(example), "query_vector": query, "passage_vectors": passages})


@pytest.mark.parametrize("world_size", [1, 3])
def test_teacher_vectors_are_the_global_batchs_on_every_rank(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    rows, model = list(range(7)), TinyModel()

    def on_rank(ranks: Ranks) -> Any:
        own = share_of_rank(rows, ranks.rank, ranks.world_size)
        return GlobalBatch(make_host_batch(model, [taught(row, 2) for row in own]), 0, ranks).targets

    for targets in on_ranks(monkeypatch, world_size, on_rank) if world_size > 1 else [on_rank(Ranks(0, 1, 0, "cpu"))]:
        assert targets.teacher.query_BW.tolist() == [[row, 0] for row in rows]
        groups = targets.groups_B1.tolist()
        wanted = [[row, 1 + n] for row in rows for n in range(groups[row + 1] - groups[row])]
        assert targets.teacher.passage_PW.tolist() == wanted


def test_ranks_with_different_teachers_stop_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_rank(ranks: Ranks) -> str:
        with pytest.raises(DataError, match=r"teacher vectors of widths \[2, 4\] \(0: none\): every row of a batch"):
            GlobalBatch(make_host_batch(TinyModel(), [taught(ranks.rank, 2 + 2 * ranks.rank)]), 0, ranks)
        return "stopped"

    assert on_ranks(monkeypatch, 2, on_rank) == ["stopped", "stopped"]
