"""Configs of the core's losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import LossConfig, Section

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.losses.infonce import InfoNCE


class MaskConfig(Section):
    """Which passages must not serve as a query's negatives, because they probably answer it.

    The query's own positive always stays; a masked passage leaves that query's softmax.
    """

    same_text: bool = True
    """Passages whose text is a known positive of the query, or of another row of the batch with the same query text."""
    same_id: bool = True
    """Mask passages whose external document id is that of a known positive, where they have one."""
    margin: float | None = None
    """Passages scoring above the query's own positive + margin (units of similarity, before the temperature; no
    gradient through the comparison); None = off. Negative is stricter: -0.05 masks all within 0.05 of the positive."""


class InfoNCEConfig(LossConfig):
    """Contrastive cross-entropy on dense vectors: each query must find its positive among the batch's passages.

    InfoNCE (van den Oord et al. 2018) with in-batch and hard negatives. The similarity is the dot product, so the
    cosine for models that normalise, as the defaults expect.
    """

    kind: Literal["infonce"] = "infonce"
    temperature: float = Field(default=0.02, gt=0)
    """Similarities are divided by it: 0.02 as BGE and GTE, 0.05 is sentence-transformers' usual scale of 20."""
    in_batch: bool = True
    """Passages of other rows are negatives too; False = only the row's own hard negatives are."""
    symmetric: bool = False
    """Average with the opposite direction: each positive must find its query among the batch's queries (CLIP, GTE)."""
    mask: MaskConfig = MaskConfig()

    @model_validator(mode="after")
    def _opposite_direction_needs_other_rows(self) -> Self:
        if self.symmetric and not self.in_batch:
            raise ValueError(
                "symmetric: true compares with the queries of other rows: set in_batch: true or symmetric: false"
            )
        return self

    def build(self, context: BuildContext) -> InfoNCE:
        """The loss; it has no parameters."""
        from embed_core.losses.infonce import InfoNCE

        return InfoNCE(self)
