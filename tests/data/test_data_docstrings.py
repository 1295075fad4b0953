"""From source text to query → passage pairs."""

from __future__ import annotations

import textwrap

import pytest

from embed_data.pydocs.docstrings import PASSAGE_CHARACTERS, QUERY_CHARACTERS, SIGNATURE_CHARACTERS, pairs

REST = "It goes on for long enough to be a passage of its own."


def read(source: str):
    return list(pairs(textwrap.dedent(source).encode(), "pkg.mod"))


def one(doc: str, definition: str = "def f(x): "):
    found = read(f'{definition}\n    r"""{doc}"""')
    assert len(found) <= 1
    return found[0] if found else None


def test_functions_methods_classes_and_nested_ones():
    found = read(
        f'''
        """The module's own docstring is no pair."""
        async def top(x: int, *, flag=False) -> list[str]:
            """Gather the named things
            in one list.

            {REST}
            """
            def inner():
                """Functions in functions are not documentation.

                {REST}
                """
        class Thing(Base, metaclass=Meta):
            """A thing that holds things.

            {REST} Of classes.
            """
            def method(self, other):
                """Compare with some other thing.

                {REST} Of methods.
                """
        if sys.platform == "win32":
            def only_there():
                """Do what only Windows can.

                {REST} Of Windows.
                """
        '''
    )
    assert [(pair.query, pair.passage) for pair in found] == [
        (
            "Gather the named things in one list.",
            f"pkg.mod.top(x: int, *, flag=False) -> list[str]\n{REST}",
        ),
        ("A thing that holds things.", f"class pkg.mod.Thing(Base)\n{REST} Of classes."),
        ("Compare with some other thing.", f"pkg.mod.Thing.method(other)\n{REST} Of methods."),
        ("Do what only Windows can.", f"pkg.mod.only_there()\n{REST} Of Windows."),
    ]
    assert {pair.module for pair in found} == {"pkg.mod"}


@pytest.mark.parametrize(
    "doc",
    [
        f"Too short.\n\n{REST}",
        f".. deprecated:: 1.2 of this library\n\n{REST}",
        f"https://example.org/a/b has all that there is\n\n{REST}",
        f"hidden_size (int, *optional*): The size of the layers.\n\n{REST}",
        f"Variables used in this class:\n\n{REST}",
        f"a = b(c) / (d + e) * [f, g] {{h}} == word of more words\n\n{REST}",
        f"TODO describe what this one does\n\n{REST}",
        f"Add the numbers of a list.\n\nAs said: add the numbers of a list. {REST}",
        "Add the numbers of a list.",
        "Add the numbers of a list.\n\nShort.",
    ],
)
def test_what_is_no_pair(doc):
    assert one(doc) is None


def test_a_signature_alone_says_enough_with_two_parameters():
    pair = one("Add the numbers of a list.", "def f(self, numbers, start=0): ")
    assert pair is not None
    assert pair.passage == "pkg.mod.f(numbers, start=0)"
    assert one("Add the numbers of a list.", "def f(self, numbers): ") is None


def test_a_repeated_signature_is_no_query():
    pair = one(f"f(x, /) -> int\n\nReturn the number of items.\n\n{REST}")
    assert pair is not None
    assert (pair.query, pair.rest) == ("Return the number of items.", REST.casefold())


def test_markup_becomes_text():
    pair = one(
        f"Wraps a :class:`~torch.nn.Module` of ``two`` `kinds`, see :ref:`the docs <docs>`, "
        f"[`~pipe.Line`] and [here](https://example.org/x).\n\n{REST}\n\n```python\n>>> f(1)\n```"
    )
    assert pair is not None
    assert pair.query == "Wraps a torch.nn.Module of two kinds, see the docs, pipe.Line and here."
    assert "`" not in pair.passage
    assert ">>> f(1)" in pair.passage


def test_lengths_are_bounded_at_words():
    pair = one(
        "word " * 200 + "\n\n" + "text " * 1000, f"def f({', '.join(f'parameter{n}=None' for n in range(99))}): "
    )
    assert pair is not None
    assert QUERY_CHARACTERS - 10 < len(pair.query) <= QUERY_CHARACTERS
    assert PASSAGE_CHARACTERS - 10 < len(pair.passage) <= PASSAGE_CHARACTERS
    signature = pair.passage.splitlines()[0]
    assert SIGNATURE_CHARACTERS - 30 < len(signature) <= SIGNATURE_CHARACTERS
    assert set(pair.query.split()) == {"word"}
    assert pair.passage.endswith("text")


@pytest.mark.parametrize("source", [b'def f(:\n  """x"""', b'"""\x00"""', b'\xff"""', b"x = 1", b""])
def test_source_that_cannot_be_parsed_has_no_pairs(source):
    assert list(pairs(source, "m")) == []


def test_half_a_surrogate_pair_is_no_text():
    assert read(f'def f(x):\n    """Return half of \\ud83d an emoji.\n\n    {REST}"""') == []
