"""Rows with negatives mined by the model in training, kept in the phase's folder and found there after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from embed_core.config.component import resolved_path
from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.datasets.wrappers import ChangedRows, HasRows, with_rows
from embed_core.embeddings import to_float32
from embed_core.errors import ConfigError, EmbedError
from embed_core.types import Embeddings
from embed_core.utils.hashing import identity
from embed_data.mining.corpus.collection import Collection
from embed_data.mining.corpus.rows import MiningRow, Rows, open_rows, rows_in_place
from embed_data.mining.corpus.shards import Shards
from embed_data.mining.output.work import Work
from embed_data.mining.rank.dense import Dense
from embed_data.mining.request import MiningRequest, ModelChoice
from embed_data.mining.select.miner import MiningBlocks
from embed_data.mining.select.screen import Screen

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.datasets.row import Row
    from embed_core.protocols import Encoder
    from embed_core.types import Role
    from embed_data.self_mining.config import ReminedConfig

VERSION = 1
"""Version of the result: raise it when the same config, rows and weights give another one."""
BLOCK = 256
"""Rows per block. A block is finished, or lost by a kill, as a whole."""
WHO = "remined"


def remined(config: ReminedConfig, context: BuildContext) -> ReminedRows:
    """The dataset; mines what ``context.phase_dir`` lacks. Raises ConfigError and DataError, on every rank."""
    folder = _folder(context)
    inner = with_rows(context.dataset() if config.inner is None else config.inner.build(context), WHO)
    answers = _answers(config, context)
    target = folder / f"{WHO}-{_key(config, inner, answers)}.jsonl"
    there = target.exists()
    context.barrier()  # every rank has looked before one writes
    if not there:
        _Mining(config, context, _Rows(inner, answers), target).run()
    return ReminedRows(inner, target, config.negatives)


class ReminedRows(ChangedRows):
    """``inner`` with the negatives of a mined file; see :class:`embed_core.protocols.Dataset`."""

    def __init__(self, inner: HasRows, mined: Path, negatives: int) -> None:
        super().__init__(inner, negatives)
        self._mined = JsonlFile(mined)

    def row(self, row: int) -> Row:
        """Row ``row`` with the mined negatives, the hardest first, and the model's scores."""
        found = self._mined[row]
        keys = found["neg_id"]
        return replace(
            self.inner.row(row),
            neg=tuple(found["neg"]),
            pos_scores=tuple(found["pos_scores"]),
            neg_scores=tuple(found["neg_scores"]),
            neg_keys=None if keys is None else tuple(keys),
            masked=tuple(found["masked"]),
        )

    def fingerprint(self) -> str:
        """Hex digest of ``inner`` and of what was mined."""
        return blake2b(f"{self.inner.fingerprint()}{self._mined.digest()}".encode(), digest_size=16).hexdigest()


class _Mining:
    """One mining with the model of the run, on all its ranks."""

    def __init__(self, config: ReminedConfig, context: BuildContext, rows: _Rows, target: Path) -> None:
        if context.encoder is None:
            raise ConfigError(
                f"{WHO}: phase {context.phase!r} has no model of an earlier one to mine with: mine for the first phase "
                "with `embed mine`, and use kind file"
            )
        self._context, self._rows, self._target = context, rows, target
        self._encoder = _Encodes(context.encoder)
        # The request of embed mine; the model is at hand and is never looked up.
        self._request = MiningRequest(
            data=Path("the rows of the run"),
            output=target,
            by="dense",
            model=ModelChoice(path="the model of the run"),
            negatives=config.negatives,
            first_rank=config.ranks[0],
            last_rank=config.ranks[1],
            absolute_margin=config.absolute_margin,
            relative_margin=config.relative_margin,
            draw=config.draw,
            overlap=config.overlap,
            seed=context.seed,
        )
        corpus = None if config.corpus is None else resolved_path(config.corpus)
        self._collection = Collection(rows, corpus)
        if self._collection.minable < config.ranks[0]:
            raise ConfigError(
                f"{WHO}: ranks {list(config.ranks)}: there are only {self._collection.minable} documents to rank: "
                "start at a lower rank, or give a larger corpus"
            )

    def run(self) -> None:
        """Encode, rank block by block, join; all ranks take part in every step."""
        context, rows = self._context, self._rows
        context.announce(
            f"{WHO}: the model mines for {len(rows):,} rows among {self._collection.minable:,} documents, "
            f"ranks {self._request.first_rank}-{self._request.last_rank}"
            + ("" if rows.answers else "; answers are not known: only what overlaps with a positive is kept out")
        )
        work = Work(self._target, {"version": VERSION})
        if context.rank == 0:
            work.start()
        context.barrier()
        blocks = self._blocks(work.folder)
        count = -(-len(rows) // BLOCK)
        for number in range(context.rank, count, context.world_size):
            if not work.has_block(number):
                lines, counts = blocks.block(range(number * BLOCK, min(len(rows), (number + 1) * BLOCK)))
                work.write_block(number, lines, counts)
        context.barrier()
        if context.rank == 0:
            self._tell(work.finish(count, {"output": self._target}))
        context.barrier()

    def _blocks(self, folder: Path) -> _Blocks:
        collection, encoder, context = self._collection, self._encoder, self._context
        documents = Shards(folder, "documents", len(collection), context.device)
        documents.encode_together(
            lambda n: collection.document(n).text, lambda texts: encoder.encode(texts, "passage"), context
        )
        queries = Shards(folder, "queries", len(self._rows), context.device)
        queries.encode_together(
            lambda n: self._rows[n].row.query, lambda texts: encoder.encode(texts, "query"), context
        )
        retriever = _Ranked(self._rows, collection, encoder, documents, queries)
        screen = Screen(collection, self._request.overlap)
        return _Blocks(self._request, self._rows, collection, screen, retriever, retriever)

    def _tell(self, counts: Mapping[str, int]) -> None:
        refused = {why.removeprefix("refused."): n for why, n in counts.items() if why.startswith("refused.") and n}
        line = f"{WHO}: {counts['negatives'] / counts['rows']:.1f} negatives a row"
        if counts["none"]:
            line += f"; {counts['none']:,} rows have none and learn from the batch alone"
        if refused:
            line += "; refused: " + ", ".join(f"{why} {n:,}" for why, n in sorted(refused.items()))
        self._context.announce(line)


class _Blocks(MiningBlocks):
    """Writes per row what training reads of it, and nothing else."""

    def _row(self, mined: MiningRow, chosen: Any, positives: Sequence[float]) -> dict[str, Any]:
        found = super()._row(MiningRow(mined.row, mined.answers, {}), chosen, positives)
        known = sorted(self._collection.known(mined.data["number"], mined.row.query))
        others = [self._collection.document(n).text for n in known]
        masked = dict.fromkeys([*mined.row.masked, *(text for text in others if text not in mined.row.pos)])
        return {**found, "neg_id": found.get("neg_id"), "masked": list(masked)}


class _Ranked(Dense):
    """Takes the queries from shards too, because all ranks encoded them together."""

    def __init__(self, rows: _Rows, collection: Collection, encoder: _Encodes, documents: Shards, queries: Shards):
        super().__init__(rows, collection, encoder, documents)  # type: ignore[arg-type] # it only asks for the weights
        self._query_shards = queries

    def _queries(self, rows: Sequence[int]) -> Embeddings:
        if self._last is None or self._last[0] != tuple(rows):
            self._last = tuple(rows), self._query_shards.take(rows)
        return self._last[1]


class _Encodes:
    """The run's encoder with one way of scoring: dense, else the model's first."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.way = "dense" if "dense" in encoder.scores else next(iter(encoder.scores))
        self.weights = encoder.scores[self.way]

    def encode(self, texts: Sequence[str], role: Role) -> Embeddings:
        """Embeddings of the kinds that the way of scoring needs, in fp32; a collective."""
        kept = {kind for kind, weight in self.weights.items() if weight}
        with torch.no_grad():
            dense, sparse, multi = to_float32(self._encoder.encode(texts, role))
        return Embeddings(
            dense if "dense" in kept else None, sparse if "sparse" in kept else None, multi if "multi" in kept else None
        )


@dataclass(frozen=True)
class _Rows:
    """The dataset's rows as mining reads them (:class:`embed_data.mining.corpus.rows.Rows`)."""

    inner: HasRows
    answers: Mapping[int, tuple[str, ...]]
    """Identity of a query → its answers."""

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> MiningRow:
        row = self.inner.row(index)
        return MiningRow(row, self.answers.get(identity(row.query), ()), {"number": index})

    def digest(self) -> str:
        """Digest of the dataset."""
        return self.inner.fingerprint()


def _folder(context: BuildContext) -> Path:
    if context.phase_dir is None or not context.phase:
        raise ConfigError(
            f"data.kind {WHO!r}: it mines with the model that the phases before trained, and this run has none: use it "
            "in `phases`, or as `remine` of a curriculum's stage"
        )
    return context.phase_dir


def _answers(config: ReminedConfig, context: BuildContext) -> dict[int, tuple[str, ...]]:
    """The answers to every query, from the rows that the config names, or else from the dataset's own if mining knows
    their format."""
    if config.answers is not None:
        return _read_answers(open_rows(resolved_path(config.answers), None))
    found: dict[int, tuple[str, ...]] = {}
    for path in _paths(context.data if config.inner is None else config.inner):
        with suppress(EmbedError):  # rows of another format need not have answers
            for key, answers in _read_answers(rows_in_place(resolved_path(path))).items():
                found[key] = tuple(dict.fromkeys([*found.get(key, ()), *answers]))
    return found


def _paths(data: Any) -> Iterator[str]:
    """Files and folders that a dataset's config reads, including those of datasets it wraps or mixes."""
    while data is not None:
        for name in ("path", "data_path"):
            if isinstance(getattr(data, name, None), str):
                yield getattr(data, name)
        for source in getattr(data, "datasets", ()):
            yield from _paths(source)
            yield from _paths(getattr(source, "data", None))
        data = getattr(data, "inner", None)


def _read_answers(rows: Rows) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for number in range(len(rows)):
        mined = rows[number]
        if mined.answers:
            key = identity(mined.row.query)
            found[key] = tuple(dict.fromkeys([*found.get(key, ()), *mined.answers]))
    return found


def _key(config: ReminedConfig, inner: HasRows, answers: Mapping[int, tuple[str, ...]]) -> str:
    """Digest of all that the result depends on besides the weights, which are those of the phase."""
    own = config.model_dump_json(exclude={"inner", "answers"})
    facts = f"{VERSION}{own}{inner.fingerprint()}{sorted(answers.items())}"
    return blake2b(facts.encode(), digest_size=8).hexdigest()
