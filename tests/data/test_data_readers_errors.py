"""What cannot be read: one line with file, line, reason and way out; skipped rows are counted and listed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import DataError, EmbedError
from embed_core.plugin.manager import activate
from embed_core.testing import build
from embed_data.formats import decompress
from embed_data.formats.convert import TableRows, read_source
from embed_data.formats.detect import find
from embed_data.formats.normalize import Normaliser
from embed_data.formats.options import FileFields

HUGE = "0" * 400
GOOD = '{"query": "q", "pos": ["p"]}'


def read(path: Path, cache: Path | None = None, **options: Any) -> list[TableRows]:
    context = BuildContext(Registry(), cache_dir=cache or path.parent / "cache", announce=lambda _: None)
    how = FileFields.model_validate(options)
    return [read_source(source, how, context) for source in find(str(path), how)]


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        (
            "a.jsonl",
            GOOD + "\n\n{'query'}",
            3,
            "malformed JSON: Expecting property name enclosed in double quotes at column 2",
        ),
        ("a.jsonl", GOOD + "\n3", 2, "expected an object or a list of texts, found the number 3"),
        (
            "a.jsonl",
            GOOD + '\n{"query": "q"}',
            2,
            "which column is the positive? The row has `query`: set `columns: {pos: NAME}`",
        ),
        (
            "a.jsonl",
            '{"x": "q", "y": "z"}',
            1,
            "which column is the query? The row has `x`, `y`: set `columns: {query: NAME}`",
        ),
        ("a.jsonl", '{"query": "q", "pos": [1]}', 1, "column `pos[0]` must be a text, found the number 1"),
        (
            "a.jsonl",
            '{"query": "q", "pos": {"a": 1}}',
            1,
            "column `pos` must be a text or a list of texts, found an object",
        ),
        ("a.jsonl", '{"query": null, "pos": ["p"]}', 1, "column `query` must be a text, found null"),
        ("a.jsonl", '{"query": " ", "pos": ["p"]}', 1, "`query` is empty: remove the row"),
        ("a.jsonl", '{"query": "q", "pos": []}', 1, "no positive: `pos` is empty"),
        (
            "a.jsonl",
            '{"query": "q", "pos": ["\\ud83d"]}',
            1,
            "\\ud83d is half of a surrogate pair and no character: remove it",
        ),
        ("a.jsonl", '{"query": "q", "pos": ["p"], "type": "sym"}', 1, "unknown `type` 'sym': one of"),
        ("a.jsonl", '{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}', 1, "`pos_scores` has length 2, `pos` has 1"),
        (
            "a.jsonl",
            '{"sentence1": "a", "sentence2": "b", "score": "x"}',
            1,
            "the score must be a number, found the string 'x'",
        ),
        (
            "a.jsonl",
            '{"sentence1": "a", "sentence2": "b", "score": NaN}',
            1,
            "the score must be a finite number, found the number nan",
        ),
        (
            "a.jsonl",
            f'{{"sentence1": "a", "sentence2": "b", "score": 1{HUGE}}}',
            1,
            "the score must be a finite number",
        ),
        (
            "a.jsonl",
            f'{{"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1{HUGE}], "neg_scores": [1]}}',
            1,
            f"`pos_scores[0]` must be a finite number, found the number 1{HUGE[:39]}…",
        ),
        ("a.jsonl", '{"sentence1": "a", "sentence2": ["b", "c"], "score": 1}', 1, "one score for 2 positives"),
        (
            "a.jsonl",
            f"[{GOOD}]",
            1,
            "a list of rows, no row: a file that is one JSON array is read with `format: json`",
        ),
        ("a.jsonl", '["a"]', 1, "a list must be [anchor, positive, negative, …] or [text, text, score]"),
        (
            "a.jsonl",
            '{"messages": "q"}',
            1,
            "`messages` must be a list of messages like {role, content}, found the string 'q'",
        ),
        (
            "a.jsonl",
            '{"messages": []}',
            1,
            "`messages` must be a list of messages like {role, content}, found an empty list",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user"}]}',
            1,
            "`messages[0]` must be a message with a text as `content`, found null",
        ),
        ("a.jsonl", '{"messages": [{"role": "system", "content": "s"}]}', 1, "`messages` has a system message only"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "q"}]}', 1, "`pos` is an empty list"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "q"}], "positive_messages": 3}',
            1,
            "`positive_messages` must be a list of lists of messages, found the number 3",
        ),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "q"}], "images": ["x.png"]}',
            1,
            "`images`: only texts can be read here",
        ),
        ("a.csv", "anchor,positive\na\n", 2, "1 fields, the header has 2: anchor, positive"),
        ("a.csv", 'anchor,positive\na,b\nc,"d\n', 3, "malformed CSV: unexpected end of data"),
        ("a.tsv", "anchor\tpositive\na\t\n", 2, "no positive: `positive` is empty"),
    ],
)
def test_a_bad_row_names_file_line_and_reason(name: str, text: str, line: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{line}: {reason}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "header"), [("a.jsonl", b""), ("a.csv", b"anchor,positive\n")])
def test_a_byte_that_is_no_utf8_spoils_its_row_only(name: str, header: bytes, tmp_path: Path) -> None:
    rows = [b'{"query": "q", "pos": ["%s"]}', b"q,%s"][name.endswith("csv")]
    path = tmp_path / name
    path.write_bytes(header + b"\n".join(rows % text for text in (b"p1", b"\xff", b"p3")) + b"\n")
    line = 3 if header else 2
    with pytest.raises(DataError, match=rf":{line}: byte 0xff .*is not UTF-8"):
        read(path)
    (found,) = read(path, on_bad_row="skip")
    assert [row.pos for row in found.table.scan()] == [("p1",), ("p3",)]


def test_skipped_rows_are_counted_listed_and_announced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{GOOD}\n{{"query": "", "pos": ["\\ud800"]}}\n{GOOD}\nnonsense\n', encoding="utf-8")
    for _ in range(2):  # made, and found in the cache
        (found,) = read(path, on_bad_row="skip")
        assert (found.facts.rows, found.facts.read, found.facts.skipped) == (2, 4, 2)
        listed = [json.loads(line) for line in found.skipped_file.read_text(encoding="utf-8").splitlines()]
        assert [row["place"] for row in listed] == [f"{path}:2", f"{path}:4"]
        assert listed[0]["reason"] == "`query` is empty: remove the row"
        assert listed[0]["row"] == r'{"query": "", "pos": ["\ud800"]}'
    lines: list[str] = []
    registry = activate(["data"])[1]
    context = BuildContext(registry, cache_dir=tmp_path / "cache", announce=lines.append)
    build(registry, "dataset", {"kind": "file", "path": str(path), "on_bad_row": "skip"}, context)
    assert lines[1] == f"data: a: 2 of 4 rows are bad and skipped, listed in {found.skipped_file}"


def test_no_row_left_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n", encoding="utf-8")
    for _ in range(2):  # made, and found in the cache
        with pytest.raises(DataError) as caught:
            read(path, on_bad_row="skip")
        said = str(caught.value)
        assert said.startswith(f"{path}: none of its 2 rows can be used: 2 bad, listed in ")
        assert said.endswith(
            f"skipped.jsonl, the first: {path}:1: expected an object or a list of texts, found the number 1"
        )
    path.write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"none of its 1 rows can be used: 1 below min_score$"):
        read(path, min_score=2)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (f"[{GOOD},\n {{]", 2, "malformed JSON: Expecting property name"),
        (f"[{GOOD}\n{GOOD}]", 2, "malformed JSON: expected ',' or ']' after an element of the array"),
        (f"[{GOOD}", 1, "malformed JSON: expected ',' or ']'"),
        (f"[\n{GOOD},", 2, "malformed JSON: Expecting value"),
        (f"[{GOOD}]\n[]", 2, "malformed JSON: something follows the array"),
        ("[" + "[" * 100_000, 1, "malformed JSON: nested too deeply"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_broken_array_is_an_error_under_any_policy(
    text: str, line: int, reason: str, policy: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path, on_bad_row=policy)
    assert str(caught.value).startswith(f"{path}:{line}: {reason}")


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_damaged_archive(codec: str, tmp_path: Path) -> None:
    data = b"".join(b'{"query": "%d", "pos": ["p"]}\n' % number for number in range(5000))
    packed = gzip.compress(data) if codec == "gzip" else pa.Codec("zstd").compress(data, asbytes=True)
    for name, content in (("cut", packed[: len(packed) // 2]), ("wrong", packed[:200] + b"\0" * 50 + packed[250:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert codec in str(caught.value) or "malformed JSON" in str(caught.value)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "LONGEST_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{'x' * 5000}\n{GOOD}\n", encoding="utf-8")
    (found,) = read(path, on_bad_row="skip")
    assert [row.place for row in found.table.scan()] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ({}, {}, r"a.jsonl: no such file or folder: did you mean 'b.jsonl'\?"),
        ({"a.jsonl": b""}, {}, "the file is empty"),
        ({"a.jsonl": b"{}"}, {"split": "x"}, "split 'x': .* has no splits: remove `split`"),
        ({"a.jsonl": b"{}"}, {"subset": "x"}, "subset 'x': .* is no Hugging Face dataset: remove `subset`"),
        ({"a.jsonl": b"{}"}, {"format": "beir"}, "format 'beir': .* is a file, no folder"),
        ({"a.jsonl": b"x"}, {"format": "parquet"}, "a.jsonl: cannot be read as Parquet"),
        ({"a.jsonl": b"x"}, {"format": "arrow"}, "a.jsonl: cannot be read as Arrow"),
        (
            {"a.jsonl": b'{"question": "q", "pos": "p"}'},
            {"columns": {"query": "frage"}},
            "no column 'frage', which `columns.query` names: the row has `pos`, `question`",
        ),
    ],
)
def test_what_is_not_there(make: dict[str, bytes], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(GOOD)
    for name, content in make.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EmbedError, match=message) as caught:
        read(tmp_path / "a.jsonl", **options)
    assert "\n" not in str(caught.value)


def test_unknown_suffixes_folders_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(
        DataError, match=r"the format is not known by its suffix '.xyz': set `format` to one of jsonl, "
    ):
        read(tmp_path / "a.xyz")
    with pytest.raises(DataError, match=r"no file of a known format .* and no BEIR folder: it has a.xyz"):
        read(tmp_path)
    import datasets

    def unreachable(name: str, subset: str | None) -> None:
        raise ConnectionError(f"Couldn't reach {name!r}\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"no/such: no such file or folder here, and no Hugging Face dataset") as caught:
        read(Path("no/such"), cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"qurey": "x"}, "columns: unknown role 'qurey': did you mean 'query'?"),
        ({"query": ["a", "b"]}, r"columns.query: one column is needed, got \['a', 'b'\]"),
    ],
)
def test_columns_that_cannot_be(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        FileFields.model_validate({"columns": columns})


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be cached: .*: set EMBED_CACHE to a writable folder"):
        read(tmp_path / "a.jsonl")


def test_a_saved_dataset_without_that_split(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"query": "q", "pos": ["p"]}])
    datasets.DatasetDict({"dev": rows, "test": rows}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="no split 'train': set `split` to one of: dev, test"):
        read(tmp_path / "d")
    with pytest.raises(DataError, match="no split 'tset': did you mean 'test'"):
        read(tmp_path / "d", split="tset")
    rows.save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="has no splits: remove `split: dev`"):
        read(tmp_path / "one", split="dev")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["query", "pos", "neg", "anchor", "positive", "negative_1", "score", "label", "pos_scores", "neg_scores", "prompt",
     "type", "doc_id", "messages", "positive_messages", "negative_messages"]
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", 3]), "content": JSON}), max_size=2
)
VALUES = JSON | st.lists(st.text(max_size=4), max_size=3) | MESSAGES | st.lists(MESSAGES, max_size=2)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=6) | JSON)
def test_fuzzed_rows_are_rows_or_a_reason(value: Any) -> None:
    reason = ""
    try:
        row = Normaliser({}).row(value, "rows.jsonl:1")
        assert row.pos
        json.dumps([row.query, *row.pos, *row.neg], ensure_ascii=False).encode("utf-8")
    except DataError as error:
        reason = str(error)
    assert not reason or reason.startswith("rows.jsonl:1: ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"]),
    content=st.binary(max_size=60)
    | st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=3).map(
        lambda rows: "\n".join(json.dumps(row) for row in rows).encode()
    )
    | st.text(alphabet='[]{}",:\n\r\tab\\\u00e4', max_size=40).map(str.encode),
    prefix=st.sampled_from([b"", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf", b"PAR1", b"ARROW1\0\0"]),
    policy=st.sampled_from(["error", "skip"]),
)
def test_fuzzed_files_are_read_or_refused(
    name: str, content: bytes, prefix: bytes, policy: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(prefix + content)
    message = str(path)
    try:
        (found,) = read(path, on_bad_row=policy)
        assert found.facts.rows == sum(1 for _ in found.table.scan()) > 0
    except DataError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_an_error_in_a_row_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[]")
    with pytest.raises(DataError):
        read(tmp_path / "a.jsonl")
    assert list((tmp_path / "cache" / "tables").iterdir()) == []


def test_other_ranks_wait_and_find_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    how = FileFields()
    events: list[str] = []

    def context(rank: int, barrier: Callable[[], None]) -> BuildContext:
        quiet = BuildContext(Registry(), rank=rank, world_size=2, cache_dir=tmp_path / "cache", announce=lambda _: None)
        quiet.barrier = barrier
        return quiet

    (source,) = find(str(tmp_path / "a.jsonl"), how)
    second = context(1, lambda: events.append(read_source(source, how, context(0, lambda: None)).facts.digest))
    assert read_source(source, how, second).facts.digest == events[0]
    with pytest.raises(DataError, match="another rank could not read it"):
        read_source(source, how.model_copy(update={"min_score": 1.0}), context(1, lambda: None))
