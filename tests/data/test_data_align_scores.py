"""``embed align`` with a real language model: log-probabilities, resuming, failures, a server in its place."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from embed_cli.main import add_plugin_commands, app
from embed_core.distributed.process_group import Ranks
from embed_core.errors import CheckpointError, ConfigError
from embed_core.models.hub import load_tokenizer
from embed_data.align import session
from embed_data.align.request import AlignRequest, ChunkChoice, LanguageModelChoice
from embed_data.align.score import logprobs, scoring
from embed_data.align.score.endpoint import KEY, Endpoint, EndpointError
from embed_data.align.score.logprobs import LocalLogProbs
from embed_data.align.score.prompts import Prompt, Prompts
from embed_data.align.score.server_logprobs import ServerLogProbs
from embed_data.mining.output.progress import Progress

ALONE, QUIET = Ranks(0, 1, 0, "cpu"), Progress(shown=False)
XQUAD = Path(os.environ.get("EMBED_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "xquad"
TEXTS = [
    "The Nile flows north through Egypt and ends in a wide delta.",
    "Copper was mined on the island long before the harbour was built.",
    "The treaty was signed in 1648 after thirty years of war.",
    "Comets are made of ice and dust; their tails point away from the sun.",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def save_lm(folder: Path, texts: list[str], kind: str = "llama", steps: int = 0) -> Path:
    """A tiny causal LM and a byte-level tokenizer of ``texts`` (``gpt2``: absolute positions, BOS and EOS)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if kind == "gpt2":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=768,
            )
        )  # fmt: skip
    ids = torch.tensor([one for text in texts for one in tokenizer(text)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.stack([ids[at : at + 96] for at in torch.randint(0, len(ids) - 96, (8,)).tolist()])
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm(tmp_path_factory.mktemp(request.param), TEXTS * 4, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm(tmp_path_factory.mktemp("llama"), TEXTS * 4)


def reference(folder: Path, ids: tuple[int, ...], count: int) -> list[float]:
    """``log p`` of the last ``count`` tokens: one forward a token, nothing cached, nothing padded, in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    with torch.inference_mode():
        for at in range(len(ids) - count, len(ids)):
            logits = model(input_ids=torch.tensor([ids[:at]]), use_cache=False).logits[0, -1]
            found.append(float(torch.log_softmax(logits, dim=-1)[ids[at]]))
    return found


def local(folder: Path, **options: Any) -> tuple[LocalLogProbs, Any]:
    tokenizer = load_tokenizer(folder)
    choice = LanguageModelChoice(str(folder), precision="fp32", **options)
    return LocalLogProbs(choice, tokenizer, "cpu", lambda line: None), tokenizer


def some_prompts(tokenizer: Any, max_length: int = 256) -> list[Prompt]:
    prompts = Prompts(tokenizer, max_length)
    found = [
        way(chunk, question, answer)
        for chunk in TEXTS[:2]
        for question, answer in (("Where does it flow?", "north"), ("What was mined there long ago?", "Copper, of old"))
        for way in (prompts.forward, prompts.backward)
    ]
    found.append(prompts.forward(TEXTS[3], "What are comets made of?", "ice and dust"))  # alone with its prefix
    assert all(isinstance(one, Prompt) for one in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_log_probabilities_are_those_of_a_plain_loop(lm: Path, batch_tokens: int) -> None:
    model, tokenizer = local(lm, batch_tokens=batch_tokens)
    prompts = some_prompts(tokenizer)
    assert model._shares
    for prompt, found in zip(prompts, model.score(prompts), strict=True):
        assert found == pytest.approx(reference(lm, prompt.ids, len(prompt.target)), abs=1e-4)


def test_whole_and_shared_forwards_agree(lm: Path) -> None:
    model, tokenizer = local(lm)
    prompts = some_prompts(tokenizer)
    shared = model.score(prompts)
    model._shares = False
    for one, other in zip(shared, model.score(prompts), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_cache_that_gives_other_numbers_is_not_used(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LocalLogProbs._shared

    def wrong(self: Any, prefix: Any, members: Any, prompts: Any, found: dict[int, list[float]]) -> None:
        right(self, prefix, members, prompts, found)
        found.update({n: [value + 1 for value in values] for n, values in found.items()})

    monkeypatch.setattr(LocalLogProbs, "_shared", wrong)
    said: list[str] = []
    tokenizer = load_tokenizer(llama)
    model = LocalLogProbs(LanguageModelChoice(str(llama)), tokenizer, "cpu", said.append)
    assert said == ["the language model gives other numbers from cached prefixes: every prompt is run whole, slower"]
    prompt = some_prompts(tokenizer)[0]
    assert model.score([prompt, prompt])[0] == pytest.approx(reference(llama, prompt.ids, len(prompt.target)), abs=1e-4)


def test_pieces_are_ids_and_the_chunk_alone_is_trimmed(lm: Path) -> None:
    tokenizer = load_tokenizer(lm)
    start = [0] if "gpt2" in str(lm) else []
    whole = Prompts(tokenizer, 10_000).forward(TEXTS[0] * 20, "Where to?", "north")
    assert isinstance(whole, Prompt)
    assert list(whole.ids[: len(start)]) == start
    assert whole.ids.count(0) == len(start)
    assert whole.ids.count(1) == 0  # no end of text inside
    assert tokenizer.decode(whole.target) == " north"
    assert tokenizer.decode(whole.middle) == "\n\nQuestion: Where to?\n\nAnswer:"
    short = Prompts(tokenizer, 150).forward(TEXTS[0] * 20, "Where to?", "north")
    assert isinstance(short, Prompt)
    assert len(short.ids) == 150
    assert short.trimmed == len(whole.ids) - 150
    assert (short.middle, short.target) == (whole.middle, whole.target)
    assert short.prefix == whole.prefix[: len(short.prefix)]
    least = len(whole.ids) - len(whole.prefix)
    said = Prompts(tokenizer, least).forward(TEXTS[0], "Where to?", "north")
    assert isinstance(said, str)
    assert f"the limit is {least}, and the chunk needs one at least" in said


def test_a_sentencepiece_tokenizer_gets_no_second_blank(tmp_path: Path) -> None:
    from embed_core.models.from_scratch.unigram import unigram_tokenizer

    tokenizer = unigram_tokenizer(TEXTS * 4, 120, tmp_path, lambda line: None)
    prompt = Prompts(tokenizer, 512).forward(TEXTS[0], "Where to?", "north")
    assert isinstance(prompt, Prompt)
    assert list(prompt.target) == tokenizer("north", add_special_tokens=False)["input_ids"]
    assert prompt.prefix[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt.ids


def test_messages_of_the_language_model(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-length 4096: .* takes 768 tokens at most"):
        local(llama, max_length=4096)
    other = load_tokenizer(save_lm(tmp_path / "other", [*TEXTS, *(f"word{n} thing{n}" for n in range(900))]))
    with pytest.raises(CheckpointError, match=r"knows \d+ tokens and the tokenizer's ids go up to 9\d\d"):
        LocalLogProbs(LanguageModelChoice(str(llama)), other, "cpu", lambda line: None)
    (tmp_path / "broken").mkdir()
    shutil.copytree(llama, tmp_path / "broken", dirs_exist_ok=True)
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of LlamaForCausalLM, 'model.layers.2"):
        local(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, "model_type": "xlm-nothing"}))
    with pytest.raises(CheckpointError, match="cannot be loaded as a causal language model"):
        local(tmp_path / "broken")


def test_out_of_memory_says_what_to_lower(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = local(llama)

    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "_run", full)
    with pytest.raises(ConfigError, match="--batch-tokens 16384: the device's memory does not do for it"):
        model.score(some_prompts(tokenizer))


# --- the whole command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"id": f"q{n}", "input": f"What about {text.split()[1]}?", "answers": [text.split()[-1]], "context": TEXTS}
        for n, text in enumerate(TEXTS)
    ]
    rows.append({"id": "none", "input": "What is the moon made of?", "answers": [], "context": TEXTS})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(data: Path, output: Path, llama: Path, **options: Any) -> AlignRequest:
    asked = AlignRequest(
        data, output, chunks=ChunkChoice("paragraphs"), lm=LanguageModelChoice(str(llama), precision="fp32"),
        weights=(1, 0.3, 0), positives=1,
    )  # fmt: skip
    return replace(asked, **options)


def align(asked: AlignRequest) -> dict[str, Any]:
    return session.run(asked, ALONE, lambda line: None, QUIET)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores_are_means_over_tokens_and_a_question_takes_its_best_answer(
    data: Path, tmp_path: Path, llama: Path
) -> None:
    rows = read(data)
    rows[0]["answers"] = ["delta.", "the sun of copper"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = align(request(data, tmp_path / "out", llama))
    assert (report["questions"], report["unanswerable"], report["rows"]) == (5, 1, 4)
    model, tokenizer = local(llama)
    prompts = Prompts(tokenizer, model.max_length)
    texts = {row["_id"]: row["text"] for row in read(tmp_path / "out" / "chunks.jsonl")}
    first = next(row for row in read(tmp_path / "out" / "scored.jsonl") if row["id"] == "q0")
    assert len(first["chunks"]) == 4
    for chunk in first["chunks"]:
        for way, name in ((prompts.forward, "forward"), (prompts.backward, "backward")):
            means = []
            for answer in rows[0]["answers"]:
                prompt = way(texts[chunk["id"]], rows[0]["input"], answer)
                assert isinstance(prompt, Prompt)
                means.append(sum(reference(llama, prompt.ids, len(prompt.target))) / len(prompt.target))
            assert chunk[name] == pytest.approx(max(means), abs=1e-4)


def test_a_failed_pair_is_reported_and_left_out(
    data: Path, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LocalLogProbs.score
    calls: list[int] = []

    def sometimes(self: LocalLogProbs, prompts: Any) -> list[Any]:
        calls.append(len(prompts))
        found: list[Any] = right(self, prompts)
        found[0] = "the language model gave a log-probability that is not finite"
        return found

    align(request(data, tmp_path / "right", llama))
    monkeypatch.setattr(LocalLogProbs, "score", sometimes)
    report = align(request(data, tmp_path / "out", llama))
    assert report["failed_pairs"] == len(calls) == 1
    failed = read(tmp_path / "out" / "failed.jsonl")
    assert [row["id"] for row in failed] == ["q0"]
    assert failed[0]["failed"] == "forward: the language model gave a log-probability that is not finite"
    rows = {row["id"]: row for row in read(tmp_path / "out" / "scored.jsonl")}
    last = rows["q0"]["chunks"][-1]
    assert (last["id"], last["score"], last["forward"]) == (failed[0]["chunk"], None, None)
    assert last["backward"] is not None
    assert failed[0]["chunk"] not in rows["q0"]["positives"] + rows["q0"]["negatives"]
    assert "Infinity" not in (tmp_path / "out" / "scored.jsonl").read_text()
    for before in read(tmp_path / "right" / "scored.jsonl")[1:]:
        assert rows[before["id"]] == before  # nobody else is disturbed


def test_other_weights_use_the_scores_that_are_there(
    data: Path, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    align(request(data, tmp_path / "out", llama))
    monkeypatch.setattr(LocalLogProbs, "score", lambda self, prompts: pytest.fail("scored again"))
    with pytest.raises(CheckpointError, match=r"holds scored.jsonl already: --overwrite replaces it"):
        align(request(data, tmp_path / "out", llama))
    report = align(request(data, tmp_path / "out", llama, weights=(0, 1, 0), overwrite=True))
    assert report["weights"] == "0,1,0"
    for row in read(tmp_path / "out" / "scored.jsonl"):
        backwards = [chunk["backward"] for chunk in row["chunks"]]
        assert backwards == sorted(backwards, reverse=True)


class Stub(BaseHTTPRequestHandler):
    """``/v1/completions`` by the local model; ``server.faults`` are sent first, one a request."""

    def do_POST(self) -> None:
        server: Any = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, self.headers.get("Authorization"), asked))
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
        if fault is None:
            ids = tuple(asked["prompt"])
            # Position 0 has none; one more token is generated, as max_tokens 1 asks.
            values = [None, *server.model.score([Prompt(ids[:1], (), ids[1:])])[0], -1.0]
            fault = 200, {"choices": [{"text": "", "logprobs": {"token_logprobs": values}}]}
        body = json.dumps(fault[1]).encode()
        self.send_response(fault[0])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(llama: Path) -> Iterator[Any]:
    found: Any = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    found.model, _ = local(llama)
    found.model._shares = False
    found.asked, found.faults, found.lock = [], [], threading.Lock()
    found.url = f"http://127.0.0.1:{found.server_port}/v1"
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def remote(server: Any, llama: Path, pauses: list[float] | None = None) -> ServerLogProbs:
    choice = LanguageModelChoice("served", server.url, str(llama), max_length=256, concurrency=2)
    pause = pauses.append if pauses is not None else lambda seconds: None
    return ServerLogProbs(choice, load_tokenizer(llama), Endpoint(server.url, pause=pause))


def test_a_server_gives_the_numbers_that_a_local_model_gives(
    server: Any, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret")
    model, tokenizer = local(llama)
    prompts = some_prompts(tokenizer)
    for one, other in zip(remote(server, llama).score(prompts), model.score(prompts), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    path, key, asked = server.asked[0]
    assert (path, key, asked["model"], asked["echo"]) == ("/v1/completions", "Bearer secret", "served", True)
    assert all(isinstance(one, int) for one in asked["prompt"])


def test_a_server_that_stumbles_refuses_or_is_none(server: Any, llama: Path) -> None:
    prompts = some_prompts(load_tokenizer(llama))[:1]
    pauses: list[float] = []
    server.faults += [(503, {}), (429, {})]
    assert isinstance(remote(server, llama, pauses).score(prompts)[0], list)
    assert pauses == [1.0, 2.0]
    server.faults.append((400, {"error": {"message": "prompt too long"}}))
    assert remote(server, llama).score(prompts) == ["the server refuses the prompt: HTTP 400: prompt too long"]
    bad = {"choices": [{"logprobs": {"token_logprobs": [None, *[float("-inf")] * (len(prompts[0].ids) - 1)]}}]}
    server.faults.append((200, bad))
    assert remote(server, llama).score(prompts) == ["the server gave a log-probability that is not finite"]
    for fault, message in (
        ((401, {"error": {"message": "no key"}}), rf"completions answers HTTP 401: no key: set {KEY}"),
        ((404, {"message": "no such model"}), "HTTP 404: no such model"),
        ((200, {"choices": [{"text": "hello"}]}), "gives none log-probabilities for a prompt of"),
        ((200, [1]), "no JSON object: is it OpenAI-compatible"),
    ):
        server.faults.append(fault)
        with pytest.raises(EndpointError, match=message):
            remote(server, llama).score(prompts)
    server.faults += [(500, {"error": {"message": "busy"}})] * 5
    with pytest.raises(EndpointError, match=r"cannot be used after 5 attempts \(HTTP 500: busy\)"):
        remote(server, llama).score(prompts)
    with pytest.raises(EndpointError, match="it starts with http:// or https://"):
        Endpoint("localhost:8000")


def test_aligned_by_a_server(server: Any, data: Path, tmp_path: Path, llama: Path) -> None:
    choice = LanguageModelChoice("served", server.url, str(llama), max_length=768)
    align(request(data, tmp_path / "served", llama, lm=choice))
    align(request(data, tmp_path / "local", llama))
    for one, other in zip(
        read(tmp_path / "served" / "scored.jsonl"), read(tmp_path / "local" / "scored.jsonl"), strict=True
    ):
        assert one["positives"] == other["positives"]
        assert [c["forward"] for c in one["chunks"]] == pytest.approx([c["forward"] for c in other["chunks"]], abs=1e-4)


# --- real text


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A language model of XQuAD's English train articles, and two test articles as a BEIR folder."""
    if not XQUAD.is_dir():
        pytest.skip(f"{XQUAD} is not there: no real data to align")
    folder = tmp_path_factory.mktemp("real")
    with (XQUAD / "train.jsonl").open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["lang"] == "en"]
    texts = list(dict.fromkeys(row["pos"][0] for row in rows))
    model = save_lm(folder / "lm", [*texts, *(f"{row['query']} {row['answers'][0]}" for row in rows)], steps=15)
    corpus = read(XQUAD / "test-en" / "corpus.jsonl")
    titles = list(dict.fromkeys(row["title"] for row in corpus))[:2]
    kept = [row for row in corpus if row["title"] in titles]
    title = {row["_id"]: row["title"] for row in kept}
    judged = (XQUAD / "test-en" / "qrels" / "test.tsv").read_text().splitlines()
    lines = [judged[0]]
    for wanted in titles:  # eight questions about each
        lines += [line for line in judged[1:] if title.get(line.split("\t")[1]) == wanted][:8]
    (folder / "data" / "qrels").mkdir(parents=True)
    (folder / "data" / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    (folder / "data" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    shutil.copy(XQUAD / "test-en" / "queries.jsonl", folder / "data" / "queries.jsonl")
    return folder / "data", model


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_real_text_interrupted_and_resumed_is_uninterrupted_to_the_byte(
    real: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = real
    monkeypatch.setattr(scoring, "PAIRS", 16)
    asked = AlignRequest(
        data, tmp_path / "whole", group_by="title", chunks=ChunkChoice("paragraphs"),
        lm=LanguageModelChoice(str(model), precision="fp32"), weights=(1, 0.3, 0), positives=1,
    )  # fmt: skip
    report = align(asked)
    assert (report["questions"], report["chunks"], report["rows"]) == (16, 10, 16)
    assert report["questions_with_gold"] == 16  # a paragraph of each article is judged relevant
    right, calls = LocalLogProbs.score, [0]

    def killed(self: LocalLogProbs, prompts: Any) -> Any:
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise KeyboardInterrupt
        return right(self, prompts)

    monkeypatch.setattr(LocalLogProbs, "score", killed)
    again = replace(asked, output=tmp_path / "resumed")
    kills = 0
    for _ in range(20):
        try:
            align(again)
            break
        except KeyboardInterrupt:
            kills += 1
            assert not (again.output / "scored.jsonl").exists()
    assert kills >= 2
    assert files(again.output) == files(asked.output)

    monkeypatch.setattr(LocalLogProbs, "score", right)
    scores, tokenizer = local(model)
    prompts = Prompts(tokenizer, scores.max_length)
    texts = {row["_id"]: row["text"] for row in read(asked.output / "chunks.jsonl")}
    # Questions of both articles, their best and their worst chunk, both directions: token by token, in one batch.
    asked_about = [(row, row["chunks"][at]) for row in read(asked.output / "scored.jsonl")[::5] for at in (0, -1)]
    assert len({row["doc_id"] for row, _ in asked_about}) == 2
    pairs = [
        (chunk[name], way(texts[chunk["id"]], row["query"], row["answers"][0]))
        for row, chunk in asked_about
        for name, way in (("forward", prompts.forward), ("backward", prompts.backward))
    ]
    built = [prompt for _, prompt in pairs if isinstance(prompt, Prompt)]
    assert len(built) == len(pairs) == 16
    for (mean, _), prompt, found in zip(pairs, built, scores.score(built), strict=True):
        plain = reference(model, prompt.ids, len(prompt.target))
        assert found == pytest.approx(plain, abs=1e-4)
        assert mean == pytest.approx(sum(plain) / len(plain), abs=1e-4)


def test_the_command_as_it_is_typed(data: Path, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_parameter_stage", lambda *arguments: pytest.fail("no retriever was given"))
    add_plugin_commands(["align"])
    arguments = ["align", str(data), "-o", str(tmp_path / "out"), "--chunk-by", "paragraphs", "--lm", str(llama)]
    result = CliRunner().invoke(app, [*arguments, "--weights", "1,0.3,0", "-m", "4"])
    assert result.exit_code == 0, result.output
    assert "correlation of the components over all pairs (Pearson)" in result.output
    assert "4 rows of 5 questions, 16 positives, 0 random negatives of the same documents" in result.output
    assert "1 questions have no answer and no row" in result.output
    assert "4 questions have documents of at most 4 chunks, all of them positives" in result.output
    assert logprobs.LENGTHS  # the module with torch is loaded by now, and was not at import
