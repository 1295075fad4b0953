"""Joins and leaves the process group of a run, and has the few collectives outside the step."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from embed_core.errors import CheckpointError, ConfigError, EmbedError

T = TypeVar("T")


class RankLostError(RuntimeError):
    """Another rank stopped in the middle of a collective. The cause is in that rank's own message."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place in the process group. :func:`join` makes it."""

    rank: int
    world_size: int
    local_rank: int
    device: str
    """``cpu`` or ``cuda:N``."""

    @property
    def on_cuda(self) -> bool:
        """Whether the model runs on CUDA (and the collectives through NCCL)."""
        return self.device.startswith("cuda")

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable ``value``, on every rank."""
        if self.world_size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def on_rank_0(self, function: Callable[[], T]) -> T:
        """Run ``function`` on rank 0 only. Every rank gets its result, or raises the same EmbedError."""
        answer: tuple[T | None, str, str] = (None, "", "")
        if self.rank == 0:
            try:
                answer = (function(), "", "")
            except (EmbedError, OSError) as error:
                answer = (None, type(error).__name__, str(error))
        result, kind, message = self.broadcast(answer)
        if kind:
            raise next((c for c in EmbedError.__subclasses__() if c.__name__ == kind), CheckpointError)(message)
        return cast(T, result)

    def largest(self, value: int) -> int:
        """The largest of every rank's ``value``."""
        return max(self.gather(value)) if self.world_size > 1 else value


def environment() -> tuple[int, int, int]:
    """Rank, world size and local rank as launchers set them; (0, 1, 0) without one. Raises ConfigError on nonsense."""
    if "WORLD_SIZE" in os.environ and "RANK" not in os.environ and os.environ["WORLD_SIZE"] != "1":
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} and RANK is not set: start the ranks with torchrun, deepspeed "
            "or --nproc, or unset WORLD_SIZE"
        )
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from None
    if not 0 <= rank < world:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {world}: ranks are numbered from 0 to WORLD_SIZE - 1")
    return rank, world, local


def join(device: str = "auto") -> Ranks:
    """Join the process group the launcher describes (alone without one) through NCCL on CUDA and gloo on CPU.

    Raises ConfigError when CUDA is asked for and absent.
    """
    import torch

    rank, world, local = environment()
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ConfigError("engine.device: 'cuda' was asked for and no CUDA device is visible: use cpu or auto")
    use_cuda = cuda and device != "cpu"
    if use_cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local} has no device, {torch.cuda.device_count()} CUDA devices are visible: "
            "start as many ranks, or use engine.device: cpu"
        )
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        # oneDNN compiles a bf16 product for each shape; its default of 1,024 kept kernels is too few for a run.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    else:
        torch.cuda.set_device(local)  # before NCCL starts, which binds to the current device
    _quiet()
    _init_group("nccl" if use_cuda else "gloo", rank, world)
    return Ranks(rank, world, local, f"cuda:{local}" if use_cuda else "cpu")


def is_lost_rank(error: BaseException) -> bool:
    """Whether ``error`` is what a collective raises when another rank has gone away."""
    import torch.distributed as dist

    if isinstance(error, (dist.DistNetworkError, dist.DistBackendError)):
        return True
    # gloo reports every broken connection as a plain RuntimeError with the line of its source.
    return isinstance(error, RuntimeError) and re.search(r"gloo/transport", str(error)) is not None


def leave() -> None:
    """Destroy the process group, if this process is in one; it may join another afterwards."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    import deepspeed

    if deepspeed.comm.is_initialized():  # it keeps groups of its own, and forgets them here only
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()


def _init_group(backend: str, rank: int, world: int) -> None:
    import torch.distributed as dist

    if not dist.is_initialized():
        if world == 1 and "MASTER_ADDR" not in os.environ:
            # No port is opened for a group of one: nothing to collide with other runs on this machine.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(minutes=60))
    import deepspeed

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, launcher or not
    # DeepSpeed would compile its shared-memory all-reduce at start, which needs a C++ compiler; gloo serves as well.
    # It is set unasked, because the first question makes DeepSpeed try the compiler on every operator it has.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _quiet() -> None:
    """Silence DeepSpeed's log of defaults, and warnings about names that it uses and torch has deprecated."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
