"""The options of ``embed mine``, checked before anything is read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from embed_core.errors import ConfigError, did_you_mean
from embed_data.formats.options import FileFields

By = Literal["bm25", "dense", "scores"]
Draw = Literal["top", "sample"]
Mask = Literal["drop", "mark"]

BY = ("bm25", "dense", "scores")
DRAWS = ("top", "sample")
MASKS = ("drop", "mark")
LAST_RANK = 100


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which registered model to use, as in ``embed run``, and its weights."""

    path: str | None = None
    """A run's output directory, its ``model`` folder, or any directory that the plugin's model loads."""
    plugins: tuple[str, ...] = ()
    config: str | None = None
    overrides: tuple[str, ...] = ()
    """``key=value`` pairs of the run: ``model.query_max_len=32``, ``engine.precision=fp32``."""

    @property
    def given(self) -> bool:
        """Whether a path, a plugin or a config was given."""
        return bool(self.path or self.plugins or self.config)


@dataclass(frozen=True, slots=True)
class MiningRequest:
    """One mining run, or one audit. Raises ConfigError where the options contradict each other."""

    data: Path
    """Rows (query, positives, optional negatives and ``answers``) of any format that dataset kind `file` reads."""
    output: Path
    """The rows with their negatives (JSONL); for an audit, its findings."""
    corpus: Path | None = None
    """Where negatives come from: a file of ``text``, or a BEIR folder. None = the data's own corpus if it is a BEIR
    folder, else all positives of the data."""
    split: str | None = None
    """Which ``qrels`` of a BEIR folder, or split of a Hugging Face dataset; None = the only one, or ``train``."""
    reading: FileFields = field(default_factory=FileFields)
    """How the data is read: ``format``, ``columns``, ``header``, ``subset``."""
    by: By = "bm25"
    """What ranks the corpus; ``scores`` (audits only) = the rows' own scores."""
    model: ModelChoice = ModelChoice()
    way: str | None = None
    """Way of scoring of a dense model; None = ``dense``, or the model's first."""
    faiss: str | None = None
    """A faiss index-factory string for the search (``IVF1024,Flat``); None = exact."""
    negatives: int = 7
    """Negatives per row, at most."""
    first_rank: int = 1
    last_rank: int = LAST_RANK
    """Ranks considered, counted from 1 without the known positives."""
    absolute_margin: float | None = None
    """A negative scores at most the lowest positive's score less this."""
    relative_margin: float | None = None
    """A negative scores at most the lowest positive's score less this share of it."""
    draw: Draw = "top"
    cross_encoder: str | None = None
    """A sentence-transformers CrossEncoder that gives margins, order and written scores."""
    teacher: str | None = None
    """A registered model that does the same; a directory as in ``model.path``."""
    overlap: float = 0.5
    """A text with this share of its 8-character windows in a positive counts as the same text."""
    seed: int = 42
    audit: bool = False
    mask: Mask | None = None
    """What an audit does with the negatives it finds, in ``masked_data``."""
    masked_data: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for value, known, option in ((self.by, BY, "by"), (self.draw, DRAWS, "draw"), (self.mask, MASKS, "mask")):
            if value is not None and value not in known:
                raise ConfigError(f"--{option} {value!r} is none: {did_you_mean(str(value), known)}")
        self._check_numbers()
        self._check_model()
        self._check_outputs()

    @property
    def judge(self) -> str:
        """Where the written scores come from, for the user."""
        if self.cross_encoder:
            return f"cross-encoder {self.cross_encoder}"
        return f"teacher {self.teacher}" if self.teacher else self.by

    @property
    def models(self) -> tuple[ModelChoice, ...]:
        """The registered models in use: the ranking one, then the teacher, which is read with the same plugin."""
        teacher = ModelChoice(self.teacher, self.model.plugins, self.model.config, self.model.overrides)
        return (*([self.model] if self.by == "dense" else []), *([teacher] if self.teacher else []))

    def _check_numbers(self) -> None:
        if not 1 <= self.first_rank <= self.last_rank:
            raise ConfigError(
                f"--ranks {self.first_rank}-{self.last_rank}: give the first and the last rank, counted from 1: 10-100"
            )
        if self.negatives < 1:
            raise ConfigError(f"--negatives {self.negatives}: at least 1 is needed")
        if self.absolute_margin is not None and not math.isfinite(self.absolute_margin):
            raise ConfigError(f"--absolute-margin {self.absolute_margin}: a finite number is needed, such as 0.1")
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            raise ConfigError(
                f"--relative-margin {self.relative_margin}: a share from 0 to below 1 is needed; 0.05 keeps negatives "
                "5 % below the positive"
            )
        if not 0 < self.overlap <= 1:
            raise ConfigError(f"--overlap {self.overlap}: a share above 0 and at most 1 is needed")

    def _check_model(self) -> None:
        if self.by == "dense" and not self.model.given:
            raise ConfigError(
                "--by dense needs a model: --model with a run's output directory, or --plugin NAME --model DIRECTORY"
            )
        if self.by != "dense":
            for option, value in (("--way", self.way), ("--faiss", self.faiss), ("--model", self.model.path)):
                if value is not None:
                    raise ConfigError(f"{option} {value!r} is of no use with --by {self.by}: add --by dense")
        if self.faiss is not None and self.audit:
            raise ConfigError("--faiss searches, and an audit has nothing to search: leave one of them out")
        if self.cross_encoder and self.teacher:
            raise ConfigError("--cross-encoder and --teacher judge in the same place: give one of them")
        if self.by == "scores" and (self.cross_encoder or self.teacher):
            raise ConfigError("--by scores takes the rows' own scores: leave out --cross-encoder and --teacher")

    def _check_outputs(self) -> None:
        if self.by == "scores" and not self.audit:
            raise ConfigError("--by scores ranks no corpus: it is for --audit; mine with --by bm25 or --by dense")
        if (self.mask is None) != (self.masked_data is None):
            raise ConfigError("--mask and --masked-data belong together: how to mask, and the file to write it to")
        if self.mask is not None and not self.audit:
            raise ConfigError("--mask is for what --audit finds: add --audit")
        paths = [path.resolve() for path in (self.data, self.output, self.masked_data) if path is not None]
        if len(set(paths)) < len(paths):
            raise ConfigError(f"--output {str(self.output)!r}: input and outputs must be different files")


def parse_ranks(text: str) -> tuple[int, int]:
    """``10-100`` → (10, 100); ``100`` → (1, 100). Raises ConfigError."""
    found = re.fullmatch(r"\s*(?:(\d+)\s*[-:])?\s*(\d+)\s*", text)
    if found is None:
        raise ConfigError(f"--ranks {text!r}: give the first and the last rank, counted from 1: 10-100")
    return int(found[1] or 1), int(found[2])
