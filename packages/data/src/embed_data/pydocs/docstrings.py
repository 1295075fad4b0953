"""Query → passage pairs from the docstrings of one module's source text."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

QUERY_WORDS = 4
"""A shorter first paragraph ("Constructor.") asks for nothing in particular."""
QUERY_CHARACTERS = 300
LETTERS_SHARE = 0.8
"""The least share of letters in a query; below, it is a formula, a grammar or a table."""
SIGNATURE_CHARACTERS = 300
REST_CHARACTERS = 40
"""Less text than that after the first paragraph counts as none."""
PASSAGE_CHARACTERS = 1200

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_ROLE = re.compile(r":[a-zA-Z][\w:.+-]*:`[~!]?([^`<]+?)\s*(?:<[^`]*>)?`")
_LINK = re.compile(r"\[`~?([^`\]]+)`\](?:\([^)]*\))?")
_WEB_LINK = re.compile(r"\[([^\]]+)\]\(https?://[^)]*\)")
_TICKS = re.compile(r"`+([^`]*)`+_{0,2}")
_SIGNATURE_LINE = re.compile(r"^[\w.]+\s*\(.*\)\s*(->.*)?$")
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_NO_SENTENCE = re.compile(r"^(\.\. |:|>>>|@|#|<|---|===|https?:|[\w*]+ \(.*?\): )|:$")
_PLACEHOLDER = re.compile(r"TODO|FIXME|\{\w*\}|%\(\w+\)s")
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True, slots=True)
class Pair:
    """One documented function, method or class."""

    module: str
    query: str
    """The docstring's first paragraph."""
    passage: str
    """The signature and the rest of the docstring."""
    rest: str
    """The rest alone: subclasses inherit it word for word under another name."""


def pairs(source: bytes, module: str) -> Iterator[Pair]:
    """Pairs of a module, in the order of its source; none where it is no valid Python."""
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node, name in _definitions(tree, module):
        pair = _pair(node, name, module)
        if pair is not None:
            yield pair


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[Definition, str]]:
    """Functions and classes at module and class level, with dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            name = f"{prefix}.{node.name}"
            yield node, name
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, name)
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _definitions(node, prefix)


def _pair(node: Definition, name: str, module: str) -> Pair | None:
    doc = ast.get_docstring(node)
    if not doc:
        return None
    paragraphs = re.split(r"\n\s*\n", doc.strip())
    if _SIGNATURE_LINE.match(_flat(paragraphs[0])):
        paragraphs = paragraphs[1:]  # C extensions repeat their signature there
    if not paragraphs:
        return None
    query = _cut(_flat(_plain(paragraphs[0])), QUERY_CHARACTERS)
    rest = _plain("\n\n".join(paragraphs[1:])).strip()
    signature = _signature(node, name)
    if not _asks(query) or not _answers(node, rest):
        return None
    passage = _cut(f"{signature}\n{rest}".strip(), PASSAGE_CHARACTERS)
    if query.rstrip(".").casefold() in _flat(passage).casefold() or not _encodable(query + passage):
        return None
    return Pair(module, query, passage, _flat(rest).casefold())


def _encodable(text: str) -> bool:
    """Whether no escape in the source made half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _asks(query: str) -> bool:
    """Whether a first paragraph says what the thing does."""
    return (
        len(_WORD.findall(query)) >= QUERY_WORDS
        and not _NO_SENTENCE.search(query)
        and sum(c.isalpha() or c.isspace() for c in query) > LETTERS_SHARE * len(query)
        and not _PLACEHOLDER.search(query)
    )  # fmt: skip


def _answers(node: Definition, rest: str) -> bool:
    """Whether signature and rest say enough to be found: text, or two named parameters."""
    if _PLACEHOLDER.search(rest[:PASSAGE_CHARACTERS]):
        return False
    if len(rest) >= REST_CHARACTERS:
        return True
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(_parameters(node)) >= 2


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        signature = f"class {name}({bases})" if bases else f"class {name}"
    else:
        arguments = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))
        returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
        signature = f"{name}({arguments}){returns}"
    return _cut(signature, SIGNATURE_CHARACTERS)


def _plain(text: str) -> str:
    """Without reStructuredText roles, Markdown fences, targets of links, and backticks."""
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", _FENCE.sub("", text)))
    return _TICKS.sub(r"\1", _WEB_LINK.sub(r"\1", text))


def _flat(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, most: int) -> str:
    """At most so many characters, ending with a whole word."""
    return text if len(text) <= most else text[: most + 1].rsplit(None, 1)[0][:most]
