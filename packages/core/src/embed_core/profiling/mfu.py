"""Model FLOPs utilisation (MFU; Chowdhery et al. 2022, arXiv 2204.02311, appendix B): the share of the devices' peak
arithmetic that goes into the model. Padding, repeated forwards, waiting and everything else lower it."""

from __future__ import annotations

from torch import nn

from embed_core.distributed.process_group import Ranks
from embed_core.hardware.specs import peak_of
from embed_core.profiling.flops import cost_of
from embed_core.protocols import Announce


class MfuMeter:
    """FLOPs of a run's steps and the peak of its devices. Building it is a collective."""

    def __init__(self, model: nn.Module, precision: str, ranks: Ranks, announce: Announce) -> None:
        self._cost = cost_of(model)
        self.peak: float | None = None
        """Peak FLOP/s of all ranks' devices; ``None`` where that or the model's cost is not known."""
        if self._cost is None:
            return
        peak, measured = peak_of(ranks, precision)
        if measured and peak is not None:
            announce(
                f"peak {peak / 1e9:,.0f} GFLOP/s in {precision}, measured with matrix products on {ranks.device}: "
                "utilisation (MFU) is against it"
            )
        each = ranks.gather(peak)
        self.peak = None if None in each else sum(each)

    def flops(self, tokens: int, squared_lengths: int) -> float | None:
        """Model FLOPs of a step over ``tokens`` tokens in all; ``squared_lengths`` is the sum over its texts."""
        return None if self._cost is None else self._cost.training(tokens, squared_lengths)
