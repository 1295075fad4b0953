"""From-scratch tokenizers and encoders: XLM-RoBERTa's shape, the same for the same texts, and cached."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from embed_core.errors import ConfigError
from embed_core.models.from_scratch import unigram as module
from embed_core.models.from_scratch.config import EncoderShape
from embed_core.models.from_scratch.encoder import seeded, xlm_roberta
from embed_core.models.from_scratch.unigram import unigram_tokenizer

torch.set_num_threads(1)

_RANDOM = random.Random(0)
_WORDS = ["".join(_RANDOM.choices("aeioubcdlmnrst", k=_RANDOM.randint(1, 9))) for _ in range(400)]
TEXTS = [" ".join(_RANDOM.choices(_WORDS, k=30)) + f" § {n} ﬁ Ünïcode 多語言!" for n in range(200)]
# Characters that no piece covers: the trainer gives these scores in the order of a hash map.
TEXTS += [f"{chr(0x2200 + n)}{chr(0x2300 + n)}" for n in range(30)]


def silent(line: str) -> None:
    pass


def train(tmp_path: Path, size: int = 300, texts=TEXTS, **options):
    return unigram_tokenizer(texts, size, tmp_path, silent, **options)


def test_ids_template_and_special_tokens_are_xlm_roberta_s(tmp_path):
    tokenizer = train(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert [tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id] == [0, 0, 1]
    assert [tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id] == [2, 2, 3]
    assert tokenizer.mask_token_id == 4
    ids = tokenizer("abc dee")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)
    assert tokenizer("a", "b")["input_ids"].count(2) == 3
    assert tokenizer("\U0001f600")["input_ids"][-2] == 3
    assert len(tokenizer) == 300
    assert tokenizer.model_max_length == 512


def test_nfkc_and_spaces(tmp_path):
    tokenizer = train(tmp_path)
    assert tokenizer("ﬁ１")["input_ids"] == tokenizer("fi1")["input_ids"]
    assert tokenizer(" a   b\n")["input_ids"] == tokenizer("a b")["input_ids"]
    assert tokenizer.decode(tokenizer("a 多語言 b")["input_ids"], skip_special_tokens=True) == "a 多語言 b"


def test_reload_through_auto_tokenizer(tmp_path):
    tokenizer = train(tmp_path, max_length=77)
    xlm_roberta(
        len(tokenizer), EncoderShape(hidden=8, layers=1, heads=1), max_length=77, seed=0
    ).config.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert again("ﬁ  １")["input_ids"] == tokenizer("ﬁ  １")["input_ids"]
    assert again.model_max_length == 77
    assert (again.pad_token_id, again.cls_token_id, again.eos_token_id) == (1, 0, 2)


def test_any_order_of_the_texts_gives_the_same_tokenizer(tmp_path):
    one = train(tmp_path / "a")
    two = train(tmp_path / "b", texts=list(reversed(TEXTS)))
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    [a], [b] = ([p.name for p in (tmp_path / d / "tokenizers").iterdir()] for d in "ab")
    assert a == b


def test_every_process_gives_the_same_tokenizer(tmp_path):
    """The trainer's hash maps are seeded per process."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    code = (
        "import json, sys, pathlib; from embed_core.models.from_scratch.unigram import unigram_tokenizer as u; "
        "t = json.loads(pathlib.Path(sys.argv[1]).read_text()); u(t, 300, pathlib.Path(sys.argv[2]), lambda line: None)"
    )
    for n in range(2):
        subprocess.run([sys.executable, "-c", code, tmp_path / "texts.json", tmp_path / str(n)], check=True, timeout=60)
    train(tmp_path / "2")
    files = [next((tmp_path / str(n) / "tokenizers").iterdir()) for n in range(3)]
    assert len({path.read_text() for path in files}) == 1


def test_the_second_call_reads_the_cache_and_a_broken_cache_is_rebuilt(tmp_path, monkeypatch):
    notes: list[str] = []
    first = unigram_tokenizer(TEXTS, 300, tmp_path, notes.append)
    assert len(notes) == 1
    assert "trained a Unigram tokenizer of 300 pieces on 230 texts" in notes[0]
    monkeypatch.setattr(module, "_train", None)
    assert unigram_tokenizer(TEXTS, 300, tmp_path, notes.append)("a b")["input_ids"] == first("a b")["input_ids"]
    assert len(notes) == 1
    monkeypatch.undo()
    [path] = (tmp_path / "tokenizers").iterdir()
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    unigram_tokenizer(TEXTS, 300, tmp_path, notes.append)
    assert path.read_text() == good
    assert list((tmp_path / "tokenizers").iterdir()) == [path]


def test_other_texts_or_another_size_are_other_tokenizers(tmp_path):
    train(tmp_path)
    train(tmp_path, 250)
    train(tmp_path, texts=[*TEXTS, "one more"])
    assert len(list((tmp_path / "tokenizers").iterdir())) == 3


def test_a_small_corpus_gives_fewer_pieces(tmp_path):
    tokenizer = train(tmp_path, 16_000, ["a small corpus of one text"])
    assert 10 < len(tokenizer) < 100


def test_more_characters_than_pieces_leaves_the_rarest_out(tmp_path):
    texts = [*TEXTS, "".join(chr(0x4E00 + n) for n in range(500))]
    tokenizer = train(tmp_path, 200, texts)
    assert len(tokenizer) <= 200
    assert 3 not in tokenizer(TEXTS[0])["input_ids"]
    assert 3 in tokenizer(chr(0x4E00 + 499))["input_ids"]


def test_the_sample_is_bounded_and_independent_of_the_order(tmp_path):
    kept, digest = module._sample(iter(TEXTS), 5_000)
    again, same = module._sample(reversed(TEXTS), 5_000)
    assert kept == again
    assert digest == same
    assert 4_000 < sum(map(len, kept)) <= 5_000
    # Brute force: the longest prefix in the order of the digests.
    everything, _ = module._sample(iter(TEXTS), 10**9)
    assert everything[: len(kept)] == kept
    assert sum(map(len, everything[: len(kept) + 1])) > 5_000
    assert sorted(everything) == sorted(set(TEXTS))


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no text to train a from-scratch tokenizer on: check `data`, or name a model"
    ):
        train(tmp_path, texts=["", "  "])


def test_a_vocabulary_too_small_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"vocab_size 5 is too small for a Unigram tokenizer: these texts need 8 pieces"
    ):
        train(tmp_path, 5)
    assert not (tmp_path / "tokenizers").exists()


def test_encoder_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone():
    shape = EncoderShape(hidden=16, layers=1, heads=2, dropout=0.2)
    state = torch.random.get_rng_state()
    a, b, c = (xlm_roberta(50, shape, max_length=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    pairs = [list(model.parameters()) for model in (a, b, c)]
    assert all(torch.equal(x, y) for x, y in zip(pairs[0], pairs[1], strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(pairs[0], pairs[2], strict=True))
    assert a.config.hidden_dropout_prob == 0.2
    assert a.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("max_length", "positions"), [(20, 512), (700, 700)])
def test_encoder_has_positions_for_the_longest_text(max_length, positions):
    encoder = xlm_roberta(50, EncoderShape(hidden=8, layers=1, heads=1), max_length=max_length, seed=0).eval()
    ids = torch.full((1, positions), 7)
    assert torch.isfinite(encoder(ids).last_hidden_state).all()
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, positions + 1), 7))


def test_the_default_shape_is_of_a_few_million_parameters():
    encoder = xlm_roberta(16_000, EncoderShape(), max_length=192, seed=0)
    assert 2e6 < sum(p.numel() for p in encoder.parameters()) < 5e6


def test_seeded_puts_the_state_back_after_an_error():
    state = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="negative"), seeded(3):
        torch.rand(-torch.rand(1).ceil().int().item())
    assert torch.equal(state, torch.random.get_rng_state())


def test_heads_must_divide_the_width():
    with pytest.raises(
        ValidationError, match=r"3 attention heads do not divide hidden size 32: choose a `hidden` that is"
    ):
        EncoderShape(hidden=32, heads=3)
