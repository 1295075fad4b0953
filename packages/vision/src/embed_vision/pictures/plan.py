"""Plans the embedded pictures: which symbol in which colours, its rotation, and its caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

COLOURS = {
    "red": (205, 35, 40), "green": (20, 140, 60), "blue": (35, 70, 205), "orange": (240, 130, 20),
    "purple": (130, 40, 160), "black": (15, 15, 15), "brown": (120, 75, 30), "pink": (235, 95, 165),
}  # fmt: skip
BACKGROUNDS = {
    "white": (250, 250, 250), "yellow": (250, 235, 120), "cyan": (150, 235, 240), "grey": (185, 185, 185),
}  # fmt: skip
SEED = 20_240_611


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many pictures are drawn, and how large."""

    symbols: int = 160
    renderings: int = 20
    size: int = 64
    held_out: int = 160


@dataclass(frozen=True, slots=True)
class Look:
    """One picture: a symbol and how it is drawn."""

    symbol: str
    colour: str
    background: str
    angle: float
    """Degrees, counter-clockwise."""
    scale: float
    """The symbol's width as a share of the picture's width."""
    shift: tuple[float, float]
    """Offset of the symbol's centre, in shares of the picture's width."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one row: a picture, and another of the same symbol in other colours."""

    name: str
    look: Look
    other: Look

    @property
    def caption(self) -> str:
        """``white chess knight, red on grey``."""
        return f"{self.name}, {self.look.colour} on {self.look.background}"

    @property
    def paraphrase(self) -> str:
        """The caption in other words."""
        return f"a {self.look.background} picture that shows, in {self.look.colour}, the {self.name}"

    @property
    def change(self) -> str:
        """The text that turns the other picture into this one."""
        return f"the same, {self.look.colour} on {self.look.background}"


def plan(symbols: Sequence[tuple[str, str]], sizes: Sizes) -> tuple[list[Scene], list[Scene]]:
    """(training, held-out) scenes of (symbol, name) pairs: no combination of symbol and colours is in both.

    A symbol's combinations are shuffled: the first are held out, the next are trained on. If there are fewer of them
    than pictures, they repeat with another angle and place.
    """
    per_symbol = -(-sizes.held_out // len(symbols)) if sizes.held_out else 0
    train, held_out = list[Scene](), list[Scene]()
    for number, (symbol, name) in enumerate(symbols):
        rng = np.random.default_rng((SEED, number))
        pairs = list(product(COLOURS, BACKGROUNDS))
        order = [pairs[n] for n in rng.permutation(len(pairs))]
        for kept, chosen, count in (
            (held_out, order[:per_symbol], per_symbol),
            (train, order[per_symbol:], sizes.renderings),
        ):
            kept.extend(_scenes(symbol, name, chosen, count, rng))
    return train, held_out[: sizes.held_out]


def _scenes(
    symbol: str, name: str, pairs: Sequence[tuple[str, str]], count: int, rng: np.random.Generator
) -> Iterator[Scene]:
    for n in range(count):
        colour, background = pairs[n % len(pairs)]
        other = pairs[(n + 1) % len(pairs)] if len(pairs) > 1 else _another(colour, background)
        yield Scene(name, _look(symbol, colour, background, rng), _look(symbol, *other, rng))


def _another(colour: str, background: str) -> tuple[str, str]:
    """Colours other than these, for held-out pictures with one combination a symbol."""
    colours, backgrounds = list(COLOURS), list(BACKGROUNDS)
    return (
        colours[(colours.index(colour) + 3) % len(colours)],
        backgrounds[(backgrounds.index(background) + 1) % len(backgrounds)],
    )


def _look(symbol: str, colour: str, background: str, rng: np.random.Generator) -> Look:
    angle, scale = rng.uniform(-15, 15), rng.uniform(0.62, 0.92)
    free = (1 - scale) / 2
    x, y = rng.uniform(-free, free, size=2)
    return Look(symbol, colour, background, round(float(angle), 2), round(float(scale), 3), (float(x), float(y)))
