"""What is compared: each case trains one model from the same weights on the same rows with every system."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A trainer and how it is set."""

    name: str
    """As printed; unique in its case."""
    script: str
    """Module of this folder that trains with it."""
    strategy: str = "direct"
    """``direct`` or ``cached`` (GradCache)."""


@dataclass(frozen=True)
class Ratio:
    """``rows/s of over / rows/s of under`` of the same repeat."""

    over: str
    under: str
    target: float
    """The ratio that is asked for, at least."""


@dataclass(frozen=True)
class Case:
    """Equal settings for all systems: fp32, AdamW without weight decay, clipping at 1, linear decay, no warm-up."""

    name: str
    title: str
    loss: str
    """``mnrl`` (dense, scale 20, in-batch negatives) or ``m3`` (unified, teacher scores, self-distillation)."""
    systems: tuple[System, ...]
    ratios: tuple[Ratio, ...]
    batch_size: int
    """Rows of an optimizer step."""
    steps: int
    skip: int
    """Steps before the clock starts."""
    repeats: int
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    query_max_len: int
    passage_max_len: int
    """Tokens, special ones included."""
    learning_rate: float = 1e-4
    mini_batch_size: int = 32
    """Texts of a chunk of sentence-transformers' cached loss; ours cuts by tokens."""

    @property
    def timed_rows(self) -> int:
        """Rows between the two ends of the clock."""
        return self.batch_size * (self.steps - self.skip)


EMBED, CACHED = System("embed", "train_embed"), System("embed cached", "train_embed", "cached")
ST, ST_CACHED = "sentence-transformers", "sentence-transformers cached"
FLAG = "FlagEmbedding"
ENCODER = {"vocab_size": 16_000, "hidden": 128, "layers": 4, "heads": 4}
SMALL = {"hidden": 64, "layers": 2, "heads": 4, "query_max_len": 64, "passage_max_len": 128}
M3_SYSTEMS = (EMBED, System(FLAG, "train_flagembedding"))

CASES = (
    Case(
        name="mnrl",
        title="MultipleNegativesRankingLoss, batch 32, 512 tokens, 4×128 model",
        loss="mnrl",
        systems=(EMBED, System(ST, "train_sentence_transformers")),
        ratios=(Ratio("embed", ST, 3.5),),
        batch_size=32,
        steps=9,
        skip=2,
        repeats=3,
        query_max_len=512,
        passage_max_len=512,
        **ENCODER,
    ),
    Case(
        name="cached",
        title="CachedMultipleNegativesRankingLoss, batch 256, 512 tokens, 4×128 model",
        loss="mnrl",
        systems=(EMBED, CACHED, System(ST_CACHED, "train_sentence_transformers", "cached")),
        ratios=(
            Ratio("embed cached", ST_CACHED, 3.0),
            Ratio("embed", ST_CACHED, 3.0),
            Ratio("embed cached", "embed", 1 / 1.40),  # the cost of caching, at most 1.40
        ),
        batch_size=256,
        steps=3,
        skip=1,
        repeats=2,
        query_max_len=512,
        passage_max_len=512,
        **ENCODER,
    ),
    Case(
        name="m3",
        title="BGE-M3 unified, groups of 8, teacher scores and self-distillation, batch 8, V = 4,002",
        loss="m3",
        systems=M3_SYSTEMS,
        ratios=(Ratio("embed", FLAG, 4.0),),
        batch_size=8,
        steps=25,
        skip=5,
        repeats=3,
        vocab_size=4_002,
        **SMALL,
    ),
    Case(
        name="m3-large",
        title="BGE-M3 unified, groups of 8, teacher scores and self-distillation, batch 2, V = 250,002",
        loss="m3",
        systems=M3_SYSTEMS,
        ratios=(Ratio("embed", FLAG, 15.0),),
        batch_size=2,
        steps=10,
        skip=2,
        repeats=3,
        vocab_size=250_002,
        **SMALL,
    ),
)
LARGE = ("m3-large",)
"""Cases that need several GB and run only when they are asked for."""
