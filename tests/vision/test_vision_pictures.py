"""The embedded pictures: what is drawn, what is held out, and the files they are kept in."""

from __future__ import annotations

import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import DataError
from embed_vision.datasets.config import PicturesConfig
from embed_vision.datasets.dataset import ImageTextDataset
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.pictures import files, fonts
from embed_vision.pictures.plan import BACKGROUNDS, COLOURS, Sizes, plan
from embed_vision.pictures.render import SHAPES, ShapePen, png

SMALL = {"symbols": 6, "renderings": 5, "size": 24, "held_out_rows": 9}


def built(cache: Path, announce: Any = lambda line: None, **options: Any) -> ImageTextDataset:
    context = BuildContext(Registry(), cache_dir=cache, announce=announce)
    return PicturesConfig(**{"drawn": "shapes", **SMALL, **options}).build(context)


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(picture.data)))


def example(dataset: ImageTextDataset, row: int) -> Any:
    return dataset.example(row, np.random.default_rng(0))


def test_what_is_held_out_was_never_trained_on() -> None:
    """No (symbol, colours) of the evaluation is in training, so neither a caption nor a picture is."""
    symbols = [(name, name) for name in SHAPES]
    train, held_out = plan(symbols, Sizes(14, 30, 24, 42))
    assert (len(train), len(held_out)) == (14 * 30, 42)
    assert {scene.caption for scene in train}.isdisjoint(scene.caption for scene in held_out)
    assert len({scene.caption for scene in held_out}) == 42
    for scene in (*train, *held_out):
        assert scene.other.symbol == scene.look.symbol
        assert (scene.other.colour, scene.other.background) != (scene.look.colour, scene.look.background)
    assert plan(symbols, Sizes(14, 30, 24, 42)) == (train, held_out)


def test_few_held_out_pictures_and_none() -> None:
    train, held_out = plan([("circle", "circle")] * 3, Sizes(3, 2, 24, 1))
    assert (len(train), len(held_out)) == (6, 1)
    assert plan([("circle", "circle")], Sizes(1, 40, 24, 0))[1] == []


def test_pictures_have_the_colours_of_their_captions() -> None:
    pen = ShapePen(48)
    train, _ = plan([(name, name) for name in SHAPES], Sizes(14, 2, 48, 0))
    for scene in train:
        image = np.asarray(Image.open(BytesIO(png(scene.look, 48, pen)))).reshape(-1, 3)
        assert image.shape == (48 * 48, 3)
        ink, ground = COLOURS[scene.look.colour], BACKGROUNDS[scene.look.background]
        shares = [(np.abs(image.astype(int) - colour).sum(-1) < 12).mean() for colour in (ink, ground)]
        assert shares[0] > 0.08, scene
        assert shares[1] > 0.15, scene


@pytest.mark.parametrize(
    ("mode", "query", "passage"),
    [
        ("t2i", str, Picture), ("i2t", Picture, str), ("i2i", Picture, Picture),
        ("t2t", str, str), ("m2i", Mixed, Picture), ("m2t", Mixed, str),
    ],
)  # fmt: skip
def test_every_mode(tmp_path: Path, mode: str, query: type, passage: type) -> None:
    dataset = built(tmp_path, retrieval_mode=mode)
    assert len(dataset) == 30
    held_out = dataset.held_out()
    assert held_out is not None
    assert len(held_out.queries) == len(held_out.corpus) == len(held_out.qrels) == 9
    for row in range(30):
        drawn = example(dataset, row)
        assert isinstance(drawn.query, query)
        assert [type(item) for item in drawn.passages] == [passage]
        assert drawn.query != drawn.passages[0]
    for items, kind in ((held_out.queries, query), (held_out.corpus, passage)):
        assert all(isinstance(item, kind) for item in items.values())


def test_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    first = built(tmp_path, lines.append)
    assert lines == [
        "pictures: drawing 39 pictures of 6 symbols, once",
        "data: pictures, drawn shapes, t2i: 30 training rows; held out 9 queries, 9 documents",
    ]
    monkeypatch.setattr(files, "png", lambda *a: pytest.fail("drawn again"))
    assert built(tmp_path).fingerprint() == first.fingerprint()


def test_a_damaged_file_is_drawn_anew(tmp_path: Path) -> None:
    first = built(tmp_path)
    (path,) = tmp_path.glob("pictures/*/pictures.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    lines: list[str] = []
    again = built(tmp_path, lines.append)
    assert lines[0].endswith("is damaged and is drawn anew")
    assert again.fingerprint() == first.fingerprint()
    assert (pixels(example(again, 3).passages[0]) == pixels(example(first, 3).passages[0])).all()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("a file where a folder is due")
    with pytest.raises(DataError, match=r"the pictures cannot be cached: .*set EMBED_CACHE to a writable folder"):
        built(tmp_path)


class TestFonts:
    def test_symbols_have_their_unicode_names_and_differ(self) -> None:
        found = fonts.best_font()
        if found is None:
            pytest.skip("no font with symbols on this machine")
        path, symbols = found
        assert len(symbols) >= fonts.ENOUGH
        assert all(name == unicodedata.name(symbol).lower() for symbol, name in symbols.items())
        assert fonts.symbols_of(path) == symbols

    def test_what_a_font_does_not_have_is_left_out(self) -> None:
        """matplotlib's fonts of one alphabet draw a box for most symbols: none of these is taken."""
        for path in fonts.font_files():
            symbols = fonts.symbols_of(path)
            from PIL import ImageFont

            font = ImageFont.truetype(str(path), 20)
            missing = bytes(font.getmask(fonts.MISSING))
            assert all(bytes(font.getmask(symbol)) != missing for symbol in list(symbols)[:20])

    def test_drawn_from_a_font(self, tmp_path: Path) -> None:
        if fonts.best_font() is None:
            pytest.skip("no font with symbols on this machine")
        dataset = built(tmp_path, drawn="symbols")
        assert len(dataset) == 30
        name = str(example(dataset, 0).query).rsplit(", ", 1)[0]
        assert unicodedata.lookup(name.upper())

    def test_without_one_shapes_are_drawn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fonts, "font_files", list)
        lines: list[str] = []
        built(tmp_path, lines.append, drawn="auto")
        assert "drawn shapes" in lines[-1]
        with pytest.raises(DataError, match=r"no installed font has symbols: install DejaVu .*or set `drawn: shapes`"):
            built(tmp_path, drawn="symbols")

    def test_a_damaged_font_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "DejaVuSans.ttf").write_bytes(b"no font")
        monkeypatch.setattr(fonts, "font_files", lambda: [tmp_path / "DejaVuSans.ttf"])
        assert fonts.best_font() is None
