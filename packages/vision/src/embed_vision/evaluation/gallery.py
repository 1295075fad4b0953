"""Draws a picture of what sample queries find, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from textwrap import wrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from embed_core.errors import DataError
from embed_vision.datasets.images import decode
from embed_vision.datasets.items import Mixed, Picture, VisionItem
from embed_vision.pictures.fonts import font_files, opened

if TYPE_CHECKING:
    from embed_core.events import RunEvent

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
CELL, GAP, HEAD = 112, 8, 26
"""Sizes in pixels: side of a cell, space around it, height of a line of headings."""
LETTERS, LINES = 17, 7
"""Letters per line, and lines, of a text in a cell."""
RIGHT, WRONG, PLAIN = (25, 140, 60), (200, 200, 200), (120, 120, 120)


@dataclass(frozen=True, slots=True)
class Sample:
    """A query, its relevant item, and the results, best first, each with whether it is relevant."""

    query: VisionItem
    answer: VisionItem
    results: Sequence[tuple[VisionItem, bool]]


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one evaluation."""

    metrics: Mapping[str, float]
    samples: Sequence[Sample]


@dataclass(eq=False)
class Album:
    """The pages of one evaluator in this process, the first evaluation first."""

    name: str
    pages: list[Page] = field(default_factory=list)

    def __post_init__(self) -> None:
        _ALBUMS.append(self)


_ALBUMS: list[Album] = []
"""The albums since the last run ended. They are global because an evaluator does not know where its run writes, and the
end of a run does not know its evaluators. One process has one run at a time."""


def write_albums(event: RunEvent) -> None:
    """On rank 0, write every album with pages as ``gallery-NAME.png`` into the run's directory; then forget them all.

    If a file cannot be written, a line says so and the run still counts as a success.
    """
    albums = [album for album in _ALBUMS if album.pages]
    _ALBUMS.clear()
    for album in albums if event.rank == 0 and event.error is None else ():
        path = event.output_dir / f"gallery-{album.name}.png"
        try:
            draw(album.pages).save(path)
        except (OSError, DataError) as error:
            print(f"the gallery of {album.name} could not be drawn: {error}", flush=True)
        else:
            print(f"gallery: {path}", flush=True)


def draw(pages: Sequence[Page]) -> Image.Image:
    """First and last page side by side; a sample's query, its answer, and the results with the relevant ones framed."""
    shown = [pages[0]] if len(pages) == 1 else [pages[0], pages[-1]]
    titles = ["found"] if len(shown) == 1 else ["before", "after"]
    depth = max(len(sample.results) for page in shown for sample in page.samples)
    step, block = CELL + GAP, depth * (CELL + GAP) + 2 * GAP
    rows = len(shown[0].samples)
    sheet = Image.new("RGB", (2 * step + 2 * GAP + block * len(shown), 2 * HEAD + rows * step + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), _font(13)
    _heading(pen, font, GAP, "query")
    _heading(pen, font, GAP + step, "answer")
    for place, (page, title) in enumerate(zip(shown, titles, strict=True)):
        _heading(pen, font, 2 * step + 2 * GAP + place * block, title, _figures(page.metrics))
    for row, sample in enumerate(shown[0].samples):
        top = 2 * HEAD + row * step
        _paste(sheet, sample.query, (GAP, top), PLAIN)
        _paste(sheet, sample.answer, (GAP + step, top), PLAIN)
        for place, page in enumerate(shown):
            left = 2 * step + 2 * GAP + place * block
            for rank, (item, relevant) in enumerate(page.samples[row].results):
                _paste(sheet, item, (left + rank * step, top), RIGHT if relevant else WRONG)
    return sheet


@cache
def _font(size: int) -> Font:
    """An installed font with more than the Latin letters of Pillow's own, if there is one."""
    for path in font_files():
        with suppress(OSError):
            return opened(path, size)
    return ImageFont.load_default(size)


def _figures(metrics: Mapping[str, float]) -> str:
    return "   ".join(f"{name.split('/')[-1]} {value:.3f}" for name, value in list(metrics.items())[:4])


def _heading(pen: ImageDraw.ImageDraw, font: Font, left: int, *lines: str) -> None:
    for number, line in enumerate(lines):
        pen.text((left, 6 + number * 20), line, fill="black", font=font)


def _paste(sheet: Image.Image, item: VisionItem, at: tuple[int, int], frame: tuple[int, int, int]) -> None:
    cell = _cell(item)
    width = 4 if frame == RIGHT else 1
    ImageDraw.Draw(cell).rectangle((0, 0, CELL - 1, CELL - 1), outline=frame, width=width)
    sheet.paste(cell, at)


def _cell(item: VisionItem) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL), "white")
    if isinstance(item, Mixed):
        cell.paste(_small(item.picture, (CELL, CELL * 2 // 3)), (0, 0))
        _write(cell, item.text, CELL * 2 // 3 + 2, 2)
    elif isinstance(item, Picture):
        small = _small(item, (CELL, CELL))
        cell.paste(small, ((CELL - small.width) // 2, (CELL - small.height) // 2))
    else:
        _write(cell, item, 6, LINES)
    return cell


def _small(picture: Picture, box: tuple[int, int]) -> Image.Image:
    image = decode(picture)
    share = min(box[0] / image.width, box[1] / image.height)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)


def _write(cell: Image.Image, text: str, top: int, most: int) -> None:
    lines = wrap(text, LETTERS, max_lines=most, placeholder=" …") or [""]
    pen, font = ImageDraw.Draw(cell), _font(11)
    for number, line in enumerate(lines):
        pen.text((6, top + number * 14), line, fill="black", font=font)
