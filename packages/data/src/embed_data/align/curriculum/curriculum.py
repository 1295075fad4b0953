"""One stage of ARK's curriculum (arXiv 2511.16326): negatives from the document, random, then ever nearer the answer.

Stage 1 draws them; in stages 2 and 3 augmented queries retrieve them, from a large and from a small subgraph around the
answer. Chunks that hold the answer are never negatives.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from embed_data.align.curriculum import augment, entities
from embed_data.align.curriculum.augment import augmented_by_model, augmented_offline
from embed_data.align.curriculum.entities import Extracted, extract_by_model, extract_offline
from embed_data.align.curriculum.graph import around, build_graph, seeds
from embed_data.align.curriculum.request import SIZES
from embed_data.align.curriculum.within import Bm25Within, DenseWithin, brought_in
from embed_data.align.output.rows import drawn, eligible, swift_rows, training_row
from embed_data.align.session import check_folder
from embed_data.align.source.aligned import Aligned
from embed_data.align.source.store import Stage, to_line, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from embed_core.distributed.process_group import Ranks
    from embed_core.protocols import Announce
    from embed_data.align.curriculum.chat import Chat
    from embed_data.align.curriculum.request import CurriculumRequest
    from embed_data.align.curriculum.within import Within
    from embed_data.align.source.aligned import AlignedDocument, AlignedQuestion
    from embed_data.mining.output.progress import Progress

VERSION = 1
"""Version of graphs and mining: raise it when the same request gives another result."""


def run(request: CurriculumRequest, ranks: Ranks, announce: Announce, progress: Progress) -> dict[str, Any]:
    """Write the stage's rows; returns the report. Raises EmbedError for everything a user can fix.

    Each step continues from what is on disk; the two mined stages share graphs and queries.
    """
    check_folder(request.output, request.outputs, overwrite=request.overwrite, others=True)
    aligned = Aligned(request.aligned)
    announce(f"stage {request.stage}: {len(aligned):,} documents")
    if request.stage == 1:
        return _written(
            request, [_row(doc, q, _random(doc, q, request)) for doc in _all(aligned) for q in doc.questions]
        )
    within: Within = _within(request, ranks, announce)
    chat = _chat(request)
    graphs = _stage(request, "graphs", {"data": aligned.digest(), "version": (VERSION, entities.VERSION)})
    _each(graphs, len(aligned), progress, "entities", lambda n: _extracted(aligned[n], chat))
    plan = {"graphs": graphs.digest, "alike": within.digest if within.cosines else "", "version": augment.VERSION}
    plan |= {"similarity": request.similarity, "queries": request.queries}
    queries = _stage(request, f"queries{request.stage}", plan)
    _each(queries, len(aligned), progress, "queries", lambda n: _asked(request, aligned[n], graphs, n, within, chat))
    mined = _stage(request, f"mined{request.stage}", {
        "queries": queries.digest, "retriever": within.digest, "per_query": request.per_query,
        "negatives": request.negatives, "forward_margin": request.forward_margin,
    })  # fmt: skip
    _each(mined, len(aligned), progress, "mining", lambda n: _mined(request, aligned[n], queries, n, within))
    return _written(request, mined.rows(len(aligned)), _how(graphs, queries, len(aligned)))


def _all(aligned: Aligned) -> Iterator[AlignedDocument]:
    return (aligned[number] for number in range(len(aligned)))


def _stage(request: CurriculumRequest, name: str, plan: dict[str, Any]) -> Stage:
    return Stage(request.output, name, {**plan, "llm": request.server.model, "seed": request.seed})


def _each(
    stage: Stage, count: int, progress: Progress, title: str, rows: Callable[[int], list[dict[str, Any]]]
) -> None:
    """Write one block per document, where it is missing."""
    stage.start()
    done = sum(stage.has(number) for number in range(count))
    with progress.stage(f"{title} of documents", count, done) as advance:
        for number in range(count):
            if not stage.has(number):
                stage.write(number, rows(number))
                advance(1)


def _extracted(document: AlignedDocument, chat: Chat | None) -> list[dict[str, Any]]:
    texts = [chunk.text for chunk in document.chunks]
    found = extract_offline(texts)
    if chat is not None:
        server = chat
        told = server.each(lambda text: extract_by_model(text, server), texts)
        found = [one or offline for one, offline in zip(told, found, strict=True)]
    return [{"entities": one.entities, "relations": one.relations, "offline": one.offline} for one in found]


def _asked(
    request: CurriculumRequest, document: AlignedDocument, graphs: Stage, number: int, within: Within, chat: Chat | None
) -> list[dict[str, Any]]:
    """The augmented queries of every question, with their author: the model, or the offline rule."""
    chunks = [
        Extracted(row["entities"], [(first, second) for first, second in row["relations"]], row["offline"])
        for row in graphs.block(number)
    ]
    graph = build_graph(chunks, _alike(chunks, within, request.similarity))
    _, low, high = SIZES[request.stage]

    def one(question: AlignedQuestion) -> dict[str, Any]:
        asked = question.asked
        near = [name for c in (asked.gold or question.positives[:1]) for name in chunks[c].entities]
        nodes = around(graph, seeds(graph, asked.answers, near), low, high)
        told: list[str] = []
        if chat is not None and nodes:
            told = augmented_by_model(asked.text, asked.answers, nodes, request.queries, chat)
        found = told or augmented_offline(asked.text, asked.answers, nodes, request.queries)
        return {"id": asked.key, "queries": found, "nodes": len(nodes), "offline": not told}

    return chat.each(one, document.questions) if chat is not None else [one(q) for q in document.questions]


def _alike(chunks: list[Extracted], within: Within, least: float) -> list[tuple[str, str]]:
    """Pairs of names whose texts have a cosine of at least ``least`` by a dense retriever."""
    texts: dict[str, str] = {}
    for chunk in chunks:
        for name, description in chunk.entities.items():
            texts[name] = max(texts.get(name, ""), description, key=len)
    names = sorted(texts)
    if not within.cosines or len(names) < 2:
        return []
    spoken = [f"{name}: {texts[name]}" if texts[name] else name for name in names]
    scores = within.scores(spoken, spoken)
    return [(names[a], names[b]) for a in range(len(names)) for b in range(a + 1, len(names)) if scores[a][b] >= least]


def _mined(
    request: CurriculumRequest, document: AlignedDocument, queries: Stage, number: int, within: Within
) -> list[dict[str, Any]]:
    asked = {row["id"]: row["queries"] for row in queries.block(number)}  # by id, never by position
    # A question without a subgraph is asked as it is.
    wanted = {q.asked.key: asked[q.asked.key] or [q.asked.text] for q in document.questions}
    flat = [text for q in document.questions for text in wanted[q.asked.key]]
    texts = [chunk.text for chunk in document.chunks]
    scores = iter(within.scores(flat, texts) if flat else [])
    rows = []
    for question in document.questions:
        own = [next(scores) for _ in wanted[question.asked.key]]
        allowed = _allowed(document, question, request)
        rows.append(_row(document, question, brought_in(own, allowed, request.per_query, request.negatives)))
    return rows


def _random(document: AlignedDocument, question: AlignedQuestion, request: CurriculumRequest) -> list[int]:
    return drawn(_allowed(document, question, request), request.negatives, request.seed, question.asked.key)


def _allowed(document: AlignedDocument, question: AlignedQuestion, request: CurriculumRequest) -> list[int]:
    found = eligible(question.asked, document.chunks, question.positives, question.unknown)
    if request.forward_margin is None:
        return found
    best = max((question.forward[c] for c in question.positives if c in question.forward), default=None)
    if best is None:
        return found
    return [c for c in found if c in question.forward and question.forward[c] <= best - request.forward_margin]


def _row(document: AlignedDocument, question: AlignedQuestion, negatives: list[int]) -> dict[str, Any]:
    return training_row(question.asked, document.key, document.chunks, question.positives, negatives)


def _written(
    request: CurriculumRequest, rows: Iterable[dict[str, Any]], how: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the rows in both formats, and the report last."""
    ours, swift, name = (request.output / file for file in request.outputs)
    request.output.mkdir(exist_ok=True)
    counts = {"rows": 0, "positives": 0, "negatives": 0, "without_negatives": 0}

    def counted() -> Iterator[str]:
        for row in rows:
            counts["rows"] += 1
            counts["positives"] += len(row["pos"])
            counts["negatives"] += len(row["neg"])
            counts["without_negatives"] += not row["neg"]
            yield to_line(row)

    write_whole(ours, counted())
    with ours.open(encoding="utf-8") as file:
        write_whole(swift, (to_line(one) for line in file for one in swift_rows(json.loads(line))))
    report = {"stage": request.stage, **counts, **(how or {"negatives_by": "random chunks of the same document"})}
    write_whole(name, [json.dumps(report, indent=2, ensure_ascii=False)])
    return report


def _how(graphs: Stage, queries: Stage, documents: int) -> dict[str, Any]:
    """How often the model was used and how often the offline way: the model's answers are not always usable."""
    chunks = [row["offline"] for row in graphs.rows(documents)]
    asked = list(queries.rows(documents))
    return {
        "negatives_by": "augmented queries",
        "chunks_read_by_model": chunks.count(False),
        "chunks_read_offline": chunks.count(True),
        "questions_augmented_by_model": sum(not row["offline"] for row in asked),
        "questions_augmented_offline": sum(row["offline"] and bool(row["queries"]) for row in asked),
        "questions_without_subgraph": sum(not row["queries"] for row in asked),
        "augmented_queries": sum(len(row["queries"]) for row in asked),
        "nodes_per_subgraph": sum(row["nodes"] for row in asked) / max(1, len(asked)),
    }


def _within(request: CurriculumRequest, ranks: Ranks, announce: Announce) -> Within:
    if not request.retriever.given:
        return Bm25Within()
    from embed_data.mining.rank.model import TextEncoder, resolve_model

    return DenseWithin(TextEncoder(resolve_model(request.retriever), ranks, request.way, announce))


def _chat(request: CurriculumRequest) -> Chat | None:
    if request.server.url is None:
        return None
    from embed_data.align.curriculum.chat import Chat

    return Chat(request.server, request.seed)
