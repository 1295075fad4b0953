"""Measures the bytes that a computation keeps alive, by following the storages that its operators make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embed_core.distributed.process_group import Ranks


def kept_bytes(forward: Callable[[], Any], ranks: Ranks) -> int:
    """Count the bytes that the result of ``forward`` keeps alive, its graph included; the result is thrown away."""
    if ranks.on_cuda:
        before = torch.cuda.memory_allocated(ranks.device)
        result = forward()
        kept = torch.cuda.memory_allocated(ranks.device) - before
    else:
        with StorageTracker() as new:
            result = forward()
        kept = new.alive_bytes()
    del result
    return int(kept)


class StorageTracker(TorchDispatchMode):
    """Follows every storage that operators make while the mode is on.

    Asking which of them still live sees whatever keeps them: autograd's saved tensors, the inputs of checkpointed
    layers, attributes of custom functions. Storages that were there before, such as weights, come as inputs of
    operators and do not count; ``known`` names those that do not. ``trace`` notes the bytes alive after every operator.
    """

    def __init__(self, known: Sequence[torch.Tensor] = (), *, trace: bool = False) -> None:
        super().__init__()
        self._new: dict[int, tuple[StorageWeakRef, int]] = {}
        self._others = {reference.cdata: reference for reference, _ in _storages(list(known))}
        self._trace = trace
        self.traced: list[int] = []

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
        if self._trace:
            self._new = {key: pair for key, pair in self._new.items() if not pair[0].expired()}
            self.traced.append(self.alive_bytes())
        return result

    def alive_bytes(self) -> int:
        """Bytes of the new storages that something still refers to."""
        return sum(size for reference, size in self._new.values() if not reference.expired())


def _storages(tree: Any) -> Iterator[tuple[StorageWeakRef, int]]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
            storage = leaf.untyped_storage()
            yield StorageWeakRef(storage), storage.nbytes()
