"""Builds the retriever and the judge of a request in two steps: first what its plan needs, then the indices."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from embed_core.distributed.process_group import Ranks
    from embed_core.protocols import Announce
    from embed_data.mining.corpus.collection import Collection
    from embed_data.mining.corpus.rows import Rows
    from embed_data.mining.output.progress import Progress
    from embed_data.mining.rank.cross_encoder import CrossEncoderJudge
    from embed_data.mining.rank.model import TextEncoder
    from embed_data.mining.request import MiningRequest, ModelChoice


class Judges:
    """Loads the models and writes nothing; :meth:`ready` writes indices and vectors."""

    def __init__(
        self, request: MiningRequest, rows: Rows, collection: Collection, ranks: Ranks, announce: Announce
    ) -> None:
        self._request, self._rows, self._collection, self._ranks = request, rows, collection, ranks
        self.digests: dict[str, str] = {}
        """Digests of the weights, for the plan."""
        self._searches = request.by != "scores" and not (request.audit and (request.teacher or request.cross_encoder))
        """Whether ``by`` ranks documents: scores do not, and an audit with another judge does not need it."""
        if request.by == "bm25" and self._searches:
            from embed_data.mining.rank.bm25 import library

            library()  # raises before anything is written
        choices = list(request.models)
        self._dense = self._encoder(choices.pop(0), request.way, announce) if request.by == "dense" else None
        self._teacher: TextEncoder | None = None
        self._cross: CrossEncoderJudge | None = None
        if request.teacher:
            self._teacher = self._encoder(choices.pop(0), None, announce)
            self.digests["teacher_weights"] = self._teacher.digest
        if request.cross_encoder:
            from embed_data.mining.rank.cross_encoder import CrossEncoderJudge

            self._cross = CrossEncoderJudge(rows, collection, request.cross_encoder, ranks.device)
            self.digests["cross_encoder_weights"] = self._cross.digest
        if self._dense is not None:
            self.digests |= {"model_weights": self._dense.digest, "scored_by": self._dense.way}

    def ready(self, folder: Path, progress: Progress) -> tuple[Retriever | None, Judge | None]:
        """The retriever and the judge, one object unless a judge was asked for; None where rows have their scores."""
        retriever = self._retriever(folder, progress) if self._searches else None
        if self._cross is not None:
            return retriever, self._cross
        if self._teacher is not None:
            return retriever, self._embedded(self._teacher, "teacher", folder, progress)
        return retriever, retriever

    def _retriever(self, folder: Path, progress: Progress) -> Retriever:
        if self._dense is None:
            from embed_data.mining.rank.bm25 import Bm25, build_index

            if self._ranks.rank == 0:
                build_index(self._collection, folder, progress)
            self._ranks.barrier()
            return Bm25(self._rows, self._collection, folder)
        return self._embedded(self._dense, "model", folder, progress, self._request.faiss)

    def _embedded(
        self, encoder: TextEncoder, name: str, folder: Path, progress: Progress, faiss: str | None = None
    ) -> Retriever:
        from embed_data.mining.corpus.shards import Shards
        from embed_data.mining.rank.dense import Dense, Faiss, build_faiss

        shards = Shards(folder, name, len(self._collection), self._ranks.device)
        shards.encode(self._collection, encoder, self._ranks, progress)
        if faiss is None:
            return Dense(self._rows, self._collection, encoder, shards)
        build_faiss(faiss, shards, encoder, self._collection.minable, folder, self._ranks, progress)
        return Faiss(self._rows, self._collection, encoder, shards, folder)

    def _encoder(self, choice: ModelChoice, way: str | None, announce: Announce) -> TextEncoder:
        from embed_data.mining.rank.model import TextEncoder, resolve_model

        return TextEncoder(resolve_model(choice), self._ranks, way, announce)


class Ranked(NamedTuple):
    """One query's documents, the best first; equal scores are in the order of their numbers."""

    documents: list[int]
    scores: list[float]


class Judge(Protocol):
    """Scores pairs of a row's query and a document of the collection, on its own scale; higher is better."""

    def pairs(self, rows: Sequence[int], documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """The scores of each row's ``documents``. They do not depend on the other rows of the call."""
        ...


class Retriever(Judge, Protocol):
    """Ranks the part of the collection that may become negatives."""

    def search(self, rows: Sequence[int], depth: int) -> list[Ranked]:
        """The ``depth`` best documents of each row's query, or as many as there are."""
        ...
