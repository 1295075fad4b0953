"""Runs a teacher: turns texts into vectors of unit length, without gradient, in chunks of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.config.context import BuildContext
    from embed_core.distributed.process_group import Ranks
    from embed_core.protocols import Model
    from embed_core.types import Encoded, Item, Role
    from embed_distill.teacher.config import TeacherConfig
    from embed_distill.teacher.fingerprint import Identity


class LocalTeacher:
    """A model in evaluation mode on its device. Raises CheckpointError and ConfigError where it cannot be used.

    Building it leaves torch's generator unchanged, so that a run behaves the same when all vectors are in the store and
    the teacher is never built.
    """

    def __init__(self, config: TeacherConfig, identity: Identity, context: BuildContext) -> None:
        from embed_core.acceleration.attention import set_attention
        from embed_core.acceleration.auto import resolve_auto
        from embed_core.config.run import EngineConfig
        from embed_core.models.from_scratch.encoder import seeded

        self.label = config.label
        self._ranks = _ranks(config, context)
        engine = EngineConfig(precision=config.dtype, token_budget=config.token_budget)
        self._engine = resolve_auto(engine, self._ranks)
        with seeded(context.seed):
            self._model: Model = identity.model.build(context)
        module: Any = self._model
        set_attention(module, self._engine, self._ranks)
        self._module = module.requires_grad_(False).to(device=self._ranks.device, dtype=self._dtype()).eval()

    def vectors(self, asked: Sequence[tuple[Item, Role]]) -> NDArray[np.float32]:
        """fp32 ``[N, W]`` of unit length, of items as queries or passages.

        Raises ConfigError for a model without dense vectors, and for a vector that is not finite.
        """
        import torch
        from torch.nn import functional

        from embed_core.batch.chunks import Chunks

        encoded = self._tokenized(asked)
        with torch.inference_mode():
            chunks = Chunks(encoded, self._model, self._engine, self._ranks)
            parts = [
                chunks.forward(self._module, number)._replace(sparse=None, multi=None) for number in range(len(chunks))
            ]
            if parts[0].dense_ND is None:
                raise ConfigError(f"teacher {self.label!r} has no dense vector: use a model that has one")
            dense_NW = chunks.in_order(parts).dense_ND
            assert dense_NW is not None
            found: NDArray[np.float32] = functional.normalize(dense_NW.float(), dim=-1).cpu().numpy()
        wrong_N = ~np.isfinite(found).all(axis=1)
        if wrong_N.any():
            text = str(asked[int(wrong_N.argmax())][0])[:60]
            raise ConfigError(
                f"teacher {self.label!r} gives a vector that is not finite, of {text!r}: compute it in dtype fp32"
            )
        return found

    def _tokenized(self, asked: Sequence[tuple[Item, Role]]) -> list[Encoded]:
        encoded: list[Any] = [None] * len(asked)
        roles: tuple[Role, ...] = ("query", "passage")
        for role in roles:
            places = [place for place, (_, of) in enumerate(asked) if of == role]
            if places:
                # None selects the teacher's own prompts: those of a row are for the student.
                made = self._model.tokenize([asked[place][0] for place in places], role, [None] * len(places))
                for place, one in zip(places, made, strict=True):
                    encoded[place] = one
        return encoded

    def _dtype(self) -> Any:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self._engine.precision]


def _ranks(config: TeacherConfig, context: BuildContext) -> Ranks:
    """This rank on the teacher's device. Raises ConfigError for CUDA where there is none."""
    import torch

    from embed_core.distributed.process_group import Ranks

    device = context.device
    if config.device == "cpu":
        device = "cpu"
    elif config.device == "cuda" and not device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError("teacher: device 'cuda' was asked for and no CUDA device is visible: use cpu or auto")
        device = f"cuda:{context.rank % torch.cuda.device_count()}"
    return Ranks(context.rank, context.world_size, 0, device)
