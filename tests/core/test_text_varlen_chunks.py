"""What packing changes around the model: tensors of a chunk, pooling by offsets, chunks by the sum of their lengths."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from embed_core.batch.chunks import ChunkRule, Chunks, cut
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import offsets_of
from embed_core.inspection.explain import _chunks
from embed_core.inspection.plan.data_profile import DataProfile, _add
from embed_core.text.pooling import Pooling, pool, pool_packed
from embed_core.text.varlen import Packed, Padded, chunk_tokens, packed
from embed_core.types import Embeddings, Encoded

torch.set_num_threads(1)
CPU = Ranks(0, 1, 0, "cpu")
IDS = [[0, 5, 6, 2], [0, 2], [0, 7, 8, 9, 7, 2]]
lengths_lists = st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=30)


def text(length: int, key: int = 0) -> Encoded:
    return Encoded(key.to_bytes(2, "big"), length, {"input_ids": [key] * length})


def chunk() -> tuple[Packed, Padded]:
    longest = max(map(len, IDS))
    ids = torch.tensor([one + [1] * (longest - len(one)) for one in IDS])
    lengths = torch.tensor([len(one) for one in IDS])
    padded = chunk_tokens(ids, (torch.arange(longest) < lengths[:, None]).long())
    tight = chunk_tokens(**packed(IDS))
    assert isinstance(padded, Padded)
    assert isinstance(tight, Packed)
    return tight, padded


def test_a_pack_is_one_row_with_positions_from_0_in_every_text() -> None:
    made = packed(IDS)
    assert made["input_ids"].tolist() == [[0, 5, 6, 2, 0, 2, 0, 7, 8, 9, 7, 2]]
    assert made["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5]]
    assert made["offsets"].tolist() == [0, 4, 6, 12]
    assert [made[name].dtype for name in ("input_ids", "position_ids", "offsets")] == [torch.int64] * 2 + [torch.int32]
    assert tuple(made["longest"].shape) == (6, 0)


def test_both_layouts_say_the_same_of_their_tokens() -> None:
    tight, padded = chunk()
    assert tight.count == padded.count == 3
    assert tight.lengths_N.tolist() == padded.lengths_N.tolist() == [4, 2, 6]
    assert tight.longest == 6
    for name in ("texts_XY", "input_ids"):
        assert getattr(tight, name)[tight.real_XY].tolist() == getattr(padded, name)[padded.real_XY].tolist()
        assert getattr(tight, name)[tight.later_XY].tolist() == getattr(padded, name)[padded.later_XY].tolist()
    assert tight.input_ids[tight.later_XY].tolist() == [token for ids in IDS for token in ids[1:]]


def mean_and_ends(states_TD: Tensor, offsets: list[int], method: Pooling) -> Tensor:
    parts = [states_TD[a:b] for a, b in pairwise(offsets)]
    if method == "mean":
        return torch.stack([part.sum(0) / len(part) for part in parts])
    return torch.stack([part[0 if method == "cls" else -1] for part in parts])


@pytest.mark.parametrize("method", ["cls", "mean", "last_token"])
@given(lengths=lengths_lists)
@settings(deadline=None, max_examples=15)
def test_pooling_by_offsets_is_a_loop_over_texts(method: Pooling, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    states = torch.randn(sum(lengths), 3, dtype=torch.float64, generator=generator)
    own, other = states.clone().requires_grad_(), states.clone().requires_grad_()
    offsets = offsets_of(torch.tensor(lengths)).int()
    found, wanted = pool_packed(own, offsets, method), mean_and_ends(other, offsets.tolist(), method)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    upstream = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    found.backward(upstream)
    wanted.backward(upstream)
    torch.testing.assert_close(own.grad, other.grad, atol=1e-12, rtol=0)


def test_half_precision_is_averaged_in_fp32() -> None:
    """Summed in bf16, a thousand tokens stop counting at 256."""
    states = torch.ones(1000, 1, dtype=torch.bfloat16)
    offsets = torch.tensor([0, 1000], dtype=torch.int32)
    assert float(pool_packed(states, offsets, "mean")) == 1.0
    noisy = torch.randn(1000, 4).bfloat16() + 1
    assert pool_packed(noisy, offsets, "mean").dtype == torch.bfloat16
    ones = torch.ones(1, 1000)
    torch.testing.assert_close(pool_packed(noisy, offsets, "mean"), pool(noisy[None].float(), ones, "mean").bfloat16())


@given(lengths=lengths_lists, budget=st.integers(min_value=1, max_value=100))
@settings(deadline=None)
def test_packed_chunks_fill_the_budget_with_tokens(lengths: list[int], budget: int) -> None:
    chunks = cut(lengths, budget, packed=True)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(len(lengths)))
    order = [lengths[index] for chunk in chunks for index in chunk]
    assert order == sorted(lengths, reverse=True)
    for number, one in enumerate(chunks):
        used = sum(lengths[index] for index in one)
        assert used <= budget or len(one) == 1
        if number + 1 < len(chunks):
            assert used + lengths[chunks[number + 1][0]] > budget, "the next text had room"
    assert len(chunks) <= len(cut(lengths, budget))
    more = cut(lengths, budget, len(chunks) + 2, packed=True)
    assert len(more) == len(chunks) + 2
    assert {index for chunk in more for index in chunk} == set(range(len(lengths)))


@pytest.mark.parametrize(
    ("model", "lengths", "tokens"),
    [
        (SimpleNamespace(), [3, 9, 5], 27),
        (SimpleNamespace(pad_to_multiple_of=8, packed=False), [8, 16, 8], 48),
        (SimpleNamespace(pad_to_multiple_of=8, packed=True), [3, 9, 5], 17),
    ],
)
def test_a_model_says_what_its_texts_take(model: Any, lengths: list[int], tokens: int) -> None:
    cutting = ChunkRule.of(model, 1000)
    assert cutting.lengths([text(3), text(9), text(5)]) == lengths
    assert cutting.tokens(lengths, [0, 1, 2]) == tokens


class Sums(nn.Module):
    """Embeds a text as (its id, its length), from either layout; ``seen`` has the tokens of each forward."""

    pad_to_multiple_of = 8

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed, self.seen = packed, list[int]()

    def collate(self, encoded: list[Encoded]) -> dict[str, Tensor]:
        assert self.packed
        return packed([one.data["input_ids"] for one in encoded])

    def forward(self, **inputs: Tensor) -> Embeddings:
        self.seen.append(inputs["input_ids"].numel())
        tokens = chunk_tokens(**inputs)
        first = tokens.pool(tokens.input_ids[0, :, None].float()[None], "cls")
        return Embeddings(torch.cat([first, tokens.lengths_N[:, None].float()], 1))


def test_the_loop_counts_what_the_hardware_sees() -> None:
    lengths = [3, 40, 5, 5, 17, 1, 9]
    encoded, model = [text(length, key) for key, length in enumerate(lengths)], Sums(packed=True)
    chunks = Chunks(encoded, model, EngineConfig(token_budget=32), CPU)
    found = chunks.in_order([chunks.forward(model, number) for number in range(len(chunks))])
    assert found.dense_ND is not None
    assert found.dense_ND.tolist() == [[float(key), float(length)] for key, length in enumerate(lengths)]
    assert model.seen == [chunks.tokens(number) for number in range(len(chunks))] == [40, 31, 9]
    assert tuple(chunks.sizes) == (3, sum(lengths), 40, 40)


@pytest.mark.parametrize("is_packed", [True, False])
def test_explain_and_plan_count_as_the_loop_does(is_packed: bool) -> None:
    lengths = [3, 40, 5, 5, 17, 1, 9]
    encoded, engine = [text(length, key) for key, length in enumerate(lengths)], EngineConfig(token_budget=32)
    model = Sums(is_packed)
    chunks = Chunks(encoded, model, engine, CPU)
    tokens = [chunks.tokens(number) for number in range(len(chunks))]
    assert (sum(tokens) == sum(lengths)) is is_packed
    host: Any = SimpleNamespace(encoded=encoded, rows=1, query_index=[0], passage_index=[1])
    views = _chunks([host], engine, ChunkRule.of(model, 32))
    assert [view.padded_tokens for view in views] == tokens
    assert sum(view.tokens for view in views) == sum(lengths)
    assert views[0].longest == 40
    found = DataProfile()
    _add(found, [host], engine, ChunkRule.of(model, 32))
    assert [shape.padded_tokens for shape in found.shares[0]] == tokens
    assert found.padding_share == pytest.approx(1 - sum(lengths) / sum(tokens))
