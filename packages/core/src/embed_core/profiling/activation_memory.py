"""Measures the memory that a forward and backward of a chunk hold, on the model itself.

On CPUs every operation of a tiny chunk is watched. The bytes that are alive after it are c + n·(p·L + q·L²) for n texts
of L tokens, with other numbers c, p and q for each operation, and three chunks determine them. The largest over the
operations is the peak of any other chunk, which never has to run: so a chunk of a large GPU can be measured on a small
machine. On GPUs chunks of the real size run, and the allocator is asked.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embed_core.batch.chunks import ChunkRule
from embed_core.embeddings import values
from embed_core.hardware.oom import is_out_of_memory
from embed_core.profiling.storage_tracker import StorageTracker
from embed_core.types import Encoded
from embed_core.zero.engine import Trainable

Bytes = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes alive after each operation of a forward and a backward, beyond those alive before."""

    alive: Bytes
    after_forward: int
    """Index of the forward's last operation. The backward needs what is alive then."""

    @property
    def kept(self) -> float:
        """Bytes that the forward leaves for the backward."""
        return float(self.alive[self.after_forward])

    @property
    def peak(self) -> float:
        """The most bytes that are alive at any time."""
        return float(self.alive.max())


def trace_on_cpu(forward: Callable[[], Sequence[Tensor]], known: Sequence[Tensor], *, backward: bool = True) -> Trace:
    """Trace ``forward`` (which returns the tensors whose gradient is taken) and its backward on CPU.

    ``known`` are tensors that existed before and do not count. Leaves should have gradients already, else those count.
    """
    watch = StorageTracker(known, trace=True)
    with watch:
        outputs = list(forward())
        after_forward = len(watch.traced) - 1
        if backward:
            torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
    return Trace(np.array(watch.traced, dtype=np.float64), after_forward)


def trace_on_gpu(forward: Callable[[], Sequence[Tensor]], device: str) -> Trace:
    """Trace ``forward`` and its backward on a GPU by its allocator: the bytes kept after the forward, and the peak."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    outputs = list(forward())
    kept = torch.cuda.memory_allocated(device) - before
    torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
    torch.cuda.synchronize(device)
    return Trace(np.array([kept, torch.cuda.max_memory_allocated(device) - before], dtype=np.float64), 0)


Sample = tuple[int, int, Trace]
"""The number of texts of a chunk, the tokens that each is padded to, and the trace."""


@dataclass(frozen=True, slots=True)
class ActivationFit:
    """Bytes of a chunk of n texts of L tokens at every traced operation: c + n·(p·L + q·L²)."""

    coefficients: Bytes
    """One row each for c, p and q; one column per operation."""
    after_forward: int

    @property
    def kept_once(self) -> float:
        """Bytes that the forward of a chunk keeps whatever its size, and further chunks share: converted weights."""
        return float(max(0.0, self.coefficients[0][self.after_forward]))

    def trace(self, texts: int, length: float) -> Trace:
        """Predict the trace of a chunk of ``texts`` padded to ``length`` tokens."""
        alive = np.array([1.0, texts * length, texts * length**2]) @ self.coefficients
        return Trace(np.maximum(alive, 0.0), self.after_forward)


def fit_activations(samples: Sequence[Sample]) -> ActivationFit:
    """Fit the bytes by least squares. Samples need several numbers of texts (two at least: some operations are left
    out for a single one) and, where the model's items differ in length, several lengths."""
    traces = [trace for _, _, trace in samples]
    alive, after = [trace.alive for trace in traces], traces[0].after_forward
    if len({(trace.after_forward, len(trace.alive)) for trace in traces}) > 1:
        # The operations depend on the data: only the forward's end and the peak can be compared.
        alive, after = [np.array([trace.kept, trace.peak]) for trace in traces], 0
    known = np.array([[1.0, texts * length, texts * length**2] for texts, length, _ in samples])
    # Without different lengths a text's bytes are taken to grow with its length.
    columns = 3 if len({length for _, length, _ in samples}) > 1 else 2
    scale = known[:, :columns].max(axis=0)
    found = np.linalg.lstsq(known[:, :columns] / scale, np.stack(alive), rcond=None)[0] / scale[:, None]
    coefficients = np.zeros((3, len(alive[0])))
    coefficients[:columns] = found
    return ActivationFit(coefficients, after)


class ChunkProbe:
    """Runs chunks of a model forward and backward on ``device`` as the loop does.

    Every trainable parameter gets a gradient first, because gradients belong to the training state, not to a chunk.
    """

    def __init__(self, module: Trainable, device: str) -> None:
        self.module, self.device = module, device
        self.model: Any = module.model
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def padded(self, length: int) -> int:
        """The length that texts of ``length`` tokens are padded to in a chunk of their own."""
        multiple = ChunkRule.of(self.model, length).multiple
        return -(-length // multiple) * multiple

    def trace(self, encoded: Sequence[Encoded]) -> Trace:
        """Trace the forward and backward of one chunk."""
        inputs = self._inputs(encoded)
        if self.device != "cpu":
            return trace_on_gpu(lambda: self._forward(inputs), self.device)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        known = [*self.model.parameters(), *self.model.buffers(), *gradients, *inputs.values()]
        return trace_on_cpu(lambda: self._forward(inputs), known)

    def run(self, encoded: Sequence[Encoded]) -> None:
        """Run the forward and backward of one chunk."""
        outputs = list(self._forward(self._inputs(encoded)))
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
        self.wait()

    def run_forward(self, encoded: Sequence[Encoded]) -> None:
        """Run a forward without a graph: the first of the two that the cached strategy makes."""
        with torch.no_grad():
            self._forward(self._inputs(encoded))
        self.wait()

    def fits(self, encoded: Sequence[Encoded]) -> bool:
        """Whether a chunk runs in the memory there is."""
        try:
            self.run(encoded)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        gc.collect()  # the error's frames held the chunk's tensors
        if self.device != "cpu":
            torch.cuda.empty_cache()
        return False

    def wait(self) -> None:
        """Wait until the device is done."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def _inputs(self, encoded: Sequence[Encoded]) -> Mapping[str, Tensor]:
        return {name: value.to(self.device) for name, value in self.model.collate(encoded).items()}

    def _forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with self.module.together():
            embeddings = self.module(**inputs)
        # A kind of embedding that no trained parameter reaches has no graph.
        return [value for value in values(embeddings) if value.requires_grad]


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """Find the largest n up to ``limit`` for which ``fits(n)``, 0 where none does, by doubling and then bisecting.

    ``fits`` is true up to some number and false from there on.
    """
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
