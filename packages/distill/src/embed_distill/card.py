"""Sections of a distilled model's card, besides the facts of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embed_distill.models.config import Alignment
    from embed_distill.models.projection import Layer

_ALIGNED = """\
**teacher-aligned**: its vectors have {width} values and lie in the space of its teacher's, so they search an index of
the teacher's vectors. The projection {layers} comes after the pooling, as Dense modules: `SentenceTransformer`
applies it, `AutoModel` and clients that read the encoder alone do not.
"""
_NATIVE = """\
**student-native**: its vectors have {width} values and a space of their own; they cannot be compared with its
teacher's. The projection {layers} it was trained with was dropped.
"""
_ROUTER = """\
## Asymmetric retrieval

`{folder}` holds one sentence-transformers model of both: queries go to the student, documents to the teacher.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory/{folder}")
queries = model.encode_query(["a question"])
documents = model.encode_document(["a passage", "another one"])
print(model.similarity(queries, documents))
```
"""


def append_alignment(directory: Path, alignment: Alignment, layers: Sequence[Layer]) -> None:
    """Append a section that says in whose vector space the student's vectors lie."""
    from embed_distill.models.projection import described

    aligned = alignment == "teacher-aligned"
    width = layers[-1].outputs if aligned else layers[0].inputs
    text = (_ALIGNED if aligned else _NATIVE).format(width=width, layers=described(layers))
    _append(directory, f"## Alignment\n\n{text}")


def append_router(directory: Path, folder: str) -> None:
    """Append a section on the router model, which encodes queries with the student and documents with the teacher."""
    _append(directory, _ROUTER.format(folder=folder))


def _append(directory: Path, section: str) -> None:
    with (directory / "README.md").open("a", encoding="utf-8") as readme:
        readme.write("\n" + section)
