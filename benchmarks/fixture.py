"""What the systems share: rows, in one order for all, and a model directory that all of them load."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Case

ROOT = Path(__file__).resolve().parents[1]
SEED = 42
NEGATIVES = 7
Row = dict[str, Any]


def xquad_file() -> Path | None:
    """``xquad/train.jsonl`` of ``$EMBED_TEST_DATA`` or ``../shared/data``."""
    data = os.environ.get("EMBED_TEST_DATA")
    path = (Path(data) if data else ROOT.parent / "shared" / "data") / "xquad" / "train.jsonl"
    return path if path.is_file() else None


def read_rows() -> tuple[str, list[Row]]:
    """Name of the data and its (query, pos, lang) rows: XQuAD, else the embedded corpus."""
    path = xquad_file()
    if path is not None:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return "xquad", [{"query": r["query"], "pos": r["pos"][:1], "lang": r.get("lang", "")} for r in rows]
    import numpy as np

    from embed_core.config.context import BuildContext
    from embed_core.plugin.manager import activate
    from embed_data.config import PydocsConfig

    dataset = PydocsConfig().build(BuildContext(activate(["bge"])[1]))
    examples = [dataset.example(number, np.random.default_rng(0)) for number in range(len(dataset))]
    return "pydocs", [{"query": e.query, "pos": [e.passages[0]], "lang": ""} for e in examples]


def write_rows(rows: Sequence[Row], case: Case, folder: Path) -> tuple[Path, Path]:
    """``rows.jsonl``, which embed shuffles, and ``ordered.jsonl``, the same as embed will draw them: for the peers."""
    chosen = with_teacher(rows, case.batch_size * case.steps) if case.loss == "m3" else sample(rows, case)
    files = folder / "rows.jsonl", folder / "ordered.jsonl"
    for path, part in zip(files, (chosen, drawn(chosen, case.batch_size)), strict=True):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
    return files


def sample(rows: Sequence[Row], case: Case) -> list[Row]:
    """As many rows as the steps take, at random; every text of the data as often as it is there."""
    import numpy as np

    wanted = np.random.default_rng(SEED).permutation(len(rows))[: case.batch_size * case.steps]
    return [{"query": rows[n]["query"], "pos": rows[n]["pos"]} for n in wanted]


def drawn(rows: Sequence[Row], batch_size: int) -> list[Row]:
    """``rows`` as the sampler ``shuffled`` draws them in its first epoch."""
    from embed_core.samplers.shuffled import ShuffledSampler

    sampler = ShuffledSampler(rows, SEED, batch_size)  # type: ignore[arg-type]
    return [rows[n] for number in range(sampler.draws_per_epoch) for n in sampler.batch(number)]


def with_teacher(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows with seven negatives of their language, and overlap of trigrams in the place of a reranker."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    passages: dict[str, list[str]] = {}
    for row in rows:
        passages.setdefault(row["lang"], []).append(row["pos"][0])
    distinct = {lang: sorted(set(texts)) for lang, texts in passages.items()}
    made = []
    for number in rng.permutation(len(rows))[:count]:
        row = rows[number]
        others = [text for text in distinct[row["lang"]] if text != row["pos"][0]]
        negatives = [others[n] for n in rng.permutation(len(others))[:NEGATIVES]]
        scores = [overlap(row["query"], text) for text in (row["pos"][0], *negatives)]
        made.append(
            {"query": row["query"], "pos": row["pos"], "neg": negatives}
            | {"pos_scores": scores[:1], "neg_scores": scores[1:]}
        )
    return made


def overlap(query: str, passage: str) -> float:
    """Share of the query's character trigrams that the passage has, times 5: the scale of a reranker's logits."""
    grams = {query[n : n + 3] for n in range(max(1, len(query) - 2))}
    return 5.0 * sum(gram in passage for gram in grams) / len(grams)


def write_model(case: Case, texts: Sequence[str], cache: Path, directory: Path) -> Any:
    """A random BGE-M3 of the case's shape with its heads and a tokenizer of ``texts``; returns the tokenizer.

    The vocabulary may be larger than the tokenizer: then it is an embedding table of the size asked for.
    """
    from embed_bge.build import fresh_heads
    from embed_bge.checkpoint import BGEM3Checkpointer
    from embed_bge.config import BGEM3ModelConfig
    from embed_bge.model import BGEM3Model
    from embed_core.export.model_card import RunCard
    from embed_core.models.from_scratch.config import EncoderShape
    from embed_core.models.from_scratch.encoder import xlm_roberta
    from embed_core.models.from_scratch.unigram import unigram_tokenizer

    longest = max(case.query_max_len, case.passage_max_len)
    if case.family == "qwen3-embedding":
        return write_qwen3_embedding(case, texts, cache, directory)
    pieces = min(case.vocab_size, 16_000)
    tokenizer = unigram_tokenizer(texts, pieces, cache, print, max_length=longest)
    if case.family == "qwen3":
        write_qwen3(case, tokenizer, directory)
        return tokenizer
    shape = EncoderShape(
        vocab_size=case.vocab_size,
        hidden=case.hidden,
        layers=case.layers,
        heads=case.heads,
        dropout=case.dropout,
    )
    config = BGEM3ModelConfig(
        query_max_len=case.query_max_len,
        passage_max_len=case.passage_max_len,
        sentence_pooling_method="cls" if case.loss == "m3" else "mean",
    )
    encoder = xlm_roberta(case.vocab_size, shape, max_length=longest, seed=SEED)
    model = BGEM3Model.from_parts(config, encoder, tokenizer, fresh_heads(config, encoder, SEED))
    directory.mkdir(parents=True)
    card = RunCard("benchmark", "from-scratch", {}, {"name": "benchmark", "rows": 0, "fingerprint": ""}, {}, "", 0, {})
    BGEM3Checkpointer().export(model, model.state_dict(), directory, card)
    return tokenizer


def write_qwen3(case: Case, tokenizer: Any, directory: Path) -> None:
    """A random Qwen3 with the proportions of Qwen3-0.6B, as sentence-transformers saves one."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden,
        intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=max(1, case.heads // 2),
        head_dim=2 * case.hidden // case.heads,
        max_position_embeddings=max(case.query_max_len, case.passage_max_len),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    plain = directory.with_name(f"{directory.name}-plain")
    Qwen3Model(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    modules = [Transformer(str(plain)), Pooling(case.hidden, pooling_mode="lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory))


def write_qwen3_embedding(case: Case, texts: Sequence[str], cache: Path, directory: Path) -> Any:
    """The same as embed-qwen makes one from scratch; returns its tokenizer."""
    from embed_core.models.from_scratch.byte_level import byte_level_tokenizer
    from embed_qwen.build import write_scratch
    from embed_qwen.model_config import Qwen3Shape

    longest = max(case.query_max_len, case.passage_max_len)
    tokenizer = byte_level_tokenizer(texts, case.vocab_size, cache, print, max_length=longest)
    shape = Qwen3Shape(vocab_size=case.vocab_size, hidden=case.hidden, layers=case.layers, heads=case.heads)
    write_scratch(shape, tokenizer, SEED, directory)
    return tokenizer


def tokens_per_row(tokenizer: Any, rows: Sequence[Row], case: Case) -> float:
    """Real tokens of a row, special ones included, repeated texts counted every time: the same work for all systems."""
    queries = [row["query"] for row in rows]
    passages = [text for row in rows for text in (*row["pos"], *row.get("neg", ()))]
    total = 0
    for texts, limit in ((queries, case.query_max_len), (passages, case.passage_max_len)):
        total += sum(map(len, tokenizer(texts, truncation=True, max_length=limit)["input_ids"]))
    return total / len(rows)
