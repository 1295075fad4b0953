"""One rank of `embed prove`, ``python -m embed_core.inspection.prove.worker REQUEST``: measures the variants."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from embed_core.config.document import Document
from embed_core.config.resolve import Request, resolve
from embed_core.distributed.process_group import Ranks, is_lost_rank, join, leave
from embed_core.errors import EmbedError
from embed_core.inspection.parts import Parts
from embed_core.inspection.prove.methods import AutogradMethod, EngineMethod, Method, without_dropout
from embed_core.inspection.prove.variants import FINDINGS, Finding, MeasureRequest, Variant, write_findings
from embed_core.losses.tiled_cross_entropy import tiles_of
from embed_core.plugin.manager import activate
from embed_core.zero.engine import Trainable


@dataclass
class Measurement:
    """Losses and gradients of one variant, compared with a reference as they come, or kept as one."""

    variant: Variant
    directory: Path
    losses: list[float] = field(default_factory=list)
    loss_difference: float = 0.0
    gradient_difference: float = 0.0
    scaled_difference: float = 0.0
    worst_parameter: str = ""

    def keep(self, checksum: str, losses: list[list[float]], batch: int, way: Method, *, write: bool) -> None:
        """Write one batch of a reference. ``losses`` has each batch's on every rank."""
        from safetensors.torch import save_file

        full = {name: value.detach().float().cpu().clone() for name, value in way.gradients() if value is not None}
        if write:
            save_file(full, self._file(batch))
            facts = {"checksum": checksum, "losses": [ranks[0] for ranks in losses]}
            self._file(None).write_text(json.dumps(facts), encoding="utf-8")

    def check_weights(self, checksum: str) -> None:
        """Raises EmbedError where this variant did not start from the reference's weights."""
        if checksum != json.loads(self._file(None).read_text(encoding="utf-8"))["checksum"]:
            raise EmbedError(
                f"{self.variant.name}: the model's weights differ from those of {self.variant.against!r}: "
                "a model has to draw them from context.seed alone"
            )

    def compare(self, batch: int, losses: list[float], way: Method) -> None:
        """Compare one batch, on rank 0; the gradients come one by one, so that memory holds one of them."""
        from safetensors import safe_open

        wanted = json.loads(self._file(None).read_text(encoding="utf-8"))["losses"][batch]
        self.loss_difference = _larger(
            self.loss_difference, *(abs(found - wanted) / max(1.0, abs(wanted)) for found in losses)
        )
        with safe_open(self._file(batch), "pt") as reference:
            known = set(reference.keys())
            largest = max((_largest(reference.get_tensor(name)) for name in known), default=0.0)
            if not largest:
                raise EmbedError(
                    f"the gradient of batch {batch} is 0 everywhere: there is nothing to compare, train on other data "
                    "or with another loss"
                )
            for name, found in way.gradients():
                other = reference.get_tensor(name) if name in known else None
                self._compare_parameter(name, found, other, largest)

    def _compare_parameter(self, name: str, found: Tensor | None, wanted: Tensor | None, largest: float) -> None:
        # A parameter that no loss reaches has no gradient at stage 0 and zeros at stage 3: the same thing.
        if found is None:
            difference = 0.0 if wanted is None else _largest(wanted)
        else:
            own = found.detach().float().cpu()
            difference = _largest(own if wanted is None else own.view_as(wanted) - wanted)
        # Rounding comes down to every parameter from the same few layers at the top: the model's scale is its measure.
        if not difference / largest <= self.scaled_difference:
            self.worst_parameter = name
        self.gradient_difference = _larger(self.gradient_difference, difference / max(1.0, largest))
        self.scaled_difference = _larger(self.scaled_difference, difference / largest)

    def _file(self, batch: int | None) -> Path:
        slug = "".join(c if c.isalnum() else "-" for c in self.variant.against)
        return self.directory / (f"{slug}.json" if batch is None else f"{slug}.{batch}.safetensors")


def _largest(value: Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _larger(*numbers: float) -> float:
    """The largest number, or NaN where one of them is NaN, which ``max`` could lose."""
    return next((n for n in numbers if n != n), max(numbers))


def checksum_of(module: nn.Module) -> str:
    """Checksum of all weights and buffers with their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _tile(variant: Variant, rows: int) -> int | None:
    """Bytes of a tile of similarities for a batch of ``rows``: one tile for all in the reference, and a sixteenth of
    queries × positives in the variant that tests tiles; ``None`` leaves the default."""
    if variant.plain:
        return 2**60
    return 4 * max(1, rows * rows // 16) if variant.tiles else None


def measure(variant: Variant, request: MeasureRequest, parts: Parts, ranks: Ranks) -> Finding:
    """One variant over the first batches, from weights of its own. All ranks take part; rank 0's answer counts."""
    loss = parts.loss()
    module = Trainable(parts.model(), loss)
    module.train()
    checksum = checksum_of(module)
    if not variant.dropout:
        without_dropout(module)
    way: Method = (
        AutogradMethod(parts, module, ranks, loss)
        if variant.plain
        else EngineMethod(parts, module, ranks, loss, variant)
    )
    found = Measurement(variant, Path(request.directory))
    if not variant.is_reference:
        found.check_weights(checksum)
    losses: list[list[float]] = []
    for batch in range(request.batches):
        with tiles_of(_tile(variant, parts.config.sampler.batch_size)):
            losses.append(ranks.gather(way.measure(batch)))
        if variant.is_reference:
            found.keep(checksum, losses, batch, way, write=ranks.rank == 0)
            ranks.barrier()
        else:
            found.compare(batch, losses[-1], way)
        way.clear()
    return Finding(
        variant=variant.name,
        against=variant.against,
        loss=sum(each[0] for each in losses) / len(losses),
        loss_difference=found.loss_difference,
        gradient_difference=found.gradient_difference,
        scaled_difference=found.scaled_difference,
        worst_parameter=found.worst_parameter,
        chunks=way.chunks,
        random=way.random,
    )


def run(request: MeasureRequest) -> None:
    """Measure the variants of one start, one after another, and write the findings."""
    _, registry = activate(request.config["plugins"])
    config = resolve(registry, Request(None, Document(data=request.config)))
    ranks = join(config.engine.device)
    try:
        parts = Parts(config, registry, ranks)
        findings = [measure(variant, request, parts, ranks) for variant in request.variants]
        if ranks.rank == 0:
            write_findings(findings, Path(request.directory) / FINDINGS)
    finally:
        leave()


def main(path: str) -> None:
    """User errors are one line each and exit code 2, as of any rank that the command starts."""
    try:
        run(MeasureRequest.read(Path(path)))
    except EmbedError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not is_lost_rank(error):
            raise
        print(f"a rank stopped: another one stopped before it ({error})", file=sys.stderr)
        sys.exit(os.EX_PROTOCOL)


if __name__ == "__main__":
    main(sys.argv[1])
