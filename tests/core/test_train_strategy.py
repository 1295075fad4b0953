"""What fits: how much a forward keeps, how much is free, and what strategy and chunks follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from embed_core.batch.chunks import ChunkSizes
from embed_core.config.run import EngineConfig
from embed_core.distributed.process_group import Ranks
from embed_core.errors import EmbedError
from embed_core.hardware.memory import available_bytes, gib, host_bytes
from embed_core.profiling.storage_tracker import kept_bytes
from embed_core.train import strategy as fit_module
from embed_core.train.strategy import Probe, StrategyChooser

torch.set_num_threads(1)
ALONE = Ranks(0, 1, 0, "cpu")
MIB = 2**20


class Keeper(torch.autograd.Function):
    """Keeps a tensor as an attribute, where no saved-tensor hook sees it."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        ctx.kept = torch.zeros(1000)
        return value * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * 2


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))


def test_what_is_kept_is_what_autograd_saved_and_the_result() -> None:
    net, x_ND = perceptron(), torch.randn(50, 64)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()} | {x_ND.untyped_storage().data_ptr()}
    saved: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        result = net(x_ND)
    wanted = sum(saved.values()) + result.untyped_storage().nbytes()
    del result
    assert kept_bytes(lambda: net(x_ND), ALONE) == wanted
    assert kept_bytes(lambda: net(torch.cat([x_ND, x_ND])), ALONE) == pytest.approx(
        2 * wanted + 2 * x_ND.nbytes, rel=1e-6
    )


def test_without_a_graph_only_the_result_is_kept() -> None:
    net, x_ND = perceptron(), torch.randn(50, 64)
    with torch.no_grad():
        assert kept_bytes(lambda: net(x_ND), ALONE) == 50 * 64 * 4


def test_what_hooks_do_not_see_counts_too() -> None:
    x_ND = torch.randn(10, 4, requires_grad=True)
    assert kept_bytes(lambda: Keeper.apply(x_ND), ALONE) == 10 * 4 * 4 + 1000 * 4


def test_checkpointed_layers_keep_their_inputs_only() -> None:
    net, x_ND = perceptron(), torch.randn(50, 64)
    once: Any = lambda: checkpoint(net, net[0].weight[:50, :64] + x_ND, use_reentrant=False)  # noqa: E731
    kept = kept_bytes(once, ALONE)
    assert 2 * x_ND.nbytes <= kept < 0.3 * kept_bytes(lambda: net(x_ND), ALONE)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A fake /proc and /sys/fs/cgroup: 8 GiB available, no limits."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable:    8388608 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/a/b\n1:cpu:/\n0::/a/b\n")
    return tmp_path


def limit(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def free(host: Path) -> int:
    return host_bytes(host / "proc", host / "cgroup")


def test_the_hosts_memory_without_limits(host: Path) -> None:
    assert free(host) == 8 * 2**30
    limit(host / "cgroup/a/b", memory__max="max", memory__current=5)
    assert free(host) == 8 * 2**30


def test_the_tightest_cgroup_limits(host: Path) -> None:
    stat = f"anon 7\ninactive_file {MIB}\nactive_file 9"
    limit(host / "cgroup/a/b", memory__max=100 * MIB, memory__current=60 * MIB, memory__stat=stat)
    assert free(host) == 41 * MIB, "file pages not used lately are free"
    limit(host / "cgroup/a", memory__max=70 * MIB, memory__current=60 * MIB)
    assert free(host) == 10 * MIB
    limit(host / "cgroup/memory", memory__limit_in_bytes=9 * MIB, memory__usage_in_bytes=2 * MIB)
    assert free(host) == 7 * MIB, "version 1; a container sees its group as the root"
    limit(host / "cgroup/memory", memory__limit_in_bytes=MIB, memory__usage_in_bytes=2 * MIB)
    assert free(host) == 0


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed_core.hardware.memory.host_bytes", lambda: 800)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_bytes(Ranks(1, 4, 1, "cpu")) == 200
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_bytes(Ranks(1, 4, 1, "cpu")) == 400


def test_amounts_are_readable() -> None:
    assert [gib(1.25 * 2**30), gib(3 * MIB), gib(0)] == ["1.2 GiB", "3.0 MiB", "0.0 MiB"]


SIZES = ChunkSizes(chunks=4, padded_tokens=4000, chunk_tokens=1000, text_tokens=100)


class Measured:
    """A Fit whose machine and forward are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, strategy: str = "auto") -> None:
        self.lines: list[str] = []
        monkeypatch.setattr(fit_module, "available_bytes", lambda ranks: free)
        config = EngineConfig.model_validate({"strategy": strategy, "token_budget": 1000})
        self.fit = StrategyChooser(config, ALONE, self.lines.append)

    def measure(self, mib: int = 1, sizes: ChunkSizes = SIZES, reserved: int = 0) -> None:
        """A first chunk of 1000 tokens that keeps ``mib`` MiB."""
        probe = Probe(lambda: torch.zeros(mib * MIB // 4), 1000)
        self.fit.measure([probe, probe], reserved, sizes)


@pytest.mark.parametrize(
    ("free", "reserved", "wanted"),
    [
        (7 * MIB, 0, "direct"),  # 0.8 of 7 is 4 chunks and one more for the backward
        (6 * MIB, 0, "cached"),
        (7 * MIB, MIB, "cached"),  # the gradients' MiB is gone
        (8 * MIB, MIB, "direct"),
    ],
)
def test_direct_where_it_fits(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, wanted: str) -> None:
    measured = Measured(monkeypatch, free)
    assert measured.fit.must_measure(SIZES)
    measured.measure(reserved=reserved)
    assert measured.fit.strategy(SIZES) == wanted
    would = "keeps" if wanted == "direct" else "would keep"
    assert measured.lines == [f"strategy {wanted}: a batch {would} 4.0 MiB of {free // MIB}.0 MiB free"]
    assert not measured.fit.must_measure(SIZES), "once"


def test_a_larger_batch_is_cached_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, 7 * MIB)
    measured.measure()
    larger = SIZES._replace(padded_tokens=9000)
    found = [measured.fit.strategy(sizes) for sizes in (SIZES, larger, SIZES, larger)]
    assert found == ["direct", "cached", "direct", "cached"]
    assert measured.lines[1:] == [
        "strategy cached for batches above 4,600 tokens, as this one of 9,000: their graphs would not fit in memory"
    ]


def test_longer_texts_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, 7 * MIB)
    measured.measure()
    assert not measured.fit.must_measure(SIZES._replace(text_tokens=120))
    longer = SIZES._replace(text_tokens=200)
    assert measured.fit.must_measure(longer)
    measured.measure(mib=4, sizes=longer)
    assert measured.fit.strategy(longer) == "cached", "a token of a longer text keeps more"


def test_a_forward_that_cannot_even_be_measured_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, 7 * MIB)

    def fail() -> Any:
        raise torch.OutOfMemoryError("planted")

    measured.fit.measure([Probe(fail, 1000), Probe(fail, 1000)], 0, SIZES)
    assert measured.fit.strategy(SIZES) == "cached"
    assert measured.lines == ["strategy cached: a batch would keep more of 7.0 MiB free"]


@pytest.mark.parametrize(("free", "wanted"), [(8 * MIB, "cached"), (9 * MIB, "direct")])
def test_what_all_chunks_share_counts_once(monkeypatch: pytest.MonkeyPatch, free: int, wanted: str) -> None:
    """Weights converted for the batch: 2 MiB on top of the four chunks and the one that goes backward."""
    measured = Measured(monkeypatch, free)
    weights: list[torch.Tensor] = []

    def forward() -> torch.Tensor:
        if not weights:
            weights.append(torch.zeros(2 * MIB // 4))
        return torch.zeros(MIB // 4)

    measured.fit.measure([Probe(forward, 1000), Probe(forward, 1000)], 0, SIZES)
    assert measured.fit.strategy(SIZES) == wanted
    assert measured.lines == [
        f"strategy {wanted}: a batch {'keeps' if wanted == 'direct' else 'would keep'} "
        f"4.0 MiB of {free // MIB}.0 MiB free"
    ]


@pytest.mark.parametrize("strategy", ["direct", "cached"])
def test_a_strategy_that_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    measured = Measured(monkeypatch, 0, strategy)
    assert not measured.fit.must_measure(SIZES)
    assert measured.fit.strategy(SIZES) == strategy
    assert measured.lines == []


def test_shrinking_is_cached_first_and_then_half_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch, 0, "direct")
    fit = measured.fit
    fit.shrink(SIZES, "direct")
    assert (fit.strategy(SIZES), fit.config.chunk_tokens) == ("cached", 1000)
    assert fit.strategy(SIZES._replace(padded_tokens=3999)) == "direct", "smaller batches did fit"
    fit.shrink(SIZES, "cached")
    assert (fit.strategy(SIZES._replace(padded_tokens=3999)), fit.config.chunk_tokens) == ("cached", 500)
    fit.shrink(SIZES._replace(chunk_tokens=300), "cached")
    assert fit.config.chunk_tokens == 150, "half of what failed, not half of a budget that was never used up"
    with pytest.raises(EmbedError, match=r"at one text per chunk, of 100 tokens: shorten the texts"):
        fit.shrink(SIZES._replace(chunk_tokens=100), "cached")


def test_the_largest_sizes_are_taken_number_by_number() -> None:
    assert ChunkSizes.largest([(1, 90, 30, 9), (2, 80, 40, 8)]) == ChunkSizes(2, 90, 40, 9)
