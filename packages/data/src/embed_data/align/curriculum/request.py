"""The options of ``embed curriculum``, checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from embed_core.errors import ConfigError
from embed_data.mining.request import ModelChoice

SIZES = {2: ("large", 20, 50), 3: ("small", 3, 10)}
"""Stage → name of the subgraph, and its least and largest number of nodes (ARK)."""


@dataclass(frozen=True, slots=True)
class LanguageServer:
    """An OpenAI-compatible chat server; without an address the offline graph is used. Raises ConfigError."""

    url: str | None = None
    model: str | None = None
    concurrency: int = 8

    def __post_init__(self) -> None:
        if (self.url is None) != (self.model is None):
            raise ConfigError("--llm-url and --llm belong together: the server's address and the model's name on it")
        if self.concurrency < 1:
            raise ConfigError(f"--concurrency {self.concurrency}: at least 1 is needed")


@dataclass(frozen=True, slots=True)
class CurriculumRequest:
    """One stage of the curriculum. Raises ConfigError where the options contradict each other."""

    aligned: Path
    """Folder that ``embed align`` wrote."""
    output: Path
    """Folder of the stages' rows; graphs and queries stay in its ``.work`` and serve both mined stages."""
    stage: int
    """1 random, 2 by queries from large subgraphs, 3 by queries from small ones."""
    retriever: ModelChoice = field(default_factory=ModelChoice)
    """The current model, as the stage before left it. None given = BM25."""
    way: str | None = None
    server: LanguageServer = LanguageServer()
    queries: int = 10
    """Augmented queries per question and subgraph."""
    per_query: int = 10
    """Chunks that each of them adds."""
    negatives: int = 20
    """Negatives per row, at most."""
    forward_margin: float | None = None
    """Nats of forward score by which a negative must be below the best positive; None = not checked."""
    similarity: float = 0.8
    """Cosine of two entities' names and descriptions from which an edge joins them; needs a retriever."""
    seed: int = 42
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.stage not in (1, *SIZES):
            raise ConfigError(f"--stage {self.stage}: 1 (random), 2 (large subgraphs) or 3 (small subgraphs)")
        numbers = (("--queries", self.queries), ("--per-query", self.per_query), ("--negatives", self.negatives))
        for option, value in numbers:
            if value < 1:
                raise ConfigError(f"{option} {value}: at least 1 is needed")
        if self.forward_margin is not None and not math.isfinite(self.forward_margin):
            raise ConfigError(f"--forward-margin {self.forward_margin}: a finite number of nats is needed, such as 0.5")
        if not 0 < self.similarity <= 1:
            raise ConfigError(f"--similarity {self.similarity}: a cosine above 0 and at most 1 is needed")
        if self.way is not None and not self.retriever.given:
            raise ConfigError(f"--way {self.way!r} is of no use without a model: add --model")
        if self.stage == 1 and (self.retriever.given or self.server.url is not None):
            raise ConfigError("--stage 1 draws at random and needs no model: leave --model and --llm-url out")

    @property
    def outputs(self) -> tuple[str, str, str]:
        """File names of our rows, of ms-swift's rows, and of the report."""
        return f"stage{self.stage}.jsonl", f"stage{self.stage}.swift.jsonl", f"stage{self.stage}.report.json"
