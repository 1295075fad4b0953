"""Peak arithmetic per second and memory of devices, from a table or measured.

Peaks are dense (no structured sparsity) and accumulate in fp32, as training does; fp32 is that of the ordinary cores,
torch's default, not TF32. Sources: NVIDIA's data sheets (B200: HGX B200; H200, H100 SXM, PCIe and NVL; A100 SXM and
PCIe; L40S, L4, A10; V100 SXM2; T4), its architecture papers of the GeForce cards (GA102 and AD102: half of the rate
with fp16 accumulation) and AMD's data sheet of the MI300X. Data sheets that give a rate "with sparsity" are halved.
Memory is what the driver reports, a little less than the name of the card says.
"""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass, replace

from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError, did_you_mean
from embed_core.hardware.memory import GIB, available_bytes

TERA = 1e12
CUDA_CONTEXT = 0.75 * GIB
"""Bytes of a GPU that CUDA and its libraries' workspaces take themselves."""
FRAGMENTED = 0.05
"""Share of a GPU's memory that the allocator holds and cannot use."""
MEASURED_SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
"""Rows of square matrices: the larger come closer to the peak, the smaller end before another process interrupts."""
MEASURED_SECONDS, MEASURED_TIMES = 0.2, 24
"""Minimum seconds and repetitions: on a busy machine most of the products are interrupted."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a rank."""

    name: str
    memory: float
    """Bytes."""
    fp32: float
    """Peak FLOP/s in fp32; ``bf16`` and ``fp16`` likewise, 0 where the hardware does not multiply in them."""
    bf16: float = 0.0
    fp16: float = 0.0
    words: tuple[str, ...] = ()
    """Words that all occur in the name that the driver gives the device."""

    def peak(self, precision: str) -> float | None:
        """Peak FLOP/s in ``engine.precision``; ``None`` where the device has no units for it."""
        return {"fp32": self.fp32, "bf16": self.bf16, "fp16": self.fp16}[units(precision)] or None

    @property
    def usable(self) -> float:
        """Bytes that tensors can fill."""
        return self.memory if self.name == "cpu" else self.memory * (1 - FRAGMENTED) - CUDA_CONTEXT


def _gpu(name: str, gib: float, fp32: float, half: float, *words: str, bf16: bool = True) -> Device:
    return Device(name, gib * GIB, fp32 * TERA, half * TERA if bf16 else 0.0, half * TERA, words)


TABLE = (
    _gpu("b200", 179, 75, 2250, "b200"),
    _gpu("h200", 140.4, 66.9, 989.4, "h200"),
    _gpu("h200-nvl", 140.4, 60, 835.5, "h200", "nvl"),
    _gpu("h100", 79.6, 66.9, 989.4, "h100"),
    _gpu("h100-pcie", 79.6, 51.2, 756.5, "h100", "pcie"),
    _gpu("h100-nvl", 93.6, 60, 835.5, "h100", "nvl"),
    _gpu("a100", 80, 19.5, 312, "a100"),
    _gpu("a100-40gb", 40, 19.5, 312, "a100", "40gb"),
    _gpu("l40s", 45, 91.6, 362, "l40s"),
    _gpu("l4", 22.5, 30.3, 121, "l4"),
    _gpu("a10", 22.5, 31.2, 125, "a10"),
    _gpu("rtx4090", 24, 82.6, 165.2, "rtx", "4090"),
    _gpu("rtx3090", 24, 35.6, 71, "rtx", "3090"),
    _gpu("v100", 32, 15.7, 125, "v100", "sxm2", bf16=False),
    _gpu("t4", 15, 8.1, 65, "t4", bf16=False),
    _gpu("mi300x", 191.7, 163.4, 1307.4, "mi300x"),
)
NOT_WHOLE = re.compile(r"\b(mig|laptop|max-q)\b", re.IGNORECASE)
"""Marks a slice of a GPU, or one with other clocks, whose name says nothing about its speed."""


def named(name: str) -> Device:
    """The device of the table that users call ``name``. Raises ConfigError for one that is not there."""
    found = {device.name: device for device in TABLE}
    if name.lower() not in found:
        known = ["cpu", *found]
        raise ConfigError(
            f"--device {name!r}: {did_you_mean(name, known)}; without --device it is the one of this machine"
        )
    return found[name.lower()]


def known_as(driver_name: str) -> Device | None:
    """The device of the table that a driver calls ``NVIDIA H100 80GB HBM3``; ``None`` for one that it lacks."""
    if NOT_WHOLE.search(driver_name):
        return None
    words = set(re.split(r"[\s_-]+", driver_name.lower()))
    fitting = [device for device in TABLE if words.issuperset(device.words)]
    return max(fitting, key=lambda device: len(device.words), default=None)


def local(ranks: Ranks, precision: str) -> Device:
    """This rank's own device, with the memory that is free for it now.

    Where the table lacks it (every CPU) its peak in ``precision`` is measured, which takes a quarter of a second.
    """
    free = float(available_bytes(ranks))
    if not ranks.on_cuda:
        return replace(_measured("cpu", ranks.device, precision), memory=free)
    import torch

    name = torch.cuda.get_device_name(ranks.device)
    found = known_as(name) or _measured(name, ranks.device, precision)
    _, total = torch.cuda.mem_get_info(ranks.device)
    return replace(found, memory=min(float(total), free + CUDA_CONTEXT))


def units(precision: str) -> str:
    """The format in which ``engine.precision`` multiplies matrices: ``fp32``, ``bf16`` or ``fp16``."""
    return "bf16" if precision == "bf16-weights" else precision


def _measured(name: str, device: str, precision: str) -> Device:
    peak = {units(precision): measured_peak(device, units(precision))}
    return Device(name, 0.0, peak.get("fp32", 0.0), peak.get("bf16", 0.0), peak.get("fp16", 0.0))


def peak_of(ranks: Ranks, precision: str) -> tuple[float | None, bool]:
    """Peak FLOP/s of this rank's device in ``precision``, and whether that was measured rather than looked up."""
    if ranks.on_cuda:
        import torch

        found = known_as(torch.cuda.get_device_name(ranks.device))
        if found is not None:
            return found.peak(precision), False
    return measured_peak(ranks.device, units(precision)), True


@functools.cache
def measured_peak(device: str, precision: str) -> float:
    """FLOP/s of the best of some square matrix products in ``precision`` (``fp32``, ``bf16``, ``fp16``), by as many
    threads as torch has. Measured once in a process, for about a quarter of a second.
    """
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    on_gpu = device.startswith("cuda")
    sizes = MEASURED_SIZES["cuda" if on_gpu else "cpu"]
    matrices = [torch.full((size, size), 0.5, dtype=dtype, device=device) for size in sizes]
    best, times, until = 0.0, 0, time.perf_counter() + MEASURED_SECONDS
    while times < MEASURED_TIMES or time.perf_counter() < until:
        times += 1
        for matrix in matrices:
            started = time.perf_counter()
            torch.matmul(matrix, matrix)
            if on_gpu:
                torch.cuda.synchronize(device)
            best = max(best, 2 * len(matrix) ** 3 / (time.perf_counter() - started))
    return best
