"""Renders a look to the bytes of a PNG file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from embed_vision.pictures.fonts import opened
from embed_vision.pictures.plan import BACKGROUNDS, COLOURS, Look

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw as Draw

Point = tuple[float, float]
LARGE = 4
"""Pictures are drawn this many times larger and scaled down, so that edges are smooth at any angle."""


class SymbolPen:
    """Draws a symbol of a font, fitted into a square."""

    def __init__(self, font: Path, size: int) -> None:
        self._font = opened(font, LARGE * size)
        self._side = LARGE * size

    def mask(self, symbol: str) -> Image.Image:
        """The symbol in greyscale, its ink as wide or as high as the square."""
        left, top, right, bottom = (round(at) for at in self._font.getbbox(symbol))
        width, height = right - left, bottom - top
        ink = Image.new("L", (width, height))
        ImageDraw.Draw(ink).text((-left, -top), symbol, fill=255, font=self._font)
        side = max(width, height)
        square = Image.new("L", (side, side))
        square.paste(ink, ((side - width) // 2, (side - height) // 2))
        return square.resize((self._side, self._side), Image.Resampling.BILINEAR)


class ShapePen:
    """Draws one of :data:`SHAPES`."""

    def __init__(self, size: int) -> None:
        self._side = LARGE * size

    def mask(self, symbol: str) -> Image.Image:
        """The shape in greyscale."""
        square = Image.new("L", (self._side, self._side))
        SHAPES[symbol](ImageDraw.Draw(square), self._side)
        return square


def png(look: Look, size: int, pen: SymbolPen | ShapePen) -> bytes:
    """The picture as a PNG, ``size`` pixels wide and high."""
    inner = max(1, round(look.scale * size * LARGE))
    turned = pen.mask(look.symbol).rotate(look.angle, Image.Resampling.BILINEAR)
    ink = turned.resize((inner, inner), Image.Resampling.BILINEAR)
    mask = Image.new("L", (size * LARGE, size * LARGE))
    at = tuple(round((1 / 2 + shift) * size * LARGE - inner / 2) for shift in look.shift)
    mask.paste(ink, (at[0], at[1]))
    image = Image.new("RGB", (size, size), BACKGROUNDS[look.background])
    image.paste(COLOURS[look.colour], (0, 0, size, size), mask.resize((size, size), Image.Resampling.BOX))
    out = BytesIO()
    image.save(out, "PNG", optimize=False, compress_level=6)
    return out.getvalue()


def _polygon(corners: int, turn: float = 0.0, inner: float = 1.0) -> Callable[[Draw, int], None]:
    """A regular polygon, its first corner up; ``inner`` moves every other corner that far inside: a star."""

    def draw(pen: Draw, side: int) -> None:
        count = corners if inner == 1.0 else 2 * corners
        points: list[Point] = []
        for n in range(count):
            radius = side / 2 * (inner if inner != 1.0 and n % 2 else 1.0)
            angle = 2 * math.pi * (n / count + turn)
            points.append((side / 2 + radius * math.sin(angle), side / 2 - radius * math.cos(angle)))
        pen.polygon(points, fill=255)

    return draw


def _shares(*points: Point) -> Callable[[Draw, int], None]:
    """A polygon whose points are given in shares of the side."""
    return lambda pen, side: pen.polygon([(x * side, y * side) for x, y in points], fill=255)


def _ring(pen: Draw, side: int) -> None:
    pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    pen.ellipse((side * 0.25, side * 0.25, side * 0.75, side * 0.75), fill=0)


def _moon(pen: Draw, side: int) -> None:
    pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    pen.ellipse((side * 0.3, -side * 0.05, side * 1.2, side * 0.85), fill=0)


def _heart(pen: Draw, side: int) -> None:
    pen.ellipse((0, side * 0.05, side * 0.54, side * 0.59), fill=255)
    pen.ellipse((side * 0.46, side * 0.05, side, side * 0.59), fill=255)
    pen.polygon([(side * 0.05, side * 0.45), (side * 0.95, side * 0.45), (side / 2, side * 0.98)], fill=255)


SHAPES: Mapping[str, Callable[[Draw, int], None]] = {
    "circle": lambda pen, side: pen.ellipse((0, 0, side - 1, side - 1), fill=255),
    "ring": _ring,
    "crescent": _moon,
    "heart": _heart,
    "triangle": _polygon(3),
    "triangle pointing down": _polygon(3, turn=0.5),
    "square": _polygon(4, turn=0.125),
    "diamond": _polygon(4),
    "hexagon": _polygon(6),
    "five-pointed star": _polygon(5, inner=0.4),
    "six-pointed star": _polygon(6, inner=0.55),
    "cross": _shares(
        (0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65),
        (0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35),
    ),
    "arrow pointing right": _shares((0, 0.35), (0.5, 0.35), (0.5, 0.1), (1, 0.5), (0.5, 0.9), (0.5, 0.65), (0, 0.65)),
    "arrow pointing up": _shares((0.35, 1), (0.35, 0.5), (0.1, 0.5), (0.5, 0), (0.9, 0.5), (0.65, 0.5), (0.65, 1)),
}  # fmt: skip
"""Name → how it is drawn into a square of that many pixels."""
