"""The table of devices, how a driver's name finds its row, and the peak that is measured where it does not."""

from __future__ import annotations

import time

import pytest
import torch

from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.hardware import specs
from embed_core.hardware.memory import GIB, available_bytes

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("Tesla T4", "t4"),
        ("AMD Instinct MI300X", "mi300x"),
        # Others that look like one of them, and are slower.
        ("NVIDIA A10G", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
        ("Tesla V100-PCIE-32GB", None),
    ],
)
def test_drivers_names(driver: str, name: str | None) -> None:
    found = specs.known_as(driver)
    assert (found and found.name) == name


def test_names_are_unique_and_found_in_any_case() -> None:
    names = [device.name for device in specs.TABLE]
    assert len(names) == len(set(names))
    assert all(specs.named(name.upper()).name == name for name in names)


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        specs.named("h20")
    message = str(error.value)
    assert message.startswith("--device 'h20': ")
    assert "h200" in message
    assert message.endswith("without --device it is the one of this machine")
    assert "\n" not in message


def test_peaks() -> None:
    """The figures that NVIDIA prints: H200 SXM 989 TFLOP/s dense bf16 (1,979 with sparsity), A100 312, T4 no bf16."""
    assert specs.named("h200").peak("bf16") == pytest.approx(1979e12 / 2, rel=1e-3)
    assert specs.named("a100").peak("fp16") == 312e12
    assert specs.named("a100").peak("fp32") == 19.5e12
    assert specs.named("t4").peak("bf16") is None
    assert specs.named("t4").peak("fp16") == 65e12
    for device in specs.TABLE:
        assert device.fp32 < device.fp16 < 3e15
        assert 14 * GIB < device.memory < 200 * GIB
        assert 0.9 * device.memory < device.usable + specs.CUDA_CONTEXT < device.memory


def test_a_cpu_is_measured() -> None:
    specs.measured_peak.cache_clear()
    peak = specs.measured_peak("cpu", "fp32")
    matrix = torch.ones(512, 512)
    rates = []
    for _ in range(20):
        started = time.perf_counter()
        matrix @ matrix
        rates.append(2 * 512**3 / (time.perf_counter() - started))
    assert 0.1 < peak / max(rates) < 10, "the order of magnitude: the machine may be busy"
    assert specs.measured_peak("cpu", "fp32") == peak, "measured once"


def test_the_device_of_this_rank() -> None:
    alone, shared = (specs.local(Ranks(0, ranks, 0, "cpu"), "fp32") for ranks in (1, 4))
    assert (alone.name, alone.bf16) == ("cpu", 0.0)
    assert alone.peak("fp32") == specs.measured_peak("cpu", "fp32")
    assert alone.memory == pytest.approx(available_bytes(Ranks(0, 1, 0, "cpu")), rel=0.2)
    assert shared.memory == pytest.approx(alone.memory / 4, rel=0.2), "ranks on CPUs share the machine"
    assert alone.usable == alone.memory
    assert specs.peak_of(Ranks(0, 1, 0, "cpu"), "fp32") == (alone.peak("fp32"), True)


def test_the_gpu_of_this_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that is not there: name, free memory and total as it would say."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (60 * GIB, 79 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 1 * GIB)
    found = specs.local(Ranks(0, 1, 0, "cuda:0"), "bf16")
    assert (found.name, found.peak("bf16")) == ("a100", 312e12)
    assert found.memory == 62 * GIB + specs.CUDA_CONTEXT, "what is free, not what the card has"
    assert specs.peak_of(Ranks(0, 1, 0, "cuda:0"), "bf16") == (312e12, False)
