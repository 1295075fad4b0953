"""Configs of the losses: ms-swift's four, and the InfoNCE of the Qwen3-Embedding paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import LossConfig
from embed_core.losses.config import MaskConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_qwen.losses.qwen3_infonce import Qwen3InfoNCE
    from embed_qwen.losses.swift_infonce import SwiftInfoNCE
    from embed_qwen.losses.swift_pairs import SwiftPairs


class SwiftInfoNCEConfig(LossConfig):
    """ms-swift's ``infonce``, computed by its own code; the options are its environment variables, typed."""

    kind: Literal["swift-infonce"] = "swift-infonce"
    temperature: float = Field(default=0.1, gt=0)
    """Similarities are divided by it (``INFONCE_TEMPERATURE``)."""
    use_batch: bool = True
    """Passages of other rows on all ranks are negatives too (``INFONCE_USE_BATCH``); False = the row's own group."""
    hard_negatives: int | None = Field(default=None, gt=0)
    """Negatives per row: surplus ones are left out, missing ones are drawn again, and every row must have one
    (``INFONCE_HARD_NEGATIVES``). None = as many as each row has."""
    mask_fake_negative: bool = False
    """Leave out passages that score above the positive by ``fake_neg_margin`` (``INFONCE_MASK_FAKE_NEGATIVE``)."""
    fake_neg_margin: float = 0.1
    """The margin in units of similarity (``INFONCE_FAKE_NEG_MARGIN``)."""
    include_qq: bool = False
    """Other rows' queries are negatives of a query (``INFONCE_INCLUDE_QQ``); with ``use_batch`` only."""
    include_dd: bool = False
    """Other passages are negatives of a positive (``INFONCE_INCLUDE_DD``); with ``use_batch`` only."""

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Self:
        given = [name for name in ("mask_fake_negative", "include_qq", "include_dd") if getattr(self, name)]
        if given and not self.use_batch:
            raise ValueError(f"{given[0]}: true is not read by ms-swift with use_batch: false: turn one of them round")
        return self

    def build(self, context: BuildContext) -> SwiftInfoNCE:
        """The loss; it has no parameters. Raises PluginError without a fit ms-swift."""
        from embed_qwen.losses.swift_infonce import SwiftInfoNCE

        return SwiftInfoNCE(self)


class SwiftPairsConfig(LossConfig):
    """Base of ms-swift's losses over pairs: each query with every passage of its group."""

    labels: Literal["relevance", "scores"] = "relevance"
    """``relevance``: labels are 1 for the positive and 0 for hard negatives; ``scores``: those of the data (`label` of
    ms-swift's rows, `pos_scores`), which every passage must have: on the scale of a cosine for ``cosine_similarity``,
    from 0 to 1 for ``contrastive``, 0 or 1 for ``online_contrastive``."""

    def build(self, context: BuildContext) -> SwiftPairs:
        """The loss; it has no parameters. Raises PluginError without a fit ms-swift."""
        from embed_qwen.losses.swift_pairs import SwiftPairs

        return SwiftPairs(self.kind.removeprefix("swift-").replace("-", "_"), self.labels)


class SwiftCosineSimilarityConfig(SwiftPairsConfig):
    """ms-swift's ``cosine_similarity``: the squared difference between a pair's cosine and its label, averaged."""

    kind: Literal["swift-cosine-similarity"] = "swift-cosine-similarity"


class SwiftContrastiveConfig(SwiftPairsConfig):
    """ms-swift's ``contrastive`` (Hadsell et al. 2006): positives are pulled together, hard negatives pushed to a
    cosine distance of 0.5, averaged over the pairs. Rows without hard negatives only pull."""

    kind: Literal["swift-contrastive"] = "swift-contrastive"


class SwiftOnlineContrastiveConfig(SwiftPairsConfig):
    """ms-swift's ``online_contrastive``: sums over the batch's positives further apart than the closest negative, and
    its negatives closer than the furthest positive. It is a sum, so larger batches have larger losses."""

    kind: Literal["swift-online-contrastive"] = "swift-online-contrastive"


class Qwen3InfoNCEConfig(LossConfig):
    """The contrastive loss of Qwen3-Embedding (arXiv 2506.05176): passages and the queries of other rows compete."""

    kind: Literal["qwen3-infonce"] = "qwen3-infonce"
    temperature: float = Field(default=0.02, gt=0)
    """Similarities are divided by it."""
    in_batch: bool = True
    """Other rows take part; False = each query finds its positive in its own group only."""
    hard_negatives: Literal["batch", "own"] = "batch"
    """Which hard negatives compete, besides the positives of all rows: those of all rows, or the row's own."""
    query_query: bool = True
    """Other rows' queries are negatives of a query."""
    document_document: bool = True
    """The passages that compete for a query are negatives of its positive too; no margin applies between passages."""
    positives: Literal["drawn", "known"] = "drawn"
    """``known``: every known positive of a query that is in the batch counts, and the row's loss is their mean;
    ``drawn``: the first passage of its group does, and the mask leaves the others out."""
    mask: MaskConfig = MaskConfig(margin=0.1)
    """False negatives that do not compete: texts equal to a positive by text or id (the paper's equal documents), also
    between rows of the same positive; and texts that score above the positive by more than the margin."""

    @model_validator(mode="after")
    def _terms_have_rows(self) -> Self:
        given = [name for name in ("query_query", "document_document") if getattr(self, name)]
        if given and not self.in_batch:
            raise ValueError(
                f"{given[0]}: true compares with other rows: set in_batch: true, or {' and '.join(given)} to false"
            )
        if self.positives == "known" and not (self.mask.same_text or self.mask.same_id):
            raise ValueError("positives: known needs mask.same_text or mask.same_id, by which positives are known")
        return self

    def build(self, context: BuildContext) -> Qwen3InfoNCE:
        """The loss; it has no parameters."""
        from embed_qwen.losses.qwen3_infonce import Qwen3InfoNCE

        return Qwen3InfoNCE(self)
