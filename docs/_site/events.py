"""What mkdocs calls while it builds the site: generated pages are added, markers in pages are filled in."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File, Files
from reference import pages, recipe_keys

MARKER = re.compile(r"^<!-- keys of recipe (\w+) -->$.*?^<!-- end of keys -->$", flags=re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are generated."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of a recipe's keys in the place of the sentence that readers of the plain file see."""
    return MARKER.sub(lambda marker: recipe_keys(marker[1]), markdown)
