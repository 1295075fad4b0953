"""A griffe extension: docstrings with reStructuredText's roles and literal blocks are shown as Markdown."""

from __future__ import annotations

from typing import Any

import griffe
from schema_tables import literal_blocks, roles


class Roles(griffe.Extension):
    """Rewrites ``:class:`a.b.C``` to code and a trailing double colon to a single one."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = literal_blocks(roles(obj.docstring.value))
