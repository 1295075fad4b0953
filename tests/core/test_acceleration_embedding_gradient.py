"""Embedding tables shared by the chunks of a step: the gradient autograd gives without sharing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embed_core.acceleration.embedding_gradient import SharedTables


class TwoTables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 6, padding_idx=1)
        self.positions = nn.Embedding(20, 6)

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1]).expand_as(ids)
        return torch.tanh(self.words(ids) + self.positions(where))


def chunks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (n, length), generator=generator) for n, length in ((3, 7), (5, 4), (2, 9))]


def expected(model: TwoTables) -> dict[str, Tensor]:
    """Of the sum over all chunks, by functions without any of the shared machinery."""
    words, positions = (t.weight.detach().clone().requires_grad_() for t in (model.words, model.positions))
    total = torch.zeros(())
    for ids in chunks():
        where = torch.arange(ids.shape[1]).expand_as(ids)
        states = functional.embedding(ids, words, padding_idx=1) + functional.embedding(where, positions)
        total = total + torch.tanh(states).square().sum()
    total.backward()
    assert words.grad is not None
    assert positions.grad is not None
    return {"words.weight": words.grad, "positions.weight": positions.grad}


def check(model: TwoTables) -> None:
    for name, wanted in expected(model).items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, wanted)


def test_one_backward_over_several_chunks() -> None:
    model = TwoTables()
    tables = SharedTables(model)
    with tables.shared():
        states = [model(ids) for ids in chunks()]
    torch.stack([one.square().sum() for one in states]).sum().backward()
    check(model)


def test_the_weight_gets_its_gradient_once() -> None:
    model, calls = TwoTables(), []
    model.words.weight.register_hook(lambda gradient: calls.append(gradient.shape))
    with SharedTables(model).shared():
        states = [model(ids) for ids in chunks()]
    torch.stack([one.sum() for one in states]).sum().backward()
    assert calls == [(50, 6)]


def test_a_backward_per_chunk_held_until_the_last() -> None:
    model = TwoTables()
    tables, given = SharedTables(model), chunks()
    for number, ids in enumerate(given):
        last = number == len(given) - 1
        with tables.shared(hold=not last):
            states = model(ids)
        states.square().sum().backward()
        assert (model.words.weight.grad is None) == (not last)
    check(model)


def test_a_table_that_the_last_chunk_does_not_use() -> None:
    """Its gradient is there by the end of the last backward, where ranks reduce what there is."""

    class PerRole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(50, 6), nn.Embedding(50, 6)])

        def forward(self, ids: Tensor, role: int) -> Tensor:
            found: Tensor = self.tables[role](ids)
            return found

    model, plain = PerRole(), PerRole()
    plain.load_state_dict(model.state_dict())
    tables, given = SharedTables(model), list(zip(chunks(), (0, 1, 1), strict=True))
    for number, (ids, role) in enumerate(given):
        last = number == len(given) - 1
        with tables.shared(hold=not last):
            states = model(ids, role)
        parts = [states.square().sum(), *(tables.unclaimed() if last else ())]
        assert len(parts) == (2 if last else 1)
        torch.stack(parts).sum().backward()
    torch.stack([plain(ids, role).square().sum() for ids, role in given]).sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    with tables.shared():
        model(*given[0]).sum().backward()
    assert tables.unclaimed() == []


def test_what_is_held_can_be_forgotten() -> None:
    model = TwoTables()
    tables = SharedTables(model)
    with tables.shared(hold=True):
        states = model(chunks()[0])
    states.sum().backward()
    tables.forget()
    with tables.shared():
        states = [model(ids) for ids in chunks()]
    torch.stack([one.square().sum() for one in states]).sum().backward()
    check(model)


def test_outside_it_is_a_plain_embedding() -> None:
    model = TwoTables()
    SharedTables(model)
    torch.stack([model(ids).square().sum() for ids in chunks()]).sum().backward()
    check(model)


def test_frozen_tables_and_forwards_without_gradient_are_left_alone() -> None:
    model = TwoTables()
    model.words.requires_grad_(False)
    tables = SharedTables(model)
    with torch.no_grad(), tables.shared():
        model(chunks()[0])
    with tables.shared():
        model(chunks()[0]).sum().backward()
    assert model.words.weight.grad is None
    assert model.positions.weight.grad is not None


@pytest.mark.parametrize("share", [True, False])
def test_in_float64_too(share: bool) -> None:
    model = TwoTables().double()
    with SharedTables(model).shared() if share else torch.enable_grad():
        states = [model(ids) for ids in chunks()]
    torch.stack([one.square().sum() for one in states]).sum().backward()
    assert model.words.weight.grad is not None
    assert model.words.weight.grad.dtype == torch.float64
