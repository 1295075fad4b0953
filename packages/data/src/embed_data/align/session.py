"""Runs one alignment: chunk, score by both models, combine, write. Each step continues from what is on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embed_core.datasets.sources import beir
from embed_core.datasets.sources.jsonl import JsonlFile
from embed_core.errors import CheckpointError, DataError
from embed_data.align.output.writing import write_outputs
from embed_data.align.score import prompts as wording
from embed_data.align.score.scoring import LanguageScores, ParameterScores, score_rows, work
from embed_data.align.source.chunking import token_offsets
from embed_data.align.source.corpus import ChunkedCorpus, build_corpus
from embed_data.align.source.store import WORK, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from embed_core.distributed.process_group import Ranks
    from embed_core.protocols import Announce
    from embed_data.align.request import AlignRequest
    from embed_data.align.score.logprobs import LogProbs
    from embed_data.mining.output.progress import Progress

VERSION = 1
"""Version of chunking and scoring: raise it when the same request gives other numbers."""
OUTPUTS = ("scored.jsonl", "chunks.jsonl", "rows.jsonl", "swift.jsonl", "failed.jsonl", "report.json")


def run(request: AlignRequest, ranks: Ranks, announce: Announce, progress: Progress) -> dict[str, Any]:
    """Align; returns the report. Raises EmbedError for everything a user can fix.

    The same request gives the same bytes after any number of kills, and on any number of ranks.
    """
    check_folder(request.output, OUTPUTS, overwrite=request.overwrite)
    tokenizer = _tokenizer(request)
    stage = Stage(request.output, "chunks", _chunk_plan(request, tokenizer))
    if ranks.rank == 0:
        offsets = token_offsets(tokenizer) if tokenizer is not None else None
        build_corpus(request.data, request.split, request.group_by, request.chunks, offsets, stage)
    ranks.barrier()
    corpus = ChunkedCorpus(stage.folder)
    announce(
        f"aligning {corpus.questions:,} questions, {len(corpus.chunk_counts):,} documents, "
        f"{sum(corpus.chunk_counts):,} chunks, {corpus.pairs:,} pairs"
    )
    stages = []
    if request.lm.path is not None:
        stages.append(_language_stage(request, corpus, stage, tokenizer, ranks, announce, progress))
    if request.retriever.given:
        stages.append(_parameter_stage(request, corpus, stage, ranks, announce, progress))
    if ranks.rank != 0:
        return {}
    return write_outputs(request, corpus, [score_rows(corpus, one) for one in stages])


def _language_stage(
    request: AlignRequest,
    corpus: ChunkedCorpus,
    chunks: Stage,
    tokenizer: Any,
    ranks: Ranks,
    announce: Announce,
    progress: Progress,
) -> Stage:
    model: LogProbs
    if request.lm.url is not None:
        from embed_data.align.score.server_logprobs import ServerLogProbs

        model = ServerLogProbs(request.lm, tokenizer)
    else:
        from embed_data.align.score.logprobs import LocalLogProbs

        model = LocalLogProbs(request.lm, tokenizer, ranks.device, announce)
    plan = {
        "chunks": chunks.digest, "model": model.digest, "max_length": model.max_length, "tokenizer": _digest(tokenizer),
        "wording": wording.VERSION, "version": VERSION,
    }  # fmt: skip
    stage = Stage(request.output, "language", plan)
    scores = LanguageScores(corpus, wording.Prompts(tokenizer, model.max_length), model)
    work(scores, corpus, stage, ranks, progress, "forward and backward scores")
    return stage


def _parameter_stage(
    request: AlignRequest, corpus: ChunkedCorpus, chunks: Stage, ranks: Ranks, announce: Announce, progress: Progress
) -> Stage:
    from embed_data.mining.rank.model import TextEncoder, resolve_model

    encoder = TextEncoder(resolve_model(request.retriever), ranks, request.way, announce)
    plan = {"chunks": chunks.digest, "model": encoder.digest, "way": encoder.way, "version": VERSION}
    stage = Stage(request.output, "parameter", plan)
    work(ParameterScores(corpus, encoder), corpus, stage, ranks, progress, "parameter scores")
    return stage


def check_folder(output: Path, names: tuple[str, ...], *, overwrite: bool, others: bool = False) -> None:
    """Raises CheckpointError where the folder cannot take the outputs, or has them already without ``overwrite``.

    ``others`` allows the outputs of other stages in it.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"output {str(output)!r} is a file: give the name of a folder")
    if not output.exists() and not output.parent.is_dir():
        raise CheckpointError(f"output {str(output)!r}: the folder {str(output.parent)!r} does not exist: create it")
    there = [name for name in names if (output / name).exists()]
    if there and not overwrite:
        raise CheckpointError(
            f"output {str(output)!r} holds {there[0]} already: --overwrite replaces it (scores are kept and used "
            "again), --output chooses another"
        )
    strange = output.is_dir() and any(output.iterdir()) and not there and not (output / WORK).is_dir()
    if strange and not (overwrite or others):
        raise CheckpointError(f"output {str(output)!r} is not empty: choose a new folder, or give --overwrite")


def _tokenizer(request: AlignRequest) -> Any:
    name = request.lm.tokenizer or request.lm.path
    if name is None:
        return None
    from pathlib import Path

    from embed_core.models.hub import load_tokenizer, model_directory

    # A folder with nothing but a tokenizer is enough.
    directory = Path(name).expanduser()
    tokenizer = load_tokenizer(directory if directory.is_dir() else model_directory(name))
    if not tokenizer.is_fast:
        raise CheckpointError(f"{name!r}: {type(tokenizer).__name__} is no fast tokenizer: a tokenizer.json is needed")
    return tokenizer


def _chunk_plan(request: AlignRequest, tokenizer: Any) -> dict[str, Any]:
    return {
        "data": _data_digest(request.data, request.split),
        "group_by": request.group_by,
        "chunk_by": request.chunks.by,
        "size": request.chunks.resolved,
        "tokenizer": _digest(tokenizer) if tokenizer is not None else None,
        "version": VERSION,
    }


def _digest(tokenizer: Any) -> str:
    from hashlib import blake2b

    return blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()


def _data_digest(path: Path, split: str | None) -> str:
    from hashlib import blake2b

    from embed_core.datasets.sources.jsonl import checked_path

    checked_path(path)
    if beir.is_beir(path):
        qrels = beir.qrels_file(path, split, prefer="train")
        digests = [JsonlFile(path / name).digest() for name in ("queries.jsonl", "corpus.jsonl")]
        return blake2b("".join(digests).encode() + qrels.read_bytes(), digest_size=16).hexdigest()
    if path.is_dir():
        raise DataError(f"{path}: is a folder without qrels/: a .jsonl or .json file, or a BEIR folder, is needed")
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
