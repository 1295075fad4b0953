"""The options of ``embed align``, checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from embed_core.errors import ConfigError, did_you_mean
from embed_data.mining.request import ModelChoice

ChunkBy = Literal["tokens", "sentences", "paragraphs"]
Normalise = Literal["minmax", "raw"]

CHUNK_BY = ("tokens", "sentences", "paragraphs")
NORMALISE = ("minmax", "raw")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEFAULT_SIZES = {"tokens": (512, 12), "sentences": (5, 1), "paragraphs": (1, 0)}
"""Default size and overlap by unit. ARK's other settings: tokens 64/8, sentences 1/0."""
COMPONENTS = ("forward", "backward", "parameter")


@dataclass(frozen=True, slots=True)
class ChunkChoice:
    """How documents are cut into chunks. Raises ConfigError."""

    by: ChunkBy = "tokens"
    size: int | None = None
    """Tokens, sentences or paragraphs of one chunk; None = 512, 5, 1."""
    overlap: int | None = None
    """Overlap of neighbours in the same unit; None = 12, 1, 0."""

    def __post_init__(self) -> None:
        if self.by not in CHUNK_BY:
            raise ConfigError(f"--chunk-by {self.by!r} is none: {did_you_mean(self.by, CHUNK_BY)}")
        size, overlap = self.resolved
        if size < 1:
            raise ConfigError(f"--chunk-size {size}: at least 1 of the {self.by} is needed")
        if not 0 <= overlap < size:
            raise ConfigError(f"--chunk-overlap {overlap}: it must be from 0 to below the chunk size, {size}")

    @property
    def resolved(self) -> tuple[int, int]:
        """Size and overlap. With a size of its own, the default overlap is an eighth of the size at most."""
        size, overlap = DEFAULT_SIZES[self.by]
        if self.size is not None:
            size, overlap = self.size, min(overlap, max(0, self.size // 8))
        return size, overlap if self.overlap is None else self.overlap


@dataclass(frozen=True, slots=True)
class LanguageModelChoice:
    """The causal LM of the forward and backward scores: local weights, or a server. Raises ConfigError."""

    path: str | None = None
    """A model directory or hub name; with a server, the name by which it serves the model."""
    url: str | None = None
    """Base address of an OpenAI-compatible server (``http://host:8000/v1``); None = the model runs here."""
    tokenizer: str | None = None
    """Directory or hub name of the tokenizer; None = that of ``path``. It also counts the tokens of chunks."""
    precision: str = "auto"
    """Precision of a local model; ``auto`` = bf16 on CUDA, fp32 on CPU."""
    max_length: int | None = None
    """Tokens of a prompt with its continuation, at most; None = what the model's config says."""
    batch_tokens: int = 16384
    """Tokens of one local forward, padding and cached prefixes included, at most (one text at least)."""
    concurrency: int = 8
    """Concurrent requests to a server."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--lm-precision {self.precision!r} is none: {did_you_mean(self.precision, PRECISIONS)}")
        if self.url is not None and self.path is None:
            raise ConfigError(f"--lm-url {self.url!r} needs --lm, the name that the server gives the model")
        if self.url is not None and self.tokenizer is None:
            raise ConfigError("--lm-url takes prompts as token ids: --tokenizer with the model's tokenizer is needed")
        if self.url is not None and self.max_length is None:
            raise ConfigError("--lm-url needs --max-length: the tokens that the server takes in one prompt")
        for option, value in (("--batch-tokens", self.batch_tokens), ("--concurrency", self.concurrency)):
            if value < 1:
                raise ConfigError(f"{option} {value}: at least 1 is needed")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"--max-length {self.max_length}: a prompt and its continuation need at least 2 tokens")


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """One alignment. Raises ConfigError where the options contradict each other."""

    data: Path
    """JSONL rows ``{input, answers, context}``, SQuAD in either form, or a BEIR folder."""
    output: Path
    """Folder of the results; the scores stay in its ``.work``."""
    split: str | None = None
    group_by: str | None = None
    """Key whose equal values join contexts into one document (``title``); None = one context, one document."""
    chunks: ChunkChoice = ChunkChoice()
    lm: LanguageModelChoice = LanguageModelChoice()
    retriever: ModelChoice = field(default_factory=ModelChoice)
    way: str | None = None
    """Way of scoring of the retriever; None = dense, or the model's first."""
    weights: tuple[float, float, float] = (1.0, 0.3, 1.0)
    """Weights of the forward, backward and parameter scores."""
    normalise: Normalise = "minmax"
    short_chunk: int = 10
    """Chunks of fewer tokens than this get their score reduced in proportion; 0 = none."""
    positives: int = 10
    """M: the best chunks of a question that become its positives, at most."""
    negatives: int = 20
    """Random chunks of the same document that become negatives (stage 1), at most; 0 = none."""
    seed: int = 42
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISE:
            raise ConfigError(f"--normalise {self.normalise!r} is none: {did_you_mean(self.normalise, NORMALISE)}")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights) or not any(self.weights):
            raise ConfigError(
                f"--weights {weights_text(self.weights)}: three numbers from 0 on are needed, not all 0: 1,0.3,1"
            )
        if self.positives < 1:
            raise ConfigError(f"--positives {self.positives}: at least 1 is needed")
        for option, value in (("--negatives", self.negatives), ("--short-chunk", self.short_chunk)):
            if value < 0:
                raise ConfigError(f"{option} {value}: 0 or more is needed")
        self._check_models()

    @property
    def components(self) -> tuple[str, ...]:
        """The scores that are computed: those whose model is given, whatever their weight."""
        language = COMPONENTS[:2] if self.lm.path is not None else ()
        return (*language, *(COMPONENTS[2:] if self.retriever.given else ()))

    def _check_models(self) -> None:
        forward, backward, parameter = self.weights
        if (forward or backward) and self.lm.path is None:
            raise ConfigError(
                "forward and backward scores need a causal language model: --lm DIRECTORY, or --weights 0,0,1"
            )
        if parameter and not self.retriever.given:
            raise ConfigError(
                "the parameter score needs a retriever: --model with a run's output directory, --plugin NAME --model "
                f"DIRECTORY, or --weights {weights_text((forward, backward, 0))}"
            )
        if self.way is not None and not self.retriever.given:
            raise ConfigError(f"--way {self.way!r} is of no use without a retriever: add --model")
        if self.chunks.by == "tokens" and self.lm.path is None and self.lm.tokenizer is None:
            raise ConfigError("--chunk-by tokens needs a tokenizer to count by: --tokenizer DIRECTORY, or --lm")


def parse_weights(text: str) -> tuple[float, float, float]:
    """``1,0.3,1`` → forward, backward, parameter. Raises ConfigError."""
    try:
        forward, backward, parameter = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--weights {text!r}: three numbers are needed, of forward, backward and parameter score: 1,0.3,1"
        ) from None
    return forward, backward, parameter


def weights_text(weights: tuple[float, float, float]) -> str:
    """The weights as the option is written."""
    return ",".join(f"{weight:g}" for weight in weights)
