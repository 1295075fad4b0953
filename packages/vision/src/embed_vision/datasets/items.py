"""Items of a row besides texts: a picture, or a text with a picture. Small values; no image is decoded here.

Both are hashable and have what the core requires of an item that is no text: ``identity`` (equal bytes are the same
item, see :func:`embed_core.utils.hashing.identity`) and ``describe()`` for displays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A picture, given by its file or by its bytes. Two are equal if their paths or bytes are, whatever their rows."""

    path: str | None = None
    """The image file; with ``data``, only the name that goes with the bytes: no file is opened."""
    data: bytes | None = field(default=None, repr=False)
    """The encoded image (PNG, JPEG, …) where the dataset holds it."""
    place: str = field(default="", compare=False)
    """``file:line`` of the row, for messages."""

    def __post_init__(self) -> None:
        assert self.path is not None or self.data is not None, "a picture of nothing"

    @cached_property
    def identity(self) -> bytes:
        """A digest of the bytes, or of the path as written: two files with equal content are two pictures."""
        if self.data is not None:
            return b"picture\0" + blake2b(self.data, digest_size=16).digest()
        return b"picture-path\0" + str(self.path).encode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return self.identity == other.identity if isinstance(other, Picture) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity)

    def describe(self) -> str:
        """One line for displays: ``[picture cat.png]``."""
        return f"[picture {self.name}]"

    @property
    def name(self) -> str:
        """The file's name, or the number of bytes."""
        return Path(self.path).name if self.path else f"of {len(self.data or b''):,} bytes"


@dataclass(frozen=True)
class Mixed:
    """A text with a picture, as one query (m2i, m2t)."""

    text: str
    picture: Picture

    @cached_property
    def identity(self) -> bytes:
        """A digest of text and picture."""
        text = self.text.encode("utf-8", "surrogatepass")
        return b"mixed\0%d\0" % len(text) + text + self.picture.identity

    def describe(self) -> str:
        """One line for displays: ``[picture cat.png] the same, in winter``."""
        return f"{self.picture.describe()} {self.text}"


VisionItem = str | Picture | Mixed
"""Items that the models of this package encode."""
