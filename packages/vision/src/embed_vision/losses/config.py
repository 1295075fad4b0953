"""Configs of the image-text losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import LossConfig
from embed_core.losses.config import MaskConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_vision.losses.clip import ClipLoss
    from embed_vision.losses.cosent import CoSENTLoss
    from embed_vision.losses.siglip import SiglipLoss
    from embed_vision.losses.triplet import TripletLoss


class ClipLossConfig(LossConfig):
    """Cross-entropy in both directions with a learned scale (CLIP, Radford et al. 2021).

    Each query has to find its positive among all passages of the batch, hard negatives included, and each positive its
    query among the queries.
    """

    kind: Literal["clip"] = "clip"
    temperature: float | None = Field(default=None, gt=0)
    """Divisor of the similarities at the start; None = the model's own (``logit_scale``), else CLIP's 0.07."""
    learnable: bool = True
    """Train the scale; False keeps its start value."""
    max_scale: float = Field(default=100.0, gt=0)
    """Upper bound of the scale (1 / temperature), as in CLIP."""
    mask: MaskConfig = MaskConfig()
    """False negatives to mask: passages that answer the query too."""

    def build(self, context: BuildContext) -> ClipLoss:
        """The loss; its parameter ``logit_scale`` is the logarithm of the scale. Raises ConfigError for a start beyond
        ``max_scale``."""
        from embed_vision.losses.clip import ClipLoss
        from embed_vision.losses.start import start_of_clip

        return ClipLoss(self, start_of_clip(self, context.model))


class SiglipLossConfig(LossConfig):
    """A sigmoid for every query and passage: each is a pair or not, independent of the others (Zhai et al. 2023)."""

    kind: Literal["siglip"] = "siglip"
    scale: float | None = Field(default=None, gt=0)
    """Factor of the similarities at the start; None = the model's own (``logit_scale``), else 10."""
    bias: float | None = None
    """Bias of the logits at the start; None = the model's own (``logit_bias``), else -10."""
    learnable: bool = True
    """Train scale and bias; False keeps their start values."""
    mask: MaskConfig = MaskConfig()
    """Pairs to leave out because their label is unclear: another passage that answers the query too."""

    def build(self, context: BuildContext) -> SiglipLoss:
        """The loss; its parameters are ``logit_scale``, the logarithm of the scale, and ``logit_bias``."""
        from embed_vision.losses.siglip import SiglipLoss
        from embed_vision.losses.start import start_of_siglip

        return SiglipLoss(self, *start_of_siglip(self, context.model))


class TripletLossConfig(LossConfig):
    """The positive has to be nearer than each negative by a margin (Schroff et al. 2015; Hermans et al. 2017)."""

    kind: Literal["triplet"] = "triplet"
    distance: Literal["cosine", "euclidean", "manhattan"] = "cosine"
    """Distance of two vectors; ``cosine`` is 1 − the cosine, from 0 to 2."""
    margin: float = Field(default=0.5, gt=0)
    """Required difference of the distances (sentence-transformers' default is 5, euclidean)."""
    negatives: Literal["all", "hardest"] = "all"
    """Which of a row's own hard negatives count: the mean over all, or only the nearest one."""
    in_batch: bool = True
    """A row without hard negatives uses the nearest passage of the other rows that does not answer it. False = such
    rows add nothing."""
    mask: MaskConfig = MaskConfig()
    """False negatives to mask: passages that answer the query too."""

    def build(self, context: BuildContext) -> TripletLoss:
        """The loss; it has no parameters."""
        from embed_vision.losses.triplet import TripletLoss

        return TripletLoss(self)


class CoSENTLossConfig(LossConfig):
    """The cosines of pairs have to be in the order of their labels (CoSENT, Huang et al. 2024).

    The label of a pair is its score where the data has scores, else 1 for a positive and 0 for a negative.
    """

    kind: Literal["cosent"] = "cosent"
    scale: float = Field(default=20.0, gt=0)
    """Factor of the cosines."""
    in_batch: bool = True
    """In a batch without scores and without hard negatives, each query's negatives are the passages of other rows.
    False = there is then nothing to order, and the loss is 0."""
    mask: MaskConfig = MaskConfig()
    """False negatives to mask: passages that answer the query too."""

    def build(self, context: BuildContext) -> CoSENTLoss:
        """The loss; it has no parameters."""
        from embed_vision.losses.cosent import CoSENTLoss

        return CoSENTLoss(self)
