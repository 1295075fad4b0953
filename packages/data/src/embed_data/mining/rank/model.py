"""Loads a registered model for mining: resolved as ``embed run`` does, with the weights that the user names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import ConfigError, did_you_mean
from embed_core.models.from_scratch import FROM_SCRATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_core.config.registry import Registry
    from embed_core.config.run import EngineConfig, RunConfig
    from embed_core.distributed.process_group import Ranks
    from embed_core.protocols import Announce, Model
    from embed_core.types import Embeddings, Role, ScoreWeights
    from embed_data.mining.request import ModelChoice

CONFIG, WEIGHTS = "config.yaml", "model"
"""Names of what a run leaves in its output directory."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The run config by which the model is built and run, and the registry of its plugins."""

    config: RunConfig
    registry: Registry


def resolve_model(choice: ModelChoice) -> Resolved:
    """Config and registry of the chosen model. Raises EmbedError for everything a user can fix."""
    from embed_cli.run_command import RunRequest, resolve

    saved, weights = _of_a_run(choice.path)
    config = choice.config or (str(saved) if saved is not None and not choice.plugins else None)
    if config is None and not choice.plugins:
        raise ConfigError(
            f"--model {choice.path!r} is no output of a run ({CONFIG} is not there): say which plugin reads it, "
            "with --plugin NAME"
        )
    named = [] if weights is None else [f"model.name_or_path={json.dumps(weights)}"]
    run, _, registry = resolve(RunRequest(choice.plugins, config, (*named, *choice.overrides)), 1)
    if getattr(run.model, "name_or_path", "") == FROM_SCRATCH:
        raise ConfigError(
            f"the model of --by dense is {FROM_SCRATCH!r}: random weights rank at random; name trained ones with "
            "--model DIRECTORY"
        )
    return Resolved(run, registry)


def _of_a_run(path: str | None) -> tuple[Path | None, str | None]:
    """The config saved with a run and its weights' directory; ``path`` is the run's output or its ``model``."""
    if path is None:
        return None, None
    folder = Path(path).expanduser()
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_dir():
        return folder / CONFIG, str(folder / WEIGHTS)
    if (folder / CONFIG).is_file():
        raise ConfigError(f"--model {path!r}: the run has no {WEIGHTS}/ yet: finish it with `embed run --resume`")
    if (folder.parent / CONFIG).is_file():
        return folder.parent / CONFIG, path
    return None, path


class TextEncoder:
    """A model used only to encode: in evaluation mode, on its device, in its precision, chunk by chunk."""

    def __init__(self, resolved: Resolved, ranks: Ranks, way: str | None, announce: Announce) -> None:
        from embed_core.acceleration.attention import set_attention
        from embed_core.acceleration.auto import resolve_auto
        from embed_core.train.build import build_context

        run = resolved.config
        self._engine: EngineConfig = resolve_auto(run.engine.model_copy(update={"zero_stage": 0}), ranks, announce)
        self._model: Model = run.model.build(build_context(run, resolved.registry, ranks, announce))
        self._ranks = ranks
        self.way, self.weights = _way(self._model.scores, way)
        module: Any = self._model
        self.digest = weights_digest(module, self._engine.precision)
        set_attention(module, self._engine, ranks)
        self._module = module.to(device=ranks.device, dtype=_dtype(self._engine.precision)).eval()

    def encode(self, texts: Sequence[str], role: Role, prompts: Sequence[str | None] | None = None) -> Embeddings:
        """Embeddings in fp32, in the order of ``texts``; only the kinds that the way of scoring needs."""
        import torch

        from embed_core.batch.chunks import Chunks
        from embed_core.embeddings import to_float32
        from embed_core.types import Embeddings

        encoded = self._model.tokenize(list(texts), role, prompts or [None] * len(texts))
        with torch.inference_mode():
            chunks = Chunks(encoded, self._model, self._engine, self._ranks)
            whole = chunks.in_order([chunks.forward(self._module, n) for n in range(len(chunks))])
        kept = {kind for kind, weight in self.weights.items() if weight}
        dense, sparse, multi = to_float32(whole)
        return Embeddings(
            dense if "dense" in kept else None, sparse if "sparse" in kept else None, multi if "multi" in kept else None
        )


def _way(ways: Any, wanted: str | None) -> tuple[str, ScoreWeights]:
    name = wanted or ("dense" if "dense" in ways else next(iter(ways)))
    if name not in ways:
        raise ConfigError(f"--way {name!r}: the model has no such way of scoring: {did_you_mean(name, ways)}")
    return name, ways[name]


def _dtype(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def weights_digest(module: Any, precision: str) -> str:
    """Digest of the weights themselves: another training into the same directory is another model."""
    import torch

    hasher = blake2b(precision.encode(), digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
