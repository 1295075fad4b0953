"""Measures how much memory is left for this rank, on its GPU or on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from embed_core.distributed.process_group import Ranks

GIB = 2**30
CGROUP_ROOT, PROC = Path("/sys/fs/cgroup"), Path("/proc")


def available_bytes(ranks: Ranks) -> int:
    """Bytes this rank may still take: the rest of its device, or its share of the host's within the cgroup's limit."""
    if ranks.on_cuda:
        free, _ = torch.cuda.mem_get_info(ranks.device)
        # Blocks that torch's allocator holds and no tensor uses are free to us.
        return int(free + torch.cuda.memory_reserved(ranks.device) - torch.cuda.memory_allocated(ranks.device))
    return host_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))


def host_bytes(proc: Path = PROC, cgroups: Path = CGROUP_ROOT) -> int:
    """Bytes of memory that the processes of this host (or container) may still take."""
    left = _cgroup_bytes(proc, cgroups)
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *left])
    # Not Linux: half of the built-in memory, since nothing says how much is in use.
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2, *left])


def _cgroup_bytes(proc: Path, root: Path) -> list[int]:
    """Bytes left below each limit of this process's cgroup and of those above it, versions 2 and 1."""
    left = []
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        left += list(_below(folder, path, names))
    return left


def _below(folder: Path, path: str, names: Sequence[str]) -> Iterator[int]:
    """Bytes left in a group and its parents. Missing folders are skipped: a container sees its group as the root."""
    limit_name, used_name, cache_name = names
    own = folder / path.strip("/")
    for group in [own, *(parent for parent in own.parents if parent.is_relative_to(folder))]:
        limit, used = _text(group / limit_name).strip(), _text(group / used_name).strip()
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines())
            # File pages that were not used lately go first when memory runs short: they are not really taken.
            yield max(0, int(limit) - int(used) + int(stat.get(cache_name, 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def gib(count: float) -> str:
    """``1.2 GiB``; smaller amounts in MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
