"""Looks a teacher's vectors up in the teacher store, and computes those that it lacks. No other module does."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_distill.store.inventory import store_root
from embed_distill.store.keys import digest, keys_array, sorted_once
from embed_distill.store.store import VectorStore
from embed_distill.teacher.fingerprint import identify

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from embed_core.config.context import BuildContext
    from embed_core.types import Item, Role
    from embed_distill.store.codec import Dtype
    from embed_distill.store.keys import Keys
    from embed_distill.teacher.config import TeacherConfig
    from embed_distill.teacher.protocol import Teacher

Asked = Sequence[tuple[Any, "Role"]]


class Source:
    """One teacher's vectors. The model is loaded only when a vector is missing."""

    def __init__(self, config: TeacherConfig, root: Path, dtype: Dtype, context: BuildContext) -> None:
        self.config, self.context = config, context
        with context.first():  # rank 0 reads a large model's files first; the others find the digest
            self.identity = identify(config, root, context)
        self.folder = root / f"{self.identity.name}-{dtype}"
        facts = {"teacher": config.label, "stored": dtype, **self.identity.facts}
        self.store = VectorStore(self.folder, dtype, facts, context.announce)
        self.computed = 0
        """Number of vectors that the teacher has computed in this process."""
        self.found = 0
        """Number of vectors that came from the store in this process."""
        self._teacher: Teacher | None = None

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._teacher is not None

    def key(self, item: Item, role: Role) -> bytes:
        """The key of the vector in the store."""
        return digest(item, self.identity.salts[role])

    def fingerprint(self) -> str:
        """Identifies the teacher, its prompts and lengths, and the storage format of its vectors."""
        salts = self.identity.salts
        return f"{self.folder.name}:{salts['query'].hex()}:{salts['passage'].hex()}"

    def vectors(self, asked: Asked) -> NDArray[np.float32]:
        """fp32 ``[N, W]`` of unit length, rounded as stored, so the first call returns the same as every other."""
        every_N2 = keys_array(self.key(item, role) for item, role in asked)
        once = sorted_once(every_N2)
        vectors_MW, found_M = self.store.get(every_N2[once])
        self.found += int(found_M.sum())
        missing = once[~found_M]
        if len(missing):
            missing.sort()  # keep the order of `asked`, which does not depend on the keys
            made_MW = self._computed([asked[place] for place in missing.tolist()], every_N2[missing])
            if vectors_MW is None:
                vectors_MW = np.zeros((len(once), made_MW.shape[1]), dtype=np.float32)
            vectors_MW[_ranks_of(missing, once)] = made_MW
        assert vectors_MW is not None, "every vector was found or made"
        place = {key: at for at, key in enumerate(map(bytes, every_N2[once]))}
        whole = vectors_MW[[place[bytes(key)] for key in every_N2]]
        lengths_N1 = np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)
        found: NDArray[np.float32] = (whole / lengths_N1).astype(np.float32, copy=False)
        return found

    def compute(self, asked: Asked) -> None:
        """Add the vectors of ``asked`` that the store lacks; ``asked`` has no repeats."""
        keys_N2 = keys_array(self.key(item, role) for item, role in asked)
        missing = np.flatnonzero(~self.store.has(keys_N2))
        if len(missing):
            self._computed([asked[place] for place in missing.tolist()], keys_N2[missing])

    def load(self, *, together: bool = False) -> Teacher:
        """The model, loaded at the first call. ``together`` means that every rank calls it now: building some models
        needs all ranks."""
        if self._teacher is None:
            self.context.announce(f"teacher: loading {self.config.label}")
            context = self.context if together else replace(self.context, barrier=lambda: None)
            self._teacher = self.config.load(self.identity, context)
        return self._teacher

    def unload(self) -> None:
        """Free the model's memory; it is loaded again when another vector is missing."""
        if self._teacher is None:
            return
        self._teacher = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _computed(self, asked: Asked, keys_N2: Keys) -> NDArray[np.float32]:
        made = self.load().vectors(asked)
        self.computed += len(asked)
        return self.store.put(keys_N2, made)


class Sources:
    """All teachers of a run. Their vectors are concatenated and scaled so that the whole has unit length.

    The inner product of two such vectors is the mean of the teachers' cosines.
    """

    def __init__(self, each: Sequence[Source]) -> None:
        assert each, "the config sees to it"
        self.each = list(each)

    @classmethod
    def of(cls, teachers: Sequence[TeacherConfig], store: str | None, dtype: Dtype, context: BuildContext) -> Sources:
        """Raises CheckpointError for a teacher that is not there, DataError for a store that cannot be written."""
        root = store_root(store, context.cache_dir)
        return cls([Source(config, root, dtype, context) for config in teachers])

    @property
    def computed(self) -> int:
        """Number of vectors computed by the teachers in this process."""
        return sum(one.computed for one in self.each)

    @property
    def found(self) -> int:
        """Number of vectors that came from the store in this process."""
        return sum(one.found for one in self.each)

    def vectors(self, asked: Asked) -> NDArray[np.float32]:
        """Vectors of unit length, fp32 ``[N, W]``; W is the sum of the teachers' widths."""
        parts = [one.vectors(asked) for one in self.each]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) / np.float32(np.sqrt(len(parts)))

    def fingerprint(self) -> str:
        """Identifies all teachers and the storage format of their vectors."""
        return ",".join(one.fingerprint() for one in self.each)


def _ranks_of(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of ``values`` in ``among``."""
    order = np.argsort(among)
    found: NDArray[np.int64] = order[np.searchsorted(among, values, sorter=order)]
    return found
