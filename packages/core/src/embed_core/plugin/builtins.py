"""The core's own components, registered through the same hooks as anybody's."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.config.addons import AddOn
from embed_core.config.component import (
    CheckpointConfig,
    DatasetConfig,
    EvaluatorConfig,
    LossConfig,
    ModelConfig,
    SamplerConfig,
)
from embed_core.plugin.hookspecs import hookimpl


@hookimpl
def embed_register_models() -> Sequence[type[ModelConfig]]:
    """``lora``: low-rank adapters around a model of any kind; ``transformers-encoder``: any encoder, pooled."""
    from embed_core.models.lora.config import LoraModelConfig
    from embed_core.models.transformers_encoder.config import TransformersEncoderConfig

    return [LoraModelConfig, TransformersEncoderConfig]


@hookimpl
def embed_register_losses() -> Sequence[type[LossConfig]]:
    """``infonce``."""
    from embed_core.losses.config import InfoNCEConfig

    return [InfoNCEConfig]


@hookimpl
def embed_register_samplers() -> Sequence[type[SamplerConfig]]:
    """``shuffled``, ``no-duplicates``, ``by-source``."""
    from embed_core.samplers.config import BySourceConfig, NoDuplicatesConfig, ShuffledConfig

    return [ShuffledConfig, NoDuplicatesConfig, BySourceConfig]


@hookimpl
def embed_register_datasets() -> Sequence[type[DatasetConfig]]:
    """``retrieval``: a file or folder of query → passage rows."""
    from embed_core.datasets.config import RetrievalConfig

    return [RetrievalConfig]


@hookimpl
def embed_register_checkpoints() -> Sequence[type[CheckpointConfig]]:
    """``transformers``: a transformers directory with sentence-transformers module files."""
    from embed_core.export.config import TransformersCheckpointConfig

    return [TransformersCheckpointConfig]


@hookimpl
def embed_register_evaluators() -> Sequence[type[EvaluatorConfig]]:
    """``retrieval``: nDCG, MRR and Recall over a BEIR folder or the held-out split."""
    from embed_core.evaluation.config import RetrievalEvaluatorConfig

    return [RetrievalEvaluatorConfig]


@hookimpl
def embed_register_addons() -> Sequence[type[AddOn]]:
    """``lora``: adapters around the run's model."""
    from embed_core.models.lora.addon import LoraAddOn

    return [LoraAddOn]
