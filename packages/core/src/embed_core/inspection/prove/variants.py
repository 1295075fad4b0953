"""The variants that `embed prove` compares, and the tolerances. No torch: the command judges, workers measure.

The reference is plain autograd over one padded chunk of all texts on one rank: no chunking, no deduplication, no
gather, no DeepSpeed, no tiles in the loss. Every variant is the loop's own step, from the same weights on the same
batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5
"""Largest difference in fp32: of the loss relative to max(1, |loss|), of a gradient to max(1, the largest |gradient| of
the whole model)."""
SCALE_TOLERANCE = 1e-3
"""Largest difference relative to the largest gradient of the model alone: where all gradients are small, a wrong
factor would hide under :data:`TOLERANCE`."""

FINDINGS = "findings.json"
"""The file that the workers of one start leave in the request's directory."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of computing the same gradient."""

    name: str
    ranks: int = 1
    zero_stage: int = 0
    strategy: str = "direct"
    plain: bool = False
    """Whether this is the reference, computed without the loop's step and without DeepSpeed."""
    tiles: bool = False
    """Whether the loss compares a few rows at a time; the reference compares all at once."""
    dropout: bool = False
    """Whether dropout is on as configured, or 0. Masks depend on the chunk, so chunks must then be equal."""
    against: str = "reference"
    """Name of the variant that this one has to agree with; its own name for one that others are compared with."""

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with this one."""
        return self.against == self.name


@dataclass(frozen=True, slots=True)
class Finding:
    """The measurements of a variant by a worker, over all batches."""

    variant: str
    against: str
    loss: float
    """The loss, as a mean over the batches."""
    loss_difference: float
    """The largest difference over batches and ranks, relative to max(1, |loss|)."""
    gradient_difference: float
    """The largest difference over batches and parameters, relative to max(1, largest |gradient| of the batch)."""
    scaled_difference: float
    """The same difference, relative to the largest |gradient| of the batch."""
    worst_parameter: str
    """The parameter whose gradient differs most; empty where none differs."""
    chunks: int
    """Chunks of rank 0 in the first batch."""
    random: bool
    """Whether dropout was at work."""

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with this one."""
        return self.against == self.variant

    @property
    def passed(self) -> bool:
        """Whether all differences are within their tolerances. A NaN is not."""
        within = self.loss_difference <= TOLERANCE and self.gradient_difference <= TOLERANCE
        return within and self.scaled_difference <= SCALE_TOLERANCE


def variants_of(ranks: int) -> list[list[Variant]]:
    """The variants, one list per start of the workers: one rank first, which writes the reference."""
    alone = [
        Variant("reference", plain=True),
        Variant("1 rank, ZeRO 0, direct"),
        Variant("1 rank, ZeRO 0, cached", strategy="cached"),
        Variant("1 rank, ZeRO 0, direct, loss in tiles", tiles=True),
    ]
    stages = (1, 2, 3) if ranks == 1 else (0, 1, 2, 3)
    several = [
        Variant(f"{_ranks(ranks)}, ZeRO {stage}, {strategy}", ranks, stage, strategy)
        for strategy in ("direct", "cached")
        for stage in stages
    ]
    if ranks == 1:
        return [[*alone, *several, *_with_dropout(1)]]
    return [[*alone, *_with_dropout(1)], [*several, *_with_dropout(ranks)]]


def _with_dropout(ranks: int) -> list[Variant]:
    direct = f"{_ranks(ranks)}, ZeRO 0, direct, dropout on"
    return [
        Variant(direct, ranks, dropout=True, against=direct),
        Variant(f"{_ranks(ranks)}, ZeRO 0, cached, dropout on", ranks, strategy="cached", dropout=True, against=direct),
    ]


def _ranks(count: int) -> str:
    return f"{count} rank" if count == 1 else f"{count} ranks"


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """The task of one start of the workers, which is passed as a file."""

    config: dict[str, Any]
    """The resolved run as plain data, its ``plugins`` included."""
    variants: tuple[Variant, ...]
    batches: int
    """First batches of the run that are compared."""
    directory: str
    """The directory for references between starts, and for findings."""

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> MeasureRequest:
        """Read it from a JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        variants = tuple(Variant(**variant) for variant in content.pop("variants"))
        return cls(variants=variants, **content)


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps([asdict(finding) for finding in findings]), encoding="utf-8")


def read_findings(path: Path) -> list[Finding]:
    """Read it from a JSON file."""
    return [Finding(**finding) for finding in json.loads(path.read_text(encoding="utf-8"))]
