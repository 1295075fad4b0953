"""Splits text into BM25 terms in any script: words where it has spaces, overlapping character n-grams elsewhere.

Bigrams of Han, kana and Hangul are what Lucene's CJKAnalyzer indexes. Letters of the Brahmic scripts without spaces
carry less each, so their runs are cut to trigrams, marks included.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_IDEOGRAPHIC = (
    "\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Hangul, kana, Han."""
_SYLLABIC = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Tibetan, Burmese, Khmer."""
_RUNS = re.compile(f"([{_IDEOGRAPHIC}]+)|([{_SYLLABIC}]+)|[^{_IDEOGRAPHIC}{_SYLLABIC}]+")


class _Blanks(dict[int, str | int]):
    """``str.translate`` table that keeps letters, marks and numbers and makes all else a blank. Filled on demand."""

    def __missing__(self, code: int) -> str | int:
        # \w of `re` leaves out the marks, without which Hindi and Thai words fall apart.
        kept: str | int = code if unicodedata.category(chr(code))[0] in "LMN" else " "
        self[code] = kept
        return kept


_BLANKS = _Blanks()


def normalised(text: str) -> str:
    """NFKC and case folding: texts that read the same become equal."""
    return unicodedata.normalize("NFKC", text).casefold()


def terms(text: str) -> list[str]:
    """The terms of a text, in its order, repeats kept; none where it has no letter and no number."""
    return [term for word in normalised(text).translate(_BLANKS).split() for term in _cut(word)]


def _cut(word: str) -> Iterator[str]:
    for run in _RUNS.finditer(word):
        if run[1]:
            yield from _grams(run[1], 2)
        elif run[2]:
            yield from _grams(run[2], 3)
        else:
            yield run[0]


def _grams(run: str, size: int) -> Iterator[str]:
    """All windows of ``size`` characters; a shorter run is one term."""
    for start in range(max(1, len(run) - size + 1)):
        yield run[start : start + size]


def has_no_spaces(text: str) -> bool:
    """Whether any of it is in a script that writes no spaces between words."""
    return any(run[1] or run[2] for run in _RUNS.finditer(text))
