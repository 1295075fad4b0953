"""What is compared: each case trains one model from the same weights on the same rows with every system."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class System:
    """A trainer and how it is set."""

    name: str
    """As printed; unique in its case."""
    script: str
    """Module of this folder that trains with it."""
    strategy: str = "direct"
    """``direct`` or ``cached`` (GradCache)."""
    precision: str | None = None
    """Instead of its case's: where each system is left to its own default (``auto`` is embed's)."""


@dataclass(frozen=True)
class Ratio:
    """``rows/s of over / rows/s of under`` of the same repeat."""

    over: str
    under: str
    target: float
    """The ratio that is asked for, at least."""


@dataclass(frozen=True)
class Case:
    """Equal settings for all systems: AdamW without weight decay, clipping at 1, linear decay, no warm-up."""

    name: str
    title: str
    loss: str
    """``mnrl`` (dense, scale 20, in-batch negatives), ``m3`` (unified, teacher scores, self-distillation) or ``clip``
    (captions and pictures, scale 20, both directions)."""
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
    dropout: float = 0.0
    """Of hidden states and attention weights. With 0 the losses of all are equal; released checkpoints have 0.1."""
    precision: str = "bf16"
    """``fp32`` or ``bf16``, for all systems, unless they say otherwise."""
    learning_rate: float = 1e-4
    mini_batch_size: int = 32
    """Texts of a chunk of sentence-transformers' cached loss; ours cuts by tokens."""
    device: str = "cpu"
    """``cpu``, one core of it, or ``cuda``."""
    family: str = "xlm-roberta"
    """Architecture: ``xlm-roberta``, or ``qwen3`` (causal, the last token's state), or ``qwen3-embedding``, the same as
    embed-qwen makes it, with a byte-level tokenizer and the end of text."""

    @property
    def timed_rows(self) -> int:
        """Rows between the two ends of the clock."""
        return self.batch_size * (self.steps - self.skip)


EMBED, CACHED = System("embed", "train_embed"), System("embed cached", "train_embed", "cached")
ST, ST_CACHED = "sentence-transformers", "sentence-transformers cached"
FLAG = "FlagEmbedding"
ENCODER: dict[str, Any] = {"vocab_size": 16_000, "hidden": 128, "layers": 4, "heads": 4}
SMALL: dict[str, Any] = {"hidden": 64, "layers": 2, "heads": 4, "query_max_len": 64, "passage_max_len": 128}
M3 = "BGE-M3 unified, groups of 8, teacher scores and self-distillation, batch 8"

MNRL = Case(
    name="mnrl",
    title="MultipleNegativesRankingLoss, batch 32, 512 tokens, 4×128 model",
    loss="mnrl",
    systems=(EMBED, System(ST, "train_sentence_transformers")),
    ratios=(Ratio("embed", ST, 3.5),),
    batch_size=32,
    # In bf16 a CPU compiles each shape it meets: the first steps of every system are slow.
    steps=18,
    skip=6,
    repeats=3,
    query_max_len=512,
    passage_max_len=512,
    **ENCODER,
)
CACHE = Case(
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
    steps=5,
    skip=2,
    repeats=2,
    query_max_len=512,
    passage_max_len=512,
    **ENCODER,
)
SBERT = replace(
    MNRL,
    name="sbert",
    title="MultipleNegativesRankingLoss, batch 32, 512 tokens, 4×128 model, by sentence-transformers' own modules",
    systems=(System("embed-sbert", "train_embed_sbert"), System(ST, "train_sentence_transformers")),
    ratios=(Ratio("embed-sbert", ST, 1.0),),
)
UNIFIED = Case(
    name="m3",
    title=f"{M3}, V = 16,000",
    loss="m3",
    systems=(EMBED, System(FLAG, "train_flagembedding")),
    ratios=(Ratio("embed", FLAG, 4.0),),
    batch_size=8,
    steps=18,
    skip=6,
    repeats=3,
    vocab_size=16_000,
    **SMALL,
)
UNIFIED_LARGE = replace(
    UNIFIED,
    name="m3-large",
    title=f"{M3}, V = 250,002",
    ratios=(Ratio("embed", FLAG, 15.0),),
    vocab_size=250_002,
    steps=5,
    skip=1,
    repeats=2,
)

VISION = Case(
    name="vision",
    title="CLIP, captions and pictures of 64 × 64 pixels, batch 64, 4×128 towers",
    loss="clip",
    systems=(System("embed", "train_vision"), System(ST, "train_vision_sentence_transformers")),
    ratios=(Ratio("embed", ST, 1.0),),
    batch_size=64,
    steps=18,
    skip=6,
    repeats=3,
    vocab_size=2_000,
    hidden=128,
    layers=4,
    heads=4,
    query_max_len=77,
    passage_max_len=64,  # the pictures' side in pixels
)
SWIFT = Case(
    name="swift",
    title="ms-swift's InfoNCE under ZeRO 2, batch 32, 4×128 Qwen3",
    loss="mnrl",
    systems=(EMBED, System("ms-swift", "train_swift")),
    ratios=(Ratio("embed", "ms-swift", 2.0),),
    batch_size=32,
    steps=12,
    skip=3,
    repeats=3,
    # XQuAD's longest text has 1,113 tokens: of one that is cut ms-swift would lose the token that is the vector.
    query_max_len=1_200,
    passage_max_len=1_200,
    precision="fp32",
    family="qwen3-embedding",
    **ENCODER,
)


def as_released(case: Case) -> Case:
    """The same with the dropout that BERT, XLM-RoBERTa, bge-m3 and most models people start from come with."""
    return replace(case, name=f"{case.name}-dropout", title=f"{case.title}, dropout 0.1", dropout=0.1)


def in_fp32(case: Case) -> Case:
    """The same in the other precision."""
    return replace(case, name=f"{case.name}-fp32", precision="fp32")


def by_default(case: Case) -> Case:
    """The same, each system in the precision that it has by itself: fp32, and what `auto` chooses."""
    systems = tuple(replace(s, precision="auto" if s.script == "train_embed" else "fp32") for s in case.systems)
    return replace(case, name=f"{case.name}-defaults", precision="each its default", systems=systems)


BGE_M3: dict[str, Any] = {"vocab_size": 250_002, "hidden": 1024, "layers": 24, "heads": 16}
QWEN3: dict[str, Any] = {"vocab_size": 151_669, "hidden": 1024, "layers": 28, "heads": 16, "family": "qwen3"}
GPU = tuple(
    Case(
        name=f"gpu-{name}",
        title=f"{title}, in the shape of {like}, on a GPU",
        loss=loss,
        systems=(EMBED, System(peer, script)),
        ratios=(Ratio("embed", peer, target),),
        batch_size=rows,
        steps=30,
        skip=10,
        repeats=2,
        query_max_len=512,
        passage_max_len=512,
        device="cuda",
        **shape,
    )
    for name, title, like, loss, peer, script, target, rows, shape in (
        ("m3", "BGE-M3 unified, groups of 8, batch 16", "bge-m3", "m3", FLAG, "train_flagembedding", 4.0, 16, BGE_M3),
        ("bge", "MNRL, batch 256", "bge-m3", "mnrl", ST, "train_sentence_transformers", 1.0, 256, BGE_M3),
        ("qwen", "MNRL, batch 256", "Qwen3-0.6B", "mnrl", ST, "train_sentence_transformers", 1.0, 256, QWEN3),
    )
)
"""The shapes that people train, in bf16; only where there is a CUDA device, and only when asked for."""
CASES = (
    *GPU,
    MNRL,
    CACHE,
    SBERT,
    UNIFIED,
    SWIFT,
    by_default(MNRL),
    by_default(UNIFIED),
    as_released(MNRL),
    in_fp32(as_released(MNRL)),
    by_default(as_released(MNRL)),
    as_released(CACHE),
    in_fp32(as_released(CACHE)),
    in_fp32(MNRL),
    in_fp32(CACHE),
    in_fp32(UNIFIED),
    replace(UNIFIED, name="m3-4002", title=f"{M3}, V = 4,002", vocab_size=4_002),
    UNIFIED_LARGE,
    in_fp32(UNIFIED_LARGE),
    VISION,
    in_fp32(VISION),
)
LARGE = ("m3-large", "m3-large-fp32")
"""Cases that need 20 GB and run only when they are asked for."""
MAIN = (
    *("mnrl", "mnrl-dropout", "mnrl-dropout-fp32", "mnrl-dropout-defaults", "cached", "cached-dropout"),
    *("sbert", "m3", "m3-defaults", "swift", "vision"),
)
"""What runs when nothing is asked for."""
