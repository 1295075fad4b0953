"""Finds fonts of this machine that have symbols, and the symbols they have."""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

NAMES = (
    "DejaVuSans.ttf", "NotoSansSymbols2-Regular.ttf", "Symbola.ttf", "NotoEmoji-Regular.ttf", "FreeSerif.ttf",
    "seguisym.ttf", "Apple Symbols.ttf", "Arial Unicode.ttf", "unifont.otf", "NotoSansSymbols-Regular.ttf",
)  # fmt: skip
"""Outline fonts that are known to have symbols, the best first."""
BLOCKS = (
    (0x2600, 0x26FF), (0x2700, 0x27BF), (0x1F600, 0x1F64F), (0x25A0, 0x25FF), (0x2190, 0x21FF), (0x2300, 0x23FF),
    (0x2B00, 0x2BFF), (0x20A0, 0x20BF), (0x2200, 0x22FF),
)  # fmt: skip
"""Unicode blocks: symbols, dingbats, emoticons, geometric shapes, arrows, technical, arrows, currency, mathematics."""
CATEGORIES = ("So", "Sm", "Sc")
ENOUGH = 40
"""Fonts with fewer symbols are not used."""
PROBE_SIZE = 40
MISSING = "\U0010fffe"
"""A code point that is no character: a font draws it as it draws every character that it lacks."""


def font_files() -> list[Path]:
    """Installed files of :data:`NAMES`, from the system's folders, the user's and matplotlib's."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.rglob("*.[to]tf")) if folder.is_dir() else ():
            found.setdefault(path.name, path)
    return [found[name] for name in NAMES if name in found]


def opened(path: Path, size: int) -> FreeTypeFont:
    """The font at ``size`` pixels. Raises OSError for a file that is no font."""
    from PIL import ImageFont

    # Given a path that it cannot read, Pillow would open another font of the same name: so it gets the bytes.
    return ImageFont.truetype(BytesIO(path.read_bytes()), size)


def symbols_of(path: Path) -> dict[str, str]:
    """The symbols that the font draws, each with a different shape, by block: symbol → name in lower case.

    Raises OSError for a file that is no font.
    """
    font = opened(path, PROBE_SIZE)
    seen = {_shape(font, MISSING), _shape(font, " ")}
    found: dict[str, str] = {}
    for character in _candidates():
        shape = _shape(font, character)
        if shape not in seen:
            seen.add(shape)
            found[character] = unicodedata.name(character).lower()
    return found


def best_font() -> tuple[Path, dict[str, str]] | None:
    """The first font with enough symbols, and its symbols; None if there is none."""
    for path in font_files():
        try:
            found = symbols_of(path)
        except OSError:  # the font is damaged
            continue
        if len(found) >= ENOUGH:
            return path, found
    return None


def _candidates() -> Iterator[str]:
    for first, last in BLOCKS:
        for code in range(first, last + 1):
            character = chr(code)
            if unicodedata.category(character) in CATEGORIES and _named(character):
                yield character


def _named(character: str) -> bool:
    try:
        return bool(unicodedata.name(character))
    except ValueError:
        return False


def _shape(font: FreeTypeFont, character: str) -> bytes:
    mask = font.getmask(character)
    return blake2b(repr(mask.size).encode() + bytes(mask), digest_size=16).digest()


def _folders() -> Iterator[Path]:
    home = Path.home()
    yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts")
    if sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts")
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
    matplotlib = importlib.util.find_spec("matplotlib")  # matplotlib ships DejaVu; it is not imported
    for place in (matplotlib.submodule_search_locations or ()) if matplotlib else ():
        yield Path(place) / "mpl-data" / "fonts"
