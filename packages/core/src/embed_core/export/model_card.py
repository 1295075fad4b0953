"""Writes the README.md of an exported model: what it is, what it was trained on, how well it did, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LOADERS: Mapping[str, str] = {
    "sentence-transformers": """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
queries = model.encode(["a question"], prompt_name="query")
passages = model.encode(["a passage", "another one"], prompt_name="document")
print(model.similarity(queries, passages))
""",
    "transformers": """\
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModel.from_pretrained("path/to/this/directory")
states = model(**tokenizer(["a question"], return_tensors="pt")).last_hidden_state
""",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class RunCard:
    """The facts of a finished run."""

    name: str
    base_model: str
    config: Mapping[str, Any]
    """The resolved ``RunConfig`` as plain data."""
    data: Mapping[str, Any]
    """Name, rows, fingerprint of the training data."""
    evaluations: Mapping[int, Mapping[str, float]]
    """Step → ``evaluator/way/measure`` → value; step 0 is before training."""
    command: str
    """The command line that ran it."""
    steps: int
    versions: Mapping[str, str]
    """Versions of embed, torch, transformers, deepspeed."""
    loss_state: Mapping[str, Any] = field(default_factory=dict)
    """Trained parameters of the loss by name (fp32 CPU tensors): a logit scale belongs into a CLIP checkpoint."""

    @property
    def innermost_model(self) -> str:
        """The base model inside of everything that wraps it (adapters, projections)."""
        model: Any = self.config.get("model", {})
        if "inner" not in model:  # the caller built the model
            return self.base_model
        while "inner" in model:
            model = model["inner"]
        return str(model.get("name_or_path", model["kind"]))


@dataclass(frozen=True, slots=True)
class CardText:
    """The text that a layout adds to the facts of the run."""

    title: str
    summary: str = "A text embedding model trained with [embed](https://pypi.org/project/embed-core/)."
    tags: tuple[str, ...] = ("feature-extraction", "sentence-similarity")
    loaders: Mapping[str, str] = field(default_factory=lambda: LOADERS)
    """Library → Python code that loads the directory."""
    notes: tuple[str, ...] = ()
    """Lines a user of the model must know."""


def write_card(directory: Path, card: RunCard, text: CardText) -> None:
    """Write ``README.md`` into ``directory``."""
    (directory / "README.md").write_text(render(card, text), encoding="utf-8")


def render(card: RunCard, text: CardText) -> str:
    """Render the card as Markdown with the hub's YAML front matter."""
    notes = [f"- {note}" for note in text.notes]
    sections = [
        _front_matter(card, text),
        f"# {text.title}\n\n{text.summary}",
        *(["\n".join(notes)] if notes else []),
        _section("Use", "\n\n".join(f"### {name}\n\n{_fenced(code, 'python')}" for name, code in text.loaders.items())),
        _section("Results", _results(card.evaluations)),
        _section("Training", _training(card)),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(card: RunCard, text: CardText) -> str:
    facts: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", *text.tags],
    }
    if _HUB_ID.fullmatch(card.base_model):
        facts["base_model"] = card.base_model
    return "---\n" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True) + "---"


def _results(evaluations: Mapping[int, Mapping[str, float]]) -> str:
    """One table per evaluator: rows are ways of scoring, cells ``before → after``."""
    if not evaluations:
        return "Not evaluated."
    first, last = evaluations[min(evaluations)], evaluations[max(evaluations)]
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for key, after in last.items():
        evaluator, way, measure = _split(key)
        before = first.get(key)
        cell = f"{after:.4f}" if before is None or len(evaluations) == 1 else f"{before:.4f} → {after:.4f}"
        tables.setdefault(evaluator, {}).setdefault(way, {})[measure] = cell
    steps = f"step {min(evaluations)} → step {max(evaluations)}" if len(evaluations) > 1 else f"step {min(evaluations)}"
    return "\n\n".join(f"### {name} ({steps})\n\n{_table(ways)}" for name, ways in tables.items())


def _split(key: str) -> tuple[str, str, str]:
    """``evaluator/way/measure``; an evaluator's name may hold slashes itself."""
    parts = key.rsplit("/", 2)
    return ("/".join(parts[:-2]) or "evaluation", parts[-2] if len(parts) > 1 else "score", parts[-1])


def _table(ways: Mapping[str, Mapping[str, str]]) -> str:
    measures = list(dict.fromkeys(measure for row in ways.values() for measure in row))
    lines = ["| scored by | " + " | ".join(measures) + " |", "|---" * (len(measures) + 1) + "|"]
    lines += [f"| {way} | " + " | ".join(row.get(m, "") for m in measures) + " |" for way, row in ways.items()]
    return "\n".join(lines)


def _training(card: RunCard) -> str:
    data = "\n".join(f"- {key}: {_inline(value)}" for key, value in card.data.items())
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    config = yaml.safe_dump(_plain(card.config), sort_keys=False, allow_unicode=True)
    return "\n\n".join(
        [
            f"Started from {_inline(card.base_model)}, {card.steps:,} optimizer steps, with {versions}.",
            f"Data:\n\n{data}" if data else "Data: not recorded.",
            f"Command:\n\n{_fenced(card.command, 'sh')}",
            f"<details><summary>The whole config</summary>\n\n{_fenced(config, 'yaml')}\n\n</details>",
        ]
    )


def _plain(value: Any) -> Any:
    """Convert ``value`` to the types of YAML and JSON: tuples become lists, paths text."""
    return json.loads(json.dumps(value, default=str))


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _inline(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"`{value}`"


def _fenced(code: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"
