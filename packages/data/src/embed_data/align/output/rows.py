"""Training rows of what was aligned or mined, in two formats: FlagEmbedding's, which is ours, and ms-swift's."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from embed_data.mining.corpus.collection import Document
from embed_data.mining.select.screen import holds_answer, overlaps, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embed_data.align.source.corpus import Asked, Chunk

OVERLAP = 0.5


def training_row(
    asked: Asked, document: str, chunks: Sequence[Chunk], positives: Sequence[int], negatives: Sequence[int]
) -> dict[str, Any]:
    """One row per question: every epoch draws one of the positives, and none serves as another's negative."""
    return {
        "query": asked.text,
        "pos": [chunks[c].text for c in positives],
        "neg": [chunks[c].text for c in negatives],
        "answers": list(asked.answers),
        "query_id": asked.key,
        "document": document,
        "doc_id": [chunks[c].key for c in positives],
        "neg_id": [chunks[c].key for c in negatives],
    }


def swift_rows(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per (question, positive), because a row of ms-swift has room for one positive only."""
    for positive in row["pos"]:
        yield {
            "messages": _said(row["query"]),
            "positive_messages": [_said(positive)],
            "negative_messages": [_said(negative) for negative in row["neg"]],
        }


def eligible(asked: Asked, chunks: Sequence[Chunk], positives: Sequence[int], unknown: frozenset[int]) -> list[int]:
    """The chunks of a document that may be negatives of the question, in their order.

    Left out are positives, chunks whose score failed (``unknown``), those that hold the answer or most of it, and those
    that are nearly the same text as a positive (the overlap of neighbours counts).
    """
    barred = {*positives, *asked.gold, *unknown}
    bodies = [plain(chunks[c].text) for c in positives]
    found, seen = [], set(bodies)
    for number, chunk in enumerate(chunks):
        body = plain(chunk.text)
        if number in barred or body in seen:
            continue
        document = Document(chunk.key, chunk.text)
        if any(holds_answer(document, body, answer, OVERLAP) for answer in asked.answers):
            continue
        if not any(overlaps(body, positive, OVERLAP) for positive in bodies):
            found.append(number)
            seen.add(body)
    return found


def drawn(numbers: Sequence[int], wanted: int, seed: int, key: str) -> list[int]:
    """``wanted`` of ``numbers`` at random, in their order; depends on seed and question alone."""
    import numpy as np

    own = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    order = np.random.default_rng((seed, own)).permutation(len(numbers))[:wanted]
    return sorted(numbers[n] for n in order)


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
