"""The interface of a teacher. A new kind of teacher, on a server for instance, implements it; its config builds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embed_core.types import Item, Role


class Teacher(Protocol):
    """Gives the vectors that a student learns from."""

    def vectors(self, asked: Sequence[tuple[Item, Role]]) -> NDArray[np.float32]:
        """fp32 ``[N, W]`` of unit length, of items as queries or passages. Raises ConfigError where it has none."""
        ...
