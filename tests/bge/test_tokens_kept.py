"""What BGE-M3's token lists depend on is in its fingerprint, and kept lists are those of the model."""

from __future__ import annotations

import pytest

from embed_core.text.token_cache import CachedTokens
from embed_core.text.token_store import TokenStore


@pytest.mark.parametrize(
    "options",
    [
        {"query_max_len": 7},
        {"passage_max_len": 7},
        {"query_instruction_for_retrieval": "find: "},
        {"passage_instruction_for_retrieval": "read: "},
        {"query_instruction_for_retrieval": "find: ", "query_instruction_format": "{}\n{}"},
    ],
)
def test_the_fingerprint_follows_what_changes_the_tokens(make_model, texts, tmp_path, options):
    plain, other = make_model(), make_model(**options)
    assert plain.tokenizer_fingerprint() == make_model().tokenizer_fingerprint()
    assert plain.tokenizer_fingerprint() != other.tokenizer_fingerprint()
    store = TokenStore(tmp_path / "x.sqlite", print)
    nobodys = [None] * len(texts)
    for model in (plain, other, plain, other):
        cached = CachedTokens(model, model.tokenizer_fingerprint(), store)
        for role in ("query", "passage"):
            assert cached.tokenize(texts, role, nobodys) == model.tokenize(texts, role, nobodys)
            assert cached.tokenize(texts, role, ["p: "] * len(texts)) == model.tokenize(
                texts, role, ["p: "] * len(texts)
            )


def test_what_does_not_change_the_tokens_does_not_change_the_fingerprint(make_model):
    assert make_model().tokenizer_fingerprint() == make_model(pad_to_multiple_of=8).tokenizer_fingerprint()


def test_another_tokenizer_has_another_fingerprint(make_model):
    from tokenizers import AddedToken

    model = make_model()
    before = model.tokenizer_fingerprint()
    model.tokenizer.add_tokens([AddedToken("badger")])
    model._text = type(model._text)(model.tokenizer, {"query": 64, "passage": 192}, model._text.prompts)
    assert model.tokenizer_fingerprint() != before
