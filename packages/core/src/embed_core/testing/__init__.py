"""The contracts of :mod:`embed_core.protocols` as checks, for the tests of any plugin.

Each ``check_…`` raises AssertionError with one sentence that says what was promised and what was seen. Importing this
package imports torch. The fixtures go into a conftest:
``from embed_core.testing.fixtures import embed_context, embed_registry``.
"""

from embed_core.testing.batches import permuted, random_batch
from embed_core.testing.checkpoints import check_checkpointer, sample_card
from embed_core.testing.components import build, check_plugin
from embed_core.testing.datasets import RowsDataset, tiny_dataset
from embed_core.testing.losses import check_loss
from embed_core.testing.models import check_model, encode
from embed_core.testing.samplers import check_sampler

__all__ = [
    "RowsDataset",
    "build",
    "check_checkpointer",
    "check_loss",
    "check_model",
    "check_plugin",
    "check_sampler",
    "encode",
    "permuted",
    "random_batch",
    "sample_card",
    "tiny_dataset",
]
