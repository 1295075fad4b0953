"""Image-text rows: columns, modes, pictures, and what is said of rows that cannot be used."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embed_core.errors import DataError
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.datasets.rows import MODES, RowOptions, VisionRow, parse_row

PLACE = "rows.jsonl:7"


def read(row: dict[str, Any], mode: Any = "t2i", **options: Any) -> VisionRow:
    return parse_row(row, PLACE, RowOptions(mode, **options))


def png(colour: str = "red") -> bytes:
    out = BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, "PNG")
    return out.getvalue()


class TestModes:
    """The rows of vembed-factory's documentation."""

    def test_t2i(self) -> None:
        row = read({"query": "red cat", "positive": "cat_red.jpg", "negatives": ["dog.jpg", "car.jpg"]})
        assert row.query == "red cat"
        assert row.pos == (Picture("cat_red.jpg"),)
        assert row.neg == (Picture("dog.jpg"), Picture("car.jpg"))
        assert row.pos[0].place == row.place == PLACE

    def test_i2t(self) -> None:
        row = read({"query_image": "beach.jpg", "positive": "sunset", "negatives": ["busy street"]}, "i2t")
        assert (row.query, row.pos, row.neg) == (Picture("beach.jpg"), ("sunset",), ("busy street",))

    def test_i2i(self) -> None:
        row = read({"query": "", "query_image": "a.jpg", "positive": "b.jpg", "negatives": ["c.jpg"]}, "i2i")
        assert (row.query, row.pos, row.neg) == (Picture("a.jpg"), (Picture("b.jpg"),), (Picture("c.jpg"),))

    def test_t2t(self) -> None:
        row = read({"query": "What is AI?", "positive": "a field", "negatives": ["dogs"]}, "t2t")
        assert (row.query, row.pos, row.neg) == ("What is AI?", ("a field",), ("dogs",))

    def test_m2i(self) -> None:
        row = read({"query_image": "blue.jpg", "query": "change to red", "positive": "red.jpg"}, "m2i")
        assert (row.query, row.pos) == (Mixed("change to red", Picture("blue.jpg")), (Picture("red.jpg"),))

    def test_m2t(self) -> None:
        row = read({"query_image": "blue.jpg", "query": "what is it?", "positive": "a shirt"}, "m2t")
        assert (row.query, row.pos) == (Mixed("what is it?", Picture("blue.jpg")), ("a shirt",))

    @pytest.mark.parametrize("mode", MODES)
    def test_a_caption_and_an_image_are_enough_where_the_mode_needs_no_more(self, mode: str) -> None:
        """What most image-text datasets call their columns; no column serves as both sides."""
        data = {"caption": "a cat", "image": "cat.jpg"}
        if mode in ("t2i", "i2t"):
            row = read(data, mode)
            assert {row.query, *row.pos} == {"a cat", Picture("cat.jpg")}
            assert (row.query == "a cat") == (mode == "t2i")
        else:
            with pytest.raises(DataError, match=f"retrieval_mode {mode} needs a (query|positive) (text|picture)"):
                read(data, mode)


class TestPictures:
    def test_a_path_is_relative_to_the_root(self) -> None:
        assert read({"query": "x", "positive": "a/b.png"}, image_root=Path("/data")).pos == (Picture("/data/a/b.png"),)
        assert read({"query": "x", "positive": "/b.png"}, image_root=Path("/data")).pos == (Picture("/b.png"),)

    def test_bytes_as_hugging_face_datasets_store_them(self) -> None:
        data = png()
        for value in (data, {"bytes": data, "path": "cat.png"}, {"bytes": data, "path": None}, {"bytes": data}):
            (picture,) = read({"query": "x", "image": value}).pos
            assert picture == Picture(None, data)
        (named,) = read({"query": "x", "image": {"bytes": None, "path": "cat.png"}}).pos
        assert named == Picture("cat.png")

    @pytest.mark.parametrize("value", [3, {"bytes": None, "path": None}, {"bytes": "text"}, True, {}])
    def test_anything_else_is_refused(self, value: Any) -> None:
        with pytest.raises(DataError, match=rf"{PLACE}: `positive.*must be"):
            read({"query": "x", "positive": value})

    def test_several_positives(self) -> None:
        assert read({"query": "x", "positive": ["a.png", "b.png"]}).pos == (Picture("a.png"), Picture("b.png"))
        with pytest.raises(DataError, match=f"{PLACE}: `positive` is an empty list"):
            read({"query": "x", "positive": []})

    def test_a_negative_may_be_one(self) -> None:
        assert read({"query": "x", "positive": "a.png", "negatives": "b.png"}).neg == (Picture("b.png"),)


class TestColumns:
    def test_named_ones_and_no_others(self) -> None:
        row = {"query": "wrong", "title": "right", "positive": "wrong.png", "img": "right.png"}
        found = read(row, columns={"query": "title", "positive": "img"})
        assert (found.query, found.pos) == ("right", (Picture("right.png"),))

    def test_one_that_is_not_there(self) -> None:
        with pytest.raises(DataError, match=rf"{PLACE}: no `img`, which columns.positive names: the row has `query`"):
            read({"query": "x", "img": None}, columns={"positive": "img"})

    def test_what_is_missing_names_what_there_is(self) -> None:
        message = (
            rf"{PLACE}: retrieval_mode t2i needs a positive picture, as `positive_image` or .*, and the row has "
            r"`query`, `foto`: name the column in `columns.positive`, or choose another retrieval_mode"
        )
        with pytest.raises(DataError, match=message):
            read({"query": "x", "foto": "a.png"})
        with pytest.raises(DataError, match="the row has nothing"):
            read({})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": 3, "positive": "a.png"}, "`query` must be a string, found the number 3"),
        ({"query": " ", "positive": "a.png"}, "`query` is empty: remove the row"),
        (
            {"query": "x", "positive": "a.png", "score": "good"},
            "`score` must be a finite number, found the string 'good'",
        ),
        ({"query": "x", "positive": "a.png", "score": float("nan")}, "`score` must be a finite number"),
        ({"query": "x", "positive": "a.png", "prompt": 1}, "`prompt` must be a string, found the number 1"),
        (
            {"query": "x", "positive": "a.png", "negatives": [b"x", 5]},
            r"`negatives\[1\]` must be the path of a picture",
        ),
    ],
)
def test_wrong_values(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{PLACE}: {message}"):
        read(row)


def test_score_and_prompt() -> None:
    row = read({"query": "x", "positive": "a.png", "score": 4, "prompt": "find: "})
    assert (row.score, row.prompt) == (4.0, "find: ")
