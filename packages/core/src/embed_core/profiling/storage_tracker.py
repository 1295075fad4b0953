"""Bytes that a computation keeps alive, measured by following the storages that its operators make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embed_core.distributed.process_group import Ranks


def kept_bytes(forward: Callable[[], Any], ranks: Ranks) -> int:
    """Bytes that the result of ``forward`` keeps alive, its graph included; the result is thrown away."""
    if ranks.on_cuda:
        before = torch.cuda.memory_allocated(ranks.device)
        result = forward()
        kept = torch.cuda.memory_allocated(ranks.device) - before
    else:
        with _NewStorages() as new:
            result = forward()
        kept = new.alive_bytes()
    del result
    return int(kept)


class _NewStorages(TorchDispatchMode):
    """Every storage that operators make while the mode is on.

    Asking which of them still live afterwards sees whatever keeps them: autograd's saved tensors, the inputs of
    checkpointed layers, attributes of custom functions. Weights are somebody else's: they come as inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._new: dict[int, tuple[StorageWeakRef, int]] = {}
        self._others: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for reference, _ in _storages((args, kwargs)):
            # A weak reference also keeps the address from being given to another storage.
            if reference.cdata not in self._new:
                self._others.setdefault(reference.cdata, reference)
        result = func(*args, **(kwargs or {}))
        for reference, size in _storages(result):
            if reference.cdata not in self._others:
                self._new[reference.cdata] = (reference, size)
        return result

    def alive_bytes(self) -> int:
        """Bytes of those that something still refers to."""
        return sum(size for reference, size in self._new.values() if not reference.expired())


def _storages(tree: Any) -> Iterator[tuple[StorageWeakRef, int]]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
            storage = leaf.untyped_storage()
            yield StorageWeakRef(storage), storage.nbytes()
