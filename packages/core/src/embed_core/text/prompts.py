"""Joins instructions and texts. This module imports nothing heavy, because configs check formats with it."""

from __future__ import annotations

from dataclasses import dataclass

from embed_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Prompt:
    """An instruction and how it joins the text, as FlagEmbedding writes it: ``format.format(instruction, text)``."""

    instruction: str | None = None
    """``None`` or empty leaves the text alone, whatever the format."""
    format: str = "{}{}"

    def __post_init__(self) -> None:
        check_format(self.format)

    def apply(self, text: str, instruction: str | None = None) -> str:
        """Join ``text`` with ``instruction``, or with the prompt's own where that is ``None``."""
        chosen = self.instruction if instruction is None else instruction
        return self.format.format(chosen, text) if chosen else text

    @property
    def prefix(self) -> str | None:
        """The part before the text, for clients that know prefixes only; ``None`` where the text is not last."""
        mark = "\0"
        whole = self.apply(mark)
        return whole[: -len(mark)] if whole.endswith(mark) else None


def check_format(value: str) -> str:
    """Raises ConfigError unless ``value`` has two places: the instruction's, then the text's."""
    try:
        whole = value.format("\1", "\2")
    except (IndexError, KeyError, ValueError):
        whole = ""
    if whole.count("\1") != 1 or whole.count("\2") != 1:
        raise ConfigError(
            f"instruction format {value!r} must have two places, the instruction's and the text's, "
            "for instance '{}{}' or 'Instruct: {}\\nQuery: {}'"
        )
    return value
