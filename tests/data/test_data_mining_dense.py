"""Mining by a registered model: exact against a brute-force search, on disk, on ranks, with teachers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import processes
from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import concat, slice_rows
from embed_core.errors import CheckpointError, ConfigError
from embed_core.types import Embeddings
from embed_data.mining import session
from embed_data.mining.corpus import shards
from embed_data.mining.corpus.collection import Collection
from embed_data.mining.corpus.rows import rows_in_place
from embed_data.mining.output.progress import Progress
from embed_data.mining.rank import dense
from embed_data.mining.rank.dense import Dense, Faiss, build_faiss
from embed_data.mining.rank.model import TextEncoder, resolve_model
from embed_data.mining.request import MiningRequest, ModelChoice

ALONE = Ranks(0, 1, 0, "cpu")
QUIET = Progress(shown=False)
WORDS = [
    *("stone", "wall", "river", "copper", "harbour", "treaty", "comet"),
    *("spring", "masons", "boats", "people", "tower", "bridge"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BGE-M3 with its heads and a tokenizer of the words, as its plugin exports it."""
    from embed_bge.build import fresh_heads
    from embed_bge.checkpoint import BGEM3Checkpointer
    from embed_bge.config import BGEM3ModelConfig
    from embed_bge.model import BGEM3Model
    from embed_core.export.model_card import RunCard
    from embed_core.models.from_scratch.config import EncoderShape
    from embed_core.models.from_scratch.encoder import xlm_roberta
    from embed_core.models.from_scratch.unigram import unigram_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = unigram_tokenizer(WORDS * 3, 80, folder / "cache", lambda line: None)
    shape = EncoderShape(vocab_size=len(tokenizer), hidden=16, layers=1, heads=2)
    encoder = xlm_roberta(len(tokenizer), shape, max_length=64, seed=3)
    config = BGEM3ModelConfig(sentence_pooling_method="mean")
    built = BGEM3Model.from_parts(config, encoder, tokenizer, fresh_heads(config, encoder, 3))
    card = RunCard("tiny", "from-scratch", {}, {"name": "tiny", "rows": 0, "fingerprint": ""}, {}, "", 0, {})
    (folder / "tiny").mkdir()
    BGEM3Checkpointer().export(built, built.state_dict(), folder / "tiny", card)
    return folder / "tiny"


def choice(model: Path | None) -> ModelChoice:
    fixed = ("model.sentence_pooling_method=mean", "engine.precision=fp32", "engine.device=cpu")
    return ModelChoice(str(model) if model is not None else None, ("bge",), None, fixed)


@pytest.fixture
def data(tmp_path: Path) -> SimpleNamespace:
    """30 rows, a corpus of 50; every third positive is not in the corpus."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 9)))) + f" {n}" for n in range(50)]
    write(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)])
    rows = [
        {"query": " ".join(rng.choice(WORDS, size=3)), "pos": [texts[n] if n % 3 else f"tower {n} of stone"]}
        for n in range(30)
    ]
    write(tmp_path / "rows.jsonl", rows)
    read_rows = rows_in_place(tmp_path / "rows.jsonl")
    collection = Collection(read_rows, tmp_path / "corpus.jsonl")
    return SimpleNamespace(rows=read_rows, collection=collection, folder=tmp_path, path=tmp_path / "rows.jsonl")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mine(data: SimpleNamespace, name: str, model: Path, by: Any = "dense", **changes: Any) -> Path:
    output: Path = data.folder / name
    options = {"model": choice(model if by == "dense" else None), "corpus": data.folder / "corpus.jsonl", **changes}
    session.run(MiningRequest(data=data.path, output=output, by=by, **options), ALONE, lambda line: None, QUIET)
    return output


def encoder_of(model: Path, way: str | None = None) -> TextEncoder:
    return TextEncoder(resolve_model(choice(model)), ALONE, way, lambda line: None)


def by_hand(data: SimpleNamespace, model: Path) -> np.ndarray:
    """Cosines in float64, text by text, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    net, tokenizer = AutoModel.from_pretrained(model).double().eval(), AutoTokenizer.from_pretrained(model)

    def vector(text: str) -> np.ndarray:
        with torch.no_grad():
            found = net(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return torch.nn.functional.normalize(found, dim=0).numpy()  # type: ignore[no-any-return]

    documents = np.stack([vector(text) for text in data.collection.texts()])
    queries = np.stack([vector(data.rows[n].row.query) for n in range(len(data.rows))])
    return queries @ documents.T  # type: ignore[no-any-return]


def test_negatives_are_the_brute_force_search_s(data: SimpleNamespace, model: Path, monkeypatch: Any) -> None:
    """Small shards and blocks, so that both have borders to get wrong."""
    monkeypatch.setattr(shards, "SHARD", 7)
    monkeypatch.setattr(dense, "SHARD", 7)
    monkeypatch.setattr(session, "BLOCK", 4)
    rows = read(mine(data, "out.jsonl", model, negatives=5, last_rank=20, relative_margin=0.01, overlap=1.0))
    scores = by_hand(data, model)
    texts = list(data.collection.texts())
    seen = 0
    for number, row in enumerate(rows):
        positive = scores[number][data.collection.positives(number)[0]]
        assert row["pos_scores"] == [pytest.approx(positive, abs=1e-5)]
        limit = positive - 0.01 * abs(positive)
        order = [n for n in np.argsort(-scores[number][:50]) if texts[n] != row["pos"][0]][:20]
        expected = [texts[n] for n in order if scores[number][n] <= limit and not near(texts[n], row["pos"][0])][:5]
        if np.min(np.abs(scores[number][order] - limit)) > 1e-5:  # no rounding decides
            assert row["neg"] == expected
            found = [scores[number][texts.index(text)] for text in row["neg"]]
            assert row["neg_scores"] == pytest.approx(found, abs=1e-5)
            seen += len(expected)
    assert seen > 40


def near(text: str, positive: str) -> bool:
    from embed_data.mining.select.screen import overlaps, plain

    return overlaps(plain(text), plain(positive), 1.0)


@pytest.mark.parametrize("way", ["dense", "all", "sparse"])
def test_vectors_come_back_from_disk_as_they_went(
    data: SimpleNamespace, model: Path, way: str, monkeypatch: Any
) -> None:
    """Whatever kinds the way of scoring has, in any order of documents, over borders of shards."""
    monkeypatch.setattr(shards, "SHARD", 7)
    encoder = encoder_of(model, None if way == "dense" else way)
    kept = shards.Shards(data.folder, "model", len(data.collection), "cpu")
    kept.encode(data.collection, encoder, ALONE, QUIET)
    texts = list(data.collection.texts())
    whole = concat([encoder.encode(texts[n : n + 7], "passage") for n in range(0, len(texts), 7)])
    kinds = {"dense": (True, False, False), "all": (True, True, True), "sparse": (False, True, False)}[way]
    assert tuple(part is not None for part in whole) == kinds
    wanted = [52, 3, 3, 0, 13, 7, 6, 41]
    taken = kept.take(wanted)
    for at, number in enumerate(wanted):
        one, two = _parts(slice_rows(taken, at, at + 1)), _parts(slice_rows(whole, number, number + 1))
        assert len(one) == len(two) > 0
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _parts(e: Embeddings) -> list[torch.Tensor]:
    return [e.dense_ND] * (e.dense_ND is not None) + [t for part in (e.sparse, e.multi) if part for t in part]  # type: ignore[list-item]


def test_what_a_killed_run_encoded_is_not_encoded_again(
    data: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 7)
    monkeypatch.setattr(dense, "SHARD", 7)
    whole = mine(data, "whole.jsonl", model).read_bytes()
    saves: list[int] = []
    save = shards.Shards._save

    def killed(self: Any, number: int, embeddings: Embeddings) -> None:
        if len(saves) == 3:
            raise KeyboardInterrupt
        saves.append(number)
        save(self, number, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            mine(data, "out.jsonl", model)
    monkeypatch.setattr(shards.Shards, "_save", lambda *given: saves.append(given[1]) or save(*given))
    assert mine(data, "out.jsonl", model).read_bytes() == whole
    assert saves == list(range(9)), "60 documents in shards of 7, each encoded once"


def test_other_weights_are_another_command(data: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    copy = data.folder / "copy"
    shutil.copytree(model, copy)
    with monkeypatch.context() as patch:
        patch.setattr(session.MiningBlocks, "block", lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mine(data, "out.jsonl", copy)
    state = load_file(copy / "model.safetensors")
    save_file({name: value * 1.5 for name, value in state.items()}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"another command \(different: model_weights\)"):
        mine(data, "out.jsonl", copy)


def test_faiss_flat_is_the_exact_search(data: SimpleNamespace, model: Path) -> None:
    pytest.importorskip("faiss")
    exact, flat = (mine(data, f"{name}.jsonl", model, faiss=name, last_rank=20) for name in (None, "Flat"))
    for one, two in zip(read(exact), read(flat), strict=True):
        assert one["neg"] == two["neg"]
        assert one["neg_scores"] == pytest.approx(two["neg_scores"], abs=1e-6)


def test_an_approximate_index_finds_most_and_scores_exactly(data: SimpleNamespace, model: Path) -> None:
    pytest.importorskip("faiss")
    encoder = encoder_of(model)
    kept = shards.Shards(data.folder, "model", len(data.collection), "cpu")
    kept.encode(data.collection, encoder, ALONE, QUIET)
    build_faiss("HNSW8", kept, encoder, data.collection.minable, data.folder, ALONE, QUIET)
    exact = Dense(data.rows, data.collection, encoder, kept)
    index = Faiss(data.rows, data.collection, encoder, kept, data.folder)
    found = 0
    for one, two in zip(exact.search(range(30), 10), index.search(range(30), 10), strict=True):
        scores = dict(zip(*one, strict=True))
        assert all(scores.get(n, s) == pytest.approx(s, abs=1e-6) for n, s in zip(*two, strict=True))
        assert two.scores == sorted(two.scores, reverse=True)
        found += len(set(one.documents) & set(two.documents))
    assert found > 240


def test_what_faiss_cannot_do(data: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ConfigError, match=r"--faiss 'IVF4096,Flat': faiss cannot build that over 50 vectors of 16"):
        mine(data, "out.jsonl", model, faiss="IVF4096,Flat")
    with pytest.raises(ConfigError, match=r"--faiss 'Flt': faiss cannot build that"):
        mine(data, "out2.jsonl", model, faiss="Flt")
    with pytest.raises(ConfigError, match="--way 'all' scores by more"):
        mine(data, "out3.jsonl", model, faiss="Flat", way="all")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'embed-data\[faiss\]'"):
        mine(data, "out4.jsonl", model, faiss="Flat")


def test_a_way_the_model_does_not_have(data: SimpleNamespace, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"--way 'al': the model has no such way of scoring: did you mean 'all'\?"):
        mine(data, "out.jsonl", model, way="al")


def test_a_run_s_output_directory_needs_no_plugin(data: SimpleNamespace, model: Path) -> None:
    """What a run leaves says how its model is built: its own pooling, not the recipe's default."""
    from embed_cli.run_command import RunRequest, resolve
    from embed_core.config.resolve import plain

    fixed = ("model.sentence_pooling_method=mean", "model.query_max_len=5", "engine.precision=fp32")
    run, _, _ = resolve(RunRequest(("bge",), None, fixed), 1)
    folder = data.folder / "run"
    shutil.copytree(model, folder / "model")
    (folder / "config.yaml").write_text(json.dumps(plain(run)))
    for path in (folder, folder / "model"):
        found = resolve_model(ModelChoice(str(path)))
        assert found.config.model.model_dump()["name_or_path"] == str(folder / "model")
        assert found.config.model.model_dump()["query_max_len"] == 5
    other = resolve_model(ModelChoice(str(folder), overrides=("model.query_max_len=9",)))
    assert other.config.model.model_dump()["query_max_len"] == 9


def test_random_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="'from-scratch': random weights rank at random"):
        resolve_model(ModelChoice(None, ("bge",)))


def test_a_row_s_prompt_goes_before_its_query(data: SimpleNamespace, model: Path) -> None:
    encoder = encoder_of(model)
    plain, asked = encoder.encode(["stone wall", "stone wall"], "query", [None, "river "]).dense_ND  # type: ignore[misc]
    assert torch.equal(asked, encoder.encode(["river stone wall"], "query").dense_ND[0])  # type: ignore[index]
    assert not torch.equal(plain, asked)
    rows = [{"query": "stone wall", "pos": ["x wall"]}, {"query": "stone wall", "pos": ["x wall"], "prompt": "river "}]
    write(data.path, rows)
    one, two = read(mine(data, "out.jsonl", model))
    assert one["pos_scores"] != two["pos_scores"]


def test_a_teacher_judges_what_bm25_finds(data: SimpleNamespace, model: Path) -> None:
    """Margins, order and scores are the teacher's; the candidates are BM25's."""
    options: dict[str, Any] = {"by": "bm25", "overlap": 1.0, "negatives": 4, "last_rank": 12}
    found = read(mine(data, "found.jsonl", model, **{**options, "negatives": 12}))
    judged = read(mine(data, "judged.jsonl", model, teacher=str(model), relative_margin=0.01, **options))
    scores, texts = by_hand(data, model), list(data.collection.texts())
    for number, (all_of_them, row) in enumerate(zip(found, judged, strict=True)):
        positive = scores[number][data.collection.positives(number)[0]]
        assert row["pos_scores"] == [pytest.approx(positive, abs=1e-5)]
        by_teacher = sorted(all_of_them["neg"], key=lambda text: -scores[number][texts.index(text)])
        limit = positive - 0.01 * abs(positive)
        expected = [t for t in by_teacher if scores[number][texts.index(t)] <= limit][:4]
        assert row["neg"] == expected
    assert any(row["neg"] for row in judged)


@pytest.fixture(scope="module")
def reranker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(model, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def test_a_cross_encoder_judges(data: SimpleNamespace, model: Path, reranker: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    net = AutoModelForSequenceClassification.from_pretrained(reranker).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(reranker)
    options: dict[str, Any] = {"by": "bm25", "negatives": 3, "cross_encoder": str(reranker)}
    rows = read(mine(data, "out.jsonl", model, absolute_margin=0.0, **options))
    pairs = [
        (row["query"], text, score)
        for row in rows[:6]
        for side in ("pos", "neg")
        for text, score in zip(row[side], row[f"{side}_scores"], strict=True)
    ]
    assert len(pairs) > 8
    for query, text, score in pairs:
        with torch.no_grad():
            logit = float(net(**tokenizer(query, text, return_tensors="pt")).logits)
        assert score == pytest.approx(logit, abs=1e-4), "a logit, not its sigmoid"
    for row in rows:
        assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True)
        assert all(score <= row["pos_scores"][0] for score in row["neg_scores"])


def test_what_is_no_cross_encoder(data: SimpleNamespace, model: Path, reranker: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    with pytest.raises(CheckpointError, match=r"is a XLMRobertaModel, which scores no pairs: .*--teacher"):
        mine(data, "out.jsonl", model, by="bm25", cross_encoder=str(model))
    with pytest.raises(CheckpointError, match=r"model directory '\./nowhere' does not exist"):
        mine(data, "out.jsonl", model, by="bm25", cross_encoder="./nowhere")
    three = data.folder / "three"
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model, num_labels=3)).save_pretrained(
        three
    )
    AutoTokenizer.from_pretrained(model).save_pretrained(three)
    with pytest.raises(CheckpointError, match="has 3 labels: a reranker has one"):
        mine(data, "out.jsonl", model, by="bm25", cross_encoder=str(three))


def test_audit_by_a_model(data: SimpleNamespace, model: Path) -> None:
    mined = mine(data, "mined.jsonl", model, negatives=6)
    audited = mine(SimpleNamespace(path=mined, folder=data.folder), "found.jsonl", model, audit=True, corpus=None)
    found = {(f["query"], f["neg"]) for f in read(audited)}
    expected = {
        (row["query"], text)
        for row in read(mined)
        for text, score in zip(row["neg"], row["neg_scores"], strict=True)
        if score > row["pos_scores"][0]
    }
    assert found == expected != set()


def test_two_ranks_write_the_same(data: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command and its launcher: two shards and two blocks, one of each on either rank."""
    (data.folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if '-m' in sys.orig_argv and 'embed_cli' in sys.orig_argv and 'two.jsonl' in ' '.join(sys.orig_argv):\n"
        "    from embed_data.mining import session\n"
        "    from embed_data.mining.corpus import shards\n"
        "    from embed_data.mining.rank import dense\n"
        "    session.BLOCK, shards.SHARD, dense.SHARD = 16, 32, 32\n"
    )
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(data.folder)}
    command = [sys.executable, "-m", "embed_cli", "mine", str(data.path), "-o", str(data.folder / "two.jsonl")]
    command += ["--corpus", str(data.folder / "corpus.jsonl"), "--by", "dense", "--model", str(model)]
    command += ["--plugin", "bge", "--nproc", "2", *(p for pair in choice(model).overrides for p in ("--set", pair))]
    answer = processes.run(command, env=environment, capture_output=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("negatives for 30 rows") == 1
    for module, name, value in ((session, "BLOCK", 16), (shards, "SHARD", 32), (dense, "SHARD", 32)):
        monkeypatch.setattr(module, name, value)
    assert (data.folder / "two.jsonl").read_bytes() == mine(data, "one.jsonl", model).read_bytes()
