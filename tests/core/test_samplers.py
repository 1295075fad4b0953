"""What every sampler promises: full batches, no row twice an epoch, a pure function of seed and draw."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.datasets.dedup import SharedIds, blocks_of, shared_ids
from embed_core.errors import ConfigError
from embed_core.protocols import Sampler
from embed_core.samplers.config import BySourceConfig, NoDuplicatesConfig, ShuffledConfig
from embed_core.samplers.no_duplicates import NoDuplicatesSampler, pack

CONFIGS = [ShuffledConfig, NoDuplicatesConfig, BySourceConfig]


class Rows:
    """A dataset of nothing but identities and sources."""

    name = "rows"

    def __init__(self, identities, sources=None):
        self.ids = [[int(i).to_bytes(8, "little") for i in row] for row in identities]
        self.sources = sources or ["only"] * len(self.ids)

    def __len__(self):
        return len(self.ids)

    def identities(self, row):
        return iter(self.ids[row])

    def source(self, row):
        return self.sources[row]


def numbered(rows) -> SharedIds:
    return shared_ids(blocks_of(iter(Rows(rows).ids)))


def distinct(rows: int) -> Rows:
    return Rows([[n] for n in range(rows)])


def build(config, dataset, batch_size, seed=42, said=None) -> Sampler:
    context = BuildContext(Registry(), seed=seed, announce=(said if said is not None else []).append)
    return config(batch_size=batch_size).build(context, dataset)


def epoch(sampler, number):
    draws = sampler.draws_per_epoch
    return [list(sampler.batch(draw)) for draw in range(number * draws, (number + 1) * draws)]


@given(
    config=st.sampled_from(CONFIGS), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch_size=st.integers(1, 12), families=st.integers(1, 30), seed=st.integers(0, 9),
)  # fmt: skip
@settings(deadline=None)
def test_every_sampler(config, sizes, batch_size, families, seed):
    sources = [f"s{s}" for s, size in enumerate(sizes) for _ in range(size)]
    dataset = Rows([[n, 1000 + n % families] for n in range(len(sources))], sources)
    feasible = {
        ShuffledConfig: len(dataset),
        NoDuplicatesConfig: min(len(dataset), families),
        BySourceConfig: max(sizes),
    }
    if batch_size > feasible[config]:
        with pytest.raises(ConfigError, match=f"^sampler.batch_size={batch_size}: "):
            build(config, dataset, batch_size, seed)
        return
    sampler = build(config, dataset, batch_size, seed)
    assert isinstance(sampler, Sampler)
    assert sampler.draws_per_epoch >= 1
    again = build(config, dataset, batch_size, seed)
    for number in (3, 0, 1):  # in any order
        batches = epoch(sampler, number)
        rows = [row for batch in batches for row in batch]
        assert all(len(batch) == batch_size for batch in batches)
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(range(len(dataset)))
        assert all(type(row) is int for row in rows)
        draw = (number + 1) * sampler.draws_per_epoch - 1
        assert list(again.batch(draw)) == batches[-1]
        for batch in batches:
            if config is NoDuplicatesConfig:
                assert len({row % families for row in batch}) == batch_size
            if config is BySourceConfig:
                assert len({sources[row] for row in batch}) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_epochs_and_seeds_differ(config):
    sampler, other = build(config, distinct(40), 4), build(config, distinct(40), 4, seed=7)
    assert epoch(sampler, 0) != epoch(sampler, 1)
    assert epoch(sampler, 0) != epoch(other, 0)


@pytest.mark.parametrize("config", CONFIGS)
def test_rows_left_over_change(config):
    sampler = build(config, distinct(10), 4)
    assert sampler.draws_per_epoch == 2
    assert {row for number in range(20) for batch in epoch(sampler, number) for row in batch} == set(range(10))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_larger_than_the_data(config):
    with pytest.raises(ConfigError) as caught:
        build(config, distinct(10), 11)
    assert str(caught.value) == ("sampler.batch_size=11: rows has only 10 training rows: set batch_size to at most 10")


def test_shuffled_is_uniform():
    sampler = build(ShuffledConfig, distinct(6), 2)
    pairs = Counter(tuple(sampler.batch(3 * n)) for n in range(3000))
    assert len(pairs) == 30
    assert all(60 < count < 145 for count in pairs.values())


def test_sources_come_in_proportion_at_random():
    dataset = Rows([[n] for n in range(100)], ["a"] * 67 + ["b"] * 30 + ["c"] * 3)
    said: list[str] = []
    sampler = build(BySourceConfig, dataset, 10, said=said)
    assert sampler.draws_per_epoch == 9
    orders = ["".join(dataset.sources[batch[0]] for batch in epoch(sampler, n)) for n in range(30)]
    assert all(Counter(order) == {"a": 6, "b": 3} for order in orders)
    assert len(set(orders)) > 20
    assert said == [
        "by-source: never drawn, for they have fewer rows than batch_size=10: 'c' (3)",
        "by-source: 7 rows short of a batch of their source are left out of every epoch, others each time",
    ]


def test_by_source_with_small_sources_only():
    dataset = Rows([[n] for n in range(10)], ["a"] * 4 + ["b"] * 6)
    with pytest.raises(ConfigError) as caught:
        build(BySourceConfig, dataset, 8)
    assert str(caught.value) == (
        "sampler.batch_size=8: no source of rows has that many rows; the largest, 'b', has 6: "
        "set batch_size to at most 6"
    )


@given(
    st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 9)
)
def test_packing_any_identities(rows, batch_size, seed):
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = pack(order, numbered(rows), batch_size).tolist()
    used = [row for batch in batches for row in batch]
    assert len(used) == len(set(used))
    for batch in batches:
        assert len(batch) == batch_size
        shared = Counter(identity for row in batch for identity in set(rows[row]))
        assert not shared or max(shared.values()) == 1


def test_rows_without_a_common_text_need_no_packing():
    order, nothing = np.random.default_rng(0).permutation(50), np.zeros(51, dtype=np.int32)
    alone = pack(order, SharedIds(np.empty(0, np.int32), nothing, 0), 8)
    assert alone.tolist() == pack(order, SharedIds(np.empty(0, np.int32), nothing, 1), 8).tolist()
    assert alone.tolist() == order[:48].reshape(6, 8).tolist()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 10), st.integers(0, 5))
def test_packing_families_is_close_to_the_best(families, batch_size, seed):
    """Of disjoint families, K batches can be filled if and only if Σ min(size, K) ≥ K·batch_size."""
    rows = [[f] for f, size in enumerate(families) for _ in range(size)]
    best = max(k for k in range(len(rows) + 1) if sum(min(size, k) for size in families) >= k * batch_size)
    assume(best > 0)
    order = np.random.default_rng(seed).permutation(len(rows))
    assert len(pack(order, numbered(rows), batch_size)) >= 0.7 * best - 1


def test_five_questions_a_paragraph_are_nearly_all_used():
    dataset = Rows([[n, 10**6 + n // 5] for n in range(10_000)])
    for batch_size in (8, 64, 512):
        assert build(NoDuplicatesConfig, dataset, batch_size).draws_per_epoch >= 0.98 * (10_000 // batch_size)


def test_no_duplicates_says_what_does_not_fit():
    said: list[str] = []
    dataset = Rows([[n, 1000 if n % 2 else 2000 + n] for n in range(100)])  # one text in half of the rows
    sampler = build(NoDuplicatesConfig, dataset, 10, said=said)
    assert sampler.draws_per_epoch == 5
    assert said == [
        "no-duplicates: 50 of 100 rows do not fit into an epoch, others each time: "
        "they share texts with too many others"
    ]
    with pytest.raises(ConfigError) as caught:
        build(NoDuplicatesConfig, Rows([[n % 3] for n in range(100)]), 4)
    assert str(caught.value) == (
        "sampler.batch_size=4: no 4 rows without a common text were found among the 100 of rows: "
        "lower batch_size, or use the sampler `shuffled`"
    )


def test_an_epoch_that_packs_worse_repeats_the_first(monkeypatch):
    sampler = NoDuplicatesSampler(distinct(12), 0, 3, print)
    real = sampler._packed
    tried: list[tuple[int, int]] = []

    def worse(number, attempt):
        tried.append((number, attempt))
        return real(number, attempt)[: 4 if number == 0 else 3]

    monkeypatch.setattr(sampler, "_packed", worse)
    batches = epoch(sampler, 5)
    assert tried == [(5, 0), (5, 1), (5, 2), (0, 0)]
    assert sorted(map(sorted, batches)) == sorted(map(sorted, real(0, 0)))


def test_planning_takes_ten_times_as_long_for_ten_times_the_rows():
    def seconds(count: int) -> float:
        generator = np.random.default_rng(0)
        zipf = Rows(
            [[n, 10**6 + min(x, 10**5), 10**7 + y] for n, (x, y) in enumerate(
                zip(generator.zipf(1.5, count), generator.integers(count // 2, size=count), strict=True))]
        )  # fmt: skip
        started = time.process_time()
        for config in CONFIGS:
            build(config, zipf, 64).batch(0)
        return time.process_time() - started

    few = min(seconds(10_000) for _ in range(2))
    assert seconds(100_000) < 40 * few  # a quadratic one would take a hundred times as long


def test_a_plan_is_made_once_an_epoch(monkeypatch):
    sampler = build(ShuffledConfig, distinct(20), 4)
    plan, calls = sampler.plan, SimpleNamespace(count=0)

    def counted(number):
        calls.count += 1
        return plan(number)

    monkeypatch.setattr(sampler, "plan", counted)
    epoch(sampler, 0)
    epoch(sampler, 1)
    assert calls.count == 2
