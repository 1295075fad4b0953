"""The exported directory, cut by sentence-transformers; what its files say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import CheckpointError
from embed_core.export.model_card import RunCard
from embed_core.models.transformers_encoder.config import TransformersEncoderConfig
from embed_core.models.transformers_encoder.model import TransformersEncoder
from embed_core.testing import check_checkpointer, encode, sample_card
from embed_mrl.checkpoint import MatryoshkaCheckpointer
from embed_mrl.config import MatryoshkaCheckpointConfig

CONTEXT = BuildContext(registry=Registry(), announce=lambda line: None)


def export(model: TransformersEncoder, directory: Path, card: RunCard | None = None, **options: Any) -> Path:
    directory.mkdir()
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    MatryoshkaCheckpointConfig(**options).build(CONTEXT).export(model, state, directory, card or sample_card())
    return directory


def measured() -> RunCard:
    figures = {f"held-out/dense@{dim}/{p}/nDCG@10": dim / 100 for dim in (32, 16) for p in ("fp32", "int8", "binary")}
    return replace(sample_card(), evaluations={0: dict.fromkeys(figures, 0.0), 8: figures})


@pytest.mark.parametrize("dim", [32, 16, 8])
def test_sentence_transformers_gives_the_cut_vectors(
    model: TransformersEncoder, texts: list[str], tmp_path: Path, dim: int
) -> None:
    from sentence_transformers import SentenceTransformer

    directory = export(model, tmp_path / "out", dims=(16, 8))
    loaded = SentenceTransformer(str(directory), device="cpu", truncate_dim=dim)
    found = loaded.encode(texts, prompt_name="document", normalize_embeddings=True)
    wanted = normalize(encode(model, texts, "passage").dense_ND[:, :dim], dim=-1).numpy()
    assert found.shape == (3, dim)
    assert np.abs(found - wanted).max() < 1e-5
    # By the model's own similarity the lengths do not matter.
    queries = loaded.encode(texts, prompt_name="query")
    similarity = loaded.similarity(queries, loaded.encode(texts, prompt_name="document"))
    cut = normalize(encode(model, texts, "query").dense_ND[:, :dim], dim=-1)
    assert torch.allclose(similarity, cut @ torch.tensor(wanted).T, atol=1e-5)


def test_truncate_dim_is_what_a_plain_load_gives(model: TransformersEncoder, texts: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    directory = export(model, tmp_path / "out", dims=(16, 8), truncate_dim=16)
    loaded = SentenceTransformer(str(directory), device="cpu")
    assert loaded.truncate_dim == 16
    assert loaded.encode(texts).shape == (3, 16)
    assert SentenceTransformer(str(directory), device="cpu", truncate_dim=8).encode(texts).shape == (3, 8)


def test_the_inner_layout_keeps_its_promises(model: TransformersEncoder, texts: list[str], tmp_path: Path) -> None:
    config = MatryoshkaCheckpointConfig(dims=(16,), truncate_dim=16)

    def load(directory: Path) -> Any:
        settings = {"name_or_path": str(directory), "query_max_length": 64, "passage_max_length": 64}
        return TransformersEncoderConfig.model_validate(settings).build(CONTEXT)

    check_checkpointer(config.build(CONTEXT), model, load, texts, tmp_path / "out")


def test_the_files_name_the_dimensions(model: TransformersEncoder, tmp_path: Path) -> None:
    directory = export(model, tmp_path / "out", measured(), dims=(16, 8), truncate_dim=16)
    assert json.loads((directory / "config.json").read_text())["matryoshka_dimensions"] == [32, 16, 8]
    readme = (directory / "README.md").read_text()
    assert readme.startswith("---\n"), "the inner layout's card comes first"
    section = readme[readme.index("## Dimensions") :]
    assert "to 32, 16, 8:" in section
    assert "cuts to 16 unless" in section
    assert "truncate_dim=16" in section
    assert "| 16 | int8 | 16 | 0.1600 | 50.0% |" in section
    without = export(model, tmp_path / "without")
    assert json.loads((without / "config.json").read_text())["matryoshka_dimensions"] == [32, 16]
    assert "truncate_dim" not in json.loads((without / "config_sentence_transformers.json").read_text())
    section = (without / "README.md").read_text().split("## Dimensions")[1]
    assert "size against quality" not in section
    assert "unless" not in section


def test_the_card_shows_the_plot(model: TransformersEncoder, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    directory = export(model, tmp_path / "out", measured())
    assert "![quality against bytes per vector](dimensions.png)" in (directory / "README.md").read_text()
    assert (directory / "dimensions.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_does_without_matplotlib(
    model: TransformersEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    directory = export(model, tmp_path / "out", measured())
    assert "| 16 | int8 |" in (directory / "README.md").read_text()
    assert "dimensions.png" not in (directory / "README.md").read_text()


class BareLayout:
    """Another plugin's, without sentence-transformers' files."""

    def export(self, model: nn.Module, state: Any, directory: Path, card: RunCard) -> None:
        (directory / "weights.safetensors").touch()


def bare(directory: Path, **options: Any) -> Path:
    from embed_mrl.checkpoint import MatryoshkaCheckpointer

    directory.mkdir()
    config = MatryoshkaCheckpointConfig(**options)
    MatryoshkaCheckpointer(config, BareLayout()).export(nn.Module(), {}, directory, sample_card())
    return directory


def test_a_layout_of_its_own_gets_the_section(tmp_path: Path) -> None:
    assert "to 16, 8:" in (bare(tmp_path / "named", dims=(8, 16)) / "README.md").read_text()
    assert "those of the training config" in (bare(tmp_path / "unknown") / "README.md").read_text()
    with pytest.raises(
        CheckpointError, match=r"truncate_dim 8: the layout 'transformers' has no config_sentence_transf"
    ):
        bare(tmp_path / "cut", truncate_dim=8)


def test_dimensions_that_the_model_has_not(model: TransformersEncoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint.dims: 64 is more than the 32 dimensions"):
        export(model, tmp_path / "wide", dims=(64, 16))
    with pytest.raises(
        CheckpointError, match=r"checkpoint.truncate_dim 24 is no dimension of the model: one of \[32, 16\]"
    ):
        export(model, tmp_path / "odd", truncate_dim=24)


def test_a_projection_says_how_wide_the_vectors_are(tmp_path: Path) -> None:
    """Of a student with Dense modules after its pooling the last one counts."""

    class Projected:
        def export(self, model: Any, state: Any, directory: Path, card: RunCard) -> None:
            modules = [
                {"path": "", "type": "Transformer"},
                {"path": "1_Pooling", "type": "Pooling"},
                {"path": "2_Dense", "type": "Dense"},
                {"path": "3_Normalize", "type": "Normalize"},
            ]
            files: dict[str, Any] = {"modules.json": modules, "config.json": {"model_type": "bert"}, "README.md": ""}
            files["1_Pooling/config.json"] = {"word_embedding_dimension": 32}
            files["2_Dense/config.json"] = {"in_features": 32, "out_features": 96}
            for name, content in files.items():
                (directory / name).parent.mkdir(exist_ok=True)
                (directory / name).write_text(json.dumps(content))

    config = MatryoshkaCheckpointConfig(dims=(64, 16))
    MatryoshkaCheckpointer(config, Projected()).export(nn.Module(), {}, tmp_path, sample_card())
    assert json.loads((tmp_path / "config.json").read_text())["matryoshka_dimensions"] == [96, 64, 16]
