"""Prompts, lengths, keys, padding; threads."""

from __future__ import annotations

import threading

import pytest

from embed_core.errors import CheckpointError, ConfigError
from embed_core.testing import check_model
from embed_core.text.tokenizer import TextTokenizer


def ids(encoded) -> list[list[int]]:
    return [one.data["input_ids"] for one in encoded]


def test_equals_the_transformers_tokenizer(make_model, texts):
    model = make_model(query_max_len=12, passage_max_len=30)
    for role, length in (("query", 12), ("passage", 30)):
        expected = model.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        encoded = model.tokenize(texts, role, [None] * len(texts))
        assert ids(encoded) == expected
        assert [one.length for one in encoded] == [len(one) for one in expected]
        assert max(one.length for one in encoded) == length  # the test has texts that are cut
        assert all(one.data["input_ids"][0] == 0 and one.data["input_ids"][-1] == 2 for one in encoded)


def test_prompts_of_the_model_of_the_row_and_none(make_model):
    model = make_model(
        query_instruction_for_retrieval="Find",
        query_instruction_format="{}: {}",
        passage_instruction_for_retrieval="D ",
    )
    plain = make_model()
    text = "A short one"

    def same(role, prompt, whole):
        [ours] = model.tokenize([text], role, [prompt])
        [expected] = plain.tokenize([whole], role, [None])
        assert ours.data == expected.data
        assert ours.key == expected.key

    same("query", None, "Find: A short one")
    same("query", "Seek", "Seek: A short one")
    same("query", "", "A short one")
    same("passage", None, "D A short one")
    same("passage", "X ", "X A short one")


def test_keys_are_equal_for_equal_tokens_only(make_model):
    model = make_model()
    a, b, c = model.tokenize(["A short one", "A  short one", "A short two"], "query", [None] * 3)
    [as_passage] = model.tokenize(["A short one"], "passage", [None])
    assert a.key == b.key == as_passage.key
    assert a.key != c.key


def test_collate_pads_to_the_longest_or_to_a_multiple(make_model, texts):
    for multiple in (None, 8):
        model = make_model(pad_to_multiple_of=multiple)
        encoded = model.tokenize(texts, "passage", [None] * len(texts))
        inputs = model.collate(encoded)
        longest = max(one.length for one in encoded)
        assert inputs["input_ids"].shape[1] == (longest if multiple is None else -(-longest // 8) * 8)
        assert inputs["attention_mask"].sum(1).tolist() == [one.length for one in encoded]
        for row, one in zip(inputs["input_ids"].tolist(), encoded, strict=True):
            assert row[: one.length] == one.data["input_ids"]
            assert set(row[one.length :]) <= {1}


def test_the_promises_of_a_model(make_model, texts):
    check_model(make_model(), texts)
    check_model(make_model(unified_finetuning=False, sentence_pooling_method="mean"), texts, role="passage")


def test_roles_with_different_lengths_in_two_threads(make_model, texts):
    model = make_model(query_max_len=5, passage_max_len=40)
    expected = {role: ids(model.tokenize(texts, role, [None] * len(texts))) for role in ("query", "passage")}
    wrong: list[object] = []

    def work(role):
        for _ in range(100):
            try:
                if ids(model.tokenize(texts, role, [None] * len(texts))) != expected[role]:
                    wrong.append(role)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(role,)) for role in ("query", "passage", "query")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_format_without_two_places_is_an_error(make_model):
    with pytest.raises(ValueError, match=r"instruction format 'Query: ' must have two places.*for instance '\{\}\{\}'"):
        make_model(query_instruction_format="Query: ")


def test_the_line_break_of_a_shell_is_one(make_model):
    model = make_model(query_instruction_for_retrieval="I", query_instruction_format="{}\\nQ: {}")
    assert model.prompts["query"] == "I\nQ: "


def test_a_tokenizer_without_padding_token_or_not_fast(make_model):
    class Slow:
        is_fast = False

    with pytest.raises(CheckpointError, match=r"Slow is no fast tokenizer: .*tokenizer\.json"):
        TextTokenizer(Slow(), {"query": 3})
    tokenizer = make_model().tokenizer
    tokenizer.pad_token = None
    with pytest.raises(CheckpointError, match=r"has no padding token: set `pad_token`"):
        TextTokenizer(tokenizer, {"query": 3})


def test_lengths_beyond_the_positions_are_an_error(make_model):
    with pytest.raises(ConfigError, match=r"passage_max_len 600 is more than the 512 tokens .* set it to 512 or less"):
        make_model(passage_max_len=600)
    assert make_model(passage_max_len=512).max_length == 512
