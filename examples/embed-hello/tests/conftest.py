"""The kit's fixtures, and one thread: the models are tiny."""

import torch

from embed_core.testing.fixtures import embed_context, embed_registry

__all__ = ["embed_context", "embed_registry"]

torch.set_num_threads(1)
