"""Dropout on CPUs: the share it drops, the expectation it keeps, its gradient, and whose random numbers it takes."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from embed_core.acceleration.dropout import LEVELS, FastDropout, keep_mask, set_dropout
from embed_core.distributed.seeds import seed_generators


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.999])
def test_drops_its_share_and_keeps_the_expectation(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    shape = (37, 101, 53)  # an odd number of values: the last word is not used up
    mask, factor = keep_mask(torch.empty(shape, dtype=dtype), rate)
    assert (mask.dtype, mask.shape) == (dtype, shape)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert factor == pytest.approx(1 / (1 - rate), rel=0.01)
    # The factor belongs to the rate as it is drawn, which is a multiple of 1 / LEVELS.
    assert factor == LEVELS / (LEVELS - round(rate * LEVELS))
    dropped, deviation = float((mask == 0).double().mean()), sqrt(rate * (1 - rate) / mask.numel())
    assert abs(dropped - rate) < 5 * deviation + 1 / LEVELS


def test_values_are_dropped_independently() -> None:
    """Neighbours come of one 64-bit word; pairs at any small distance meet as often as chance has it."""
    torch.manual_seed(4)
    kept = keep_mask(torch.empty(1_000_000), 0.3)[0].bool()
    for distance in (1, 2, 3, 4, 5, 8, 16, 64):
        both = float((kept[distance:] & kept[:-distance]).double().mean())
        assert both == pytest.approx(0.49, abs=0.003)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_ends_of_the_range(rate: float) -> None:
    mask, factor = keep_mask(torch.empty(1_000), rate)
    assert bool((mask == 1 - rate).all())
    assert factor == 1 - rate
    values = torch.ones(1_000, requires_grad=True)
    FastDropout(rate)(values).sum().backward()
    assert values.grad is not None
    assert bool((values.grad == 1 - rate).all())


def test_value_and_gradient_are_of_one_mask() -> None:
    module, values = FastDropout(0.25), torch.randn(64, 33, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    found = module(values)
    torch.manual_seed(5)
    mask, factor = keep_mask(values, 0.25)
    torch.testing.assert_close(found, values * mask * factor, rtol=0, atol=0)
    upstream = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, values, upstream)
    torch.testing.assert_close(gradient, upstream * mask * factor, rtol=0, atol=0)


def test_the_seed_of_a_chunk_gives_its_mask_again_and_another_gives_another() -> None:
    values = torch.ones(4_000)
    masks = []
    for seed in (7, 8, 7):
        seed_generators(seed, on_cuda=False)
        masks.append([keep_mask(values, 0.5)[0] for _ in range(2)])
    assert torch.equal(masks[0][0], masks[2][0])
    assert torch.equal(masks[0][1], masks[2][1])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][0], masks[1][0])


def test_gradient_checkpointing_draws_the_same_mask_twice() -> None:
    module, values = FastDropout(0.5), torch.randn(3_000, requires_grad=True)
    found = checkpoint(module, values, use_reentrant=False)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert torch.equal(gradient != 0, found != 0)


def test_evaluation_drops_nothing_and_draws_nothing() -> None:
    module, values = FastDropout(0.5).eval(), torch.randn(100)
    state = torch.get_rng_state()
    assert torch.equal(module(values), values)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_gets_it_wherever_it_had_the_plain_one() -> None:
    class Other(nn.Dropout):
        """A subclass does something of its own."""

    inner = nn.ModuleDict({"a": nn.Dropout(0.2), "b": nn.Linear(2, 2)})
    model = nn.Sequential(nn.Dropout(0.1), inner, Other(0.3), nn.Dropout1d(0.4)).eval()
    names = list(model.state_dict())
    set_dropout(model)
    assert [type(part) for part in model] == [FastDropout, nn.ModuleDict, Other, nn.Dropout1d]
    first, second = model[0], inner["a"]
    assert isinstance(second, FastDropout)
    assert (first.p, second.p, first.training, second.training) == (0.1, 0.2, False, False)
    assert list(model.state_dict()) == names
    set_dropout(model)
    assert model[0] is first


def test_under_compile_it_is_pytorchs_own() -> None:
    """A graph cannot hold NumPy's generator; the share and the factor are the same."""
    torch.manual_seed(6)
    compiled = torch.compile(lambda values: FastDropout(0.5)(values), backend="eager", fullgraph=True)
    found = compiled(torch.ones(10_000))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert float((found == 0).double().mean()) == pytest.approx(0.5, abs=0.03)
