"""Embeddings of the collection on disk, in shards of a fixed size, so that no text is encoded twice.

Shard n goes to rank n modulo the number of ranks. Its content depends on its own texts alone, neither on the ranks nor
on what was done before a kill.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from embed_core.embeddings import concat, select, to_device
from embed_core.types import Embeddings, MultiVectors, SparseVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from embed_core.config.context import BuildContext
    from embed_core.distributed.process_group import Ranks
    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.output.progress import Progress
    from embed_data.mining.rank.model import TextEncoder

    Encode = Callable[[Sequence[str]], Embeddings]
    """Encodes texts. A collective: all ranks call it."""

SHARD = 1024
"""Documents per shard, which is also the tile of the exact search."""


class Shards:
    """The shards of one collection, encoded by one model."""

    def __init__(self, folder: Path, name: str, documents: int, device: str) -> None:
        self._folder, self._name, self._documents, self._device = folder, name, documents, device
        self.count = -(-documents // SHARD)

    def encode(self, collection: Collection, encoder: TextEncoder, ranks: Ranks, progress: Progress) -> None:
        """Encode this rank's missing shards, then wait for the other ranks."""
        own = range(ranks.rank, self.count, ranks.world_size)
        done = sum(self._size(n) for n in own if self._path(n).exists())
        with progress.stage(f"encoding documents ({self._name})", sum(map(self._size, own)), done) as advance:
            for number in own:
                if not self._path(number).exists():
                    start = number * SHARD
                    texts = [collection.document(start + n).text for n in range(self._size(number))]
                    self._save(number, encoder.encode(texts, "passage"))
                    advance(len(texts))
        ranks.barrier()

    def encode_together(self, text: Callable[[int], str], encode: Encode, ranks: Ranks | BuildContext) -> None:
        """As :meth:`encode`, with a model that is sharded over the ranks: all call ``encode`` equally often, without
        texts once their own are done. ``text`` gives a document's text by its number."""
        for first in range(0, self.count, ranks.world_size):
            number = first + ranks.rank
            wanted = number < self.count and not self._path(number).exists()
            start = number * SHARD
            texts = [text(start + n) for n in range(self._size(number))] if wanted else []
            encoded = encode(texts)
            if wanted:
                self._save(number, encoded)
        ranks.barrier()

    def load(self, number: int) -> Embeddings:
        """One shard, on the device. The file is memory-mapped, so that shards read lately come from memory."""
        return to_device(_from_tensors(load_file(self._path(number))), self._device)

    def take(self, documents: Sequence[int]) -> Embeddings:
        """The embeddings of some documents, in the order given; each shard is read once."""
        order = sorted(range(len(documents)), key=lambda n: documents[n])
        parts = [
            select(self.load(shard), torch.tensor([documents[n] - shard * SHARD for n in members]))
            for shard, members in groupby(order, key=lambda n: documents[n] // SHARD)
        ]
        back = torch.empty(len(order), dtype=torch.int64)
        back[torch.tensor(order)] = torch.arange(len(order))
        return select(concat(parts), back)

    def _size(self, number: int) -> int:
        return min(SHARD, self._documents - number * SHARD)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:06}.safetensors"

    def _save(self, number: int, embeddings: Embeddings) -> None:
        path = self._path(number)
        temporary = path.with_suffix(".tmp")
        save_file(_to_tensors(to_device(embeddings, "cpu")), temporary)
        temporary.replace(path)


def _to_tensors(e: Embeddings) -> dict[str, Tensor]:
    found = {} if e.dense_ND is None else {"dense_ND": e.dense_ND}
    for part in (e.sparse, e.multi):
        if part is not None:
            found |= {f"{type(part).__name__}.{name}": value for name, value in part._asdict().items()}
    return {name: value.contiguous() for name, value in found.items()}


def _from_tensors(found: dict[str, Tensor]) -> Embeddings:
    def part(of: type[SparseVectors] | type[MultiVectors]) -> dict[str, Tensor]:
        mark = f"{of.__name__}."
        return {name.removeprefix(mark): value for name, value in found.items() if name.startswith(mark)}

    sparse, multi = part(SparseVectors), part(MultiVectors)
    return Embeddings(
        found.get("dense_ND"), SparseVectors(**sparse) if sparse else None, MultiVectors(**multi) if multi else None
    )
