"""The loss that knows which source a row is from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from embed_core.config.component import LossConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_data.mix.loss import BySourceLoss


class BySourceLossConfig(LossConfig):
    """Another loss with the `weight` and the `negative_strategy` that the sources of a `mix` have.

    Rows of `own-only` sources go to the loss `own_only`, without the other rows' passages, and their passages are not
    among the negatives of other rows.
    """

    kind: Literal["by-source"] = "by-source"
    inner: LossConfig
    """Of all rows of `in-batch` sources."""
    own_only: LossConfig | None = None
    """Of the rows of `own-only` sources: `{kind: infonce, in_batch: false}`; needed where there is such a source."""

    def build(self, context: BuildContext) -> BySourceLoss:
        """Looks at the run's dataset. Raises ConfigError where it is no mix, or has own-only sources without a loss."""
        from embed_data.mix.loss import build_loss

        return build_loss(self, context)
