"""Retrieval in both directions, the loss on validation rows, and the picture of what is found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from embed_core.config.context import BuildContext
from embed_core.errors import ConfigError, DataError
from embed_core.events import RunEvent
from embed_core.plugin.manager import activate
from embed_core.testing.components import build
from embed_core.types import Embeddings, RetrievalSet
from embed_vision.datasets.config import PicturesConfig
from embed_vision.datasets.dataset import ImageTextDataset
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.evaluation import gallery
from embed_vision.evaluation.gallery import Page, Sample, draw
from embed_vision.evaluation.validation import (
    ValidationLoss,
    encoded,
    held_out_rows,
    rows_of_dataset,
    targets_of,
    trained_loss,
)

torch.set_num_threads(1)


class Vectors:
    """An encoder that knows the vector of every item, as one of several ranks does."""

    scores: Mapping[str, Any] = {"dense": {"dense": 1.0}}

    def __init__(self, vectors: Mapping[Any, Tensor], others: Sequence[Any] = (), rank: int = 0) -> None:
        self.vectors, self.others, self.rank = vectors, others, rank
        self.world_size = 1 + len(others)
        self.encoded = 0

    def encode(self, items: Sequence[Any], role: str) -> Embeddings:
        self.encoded += len(items)
        return Embeddings(torch.stack([self.vectors[item] for item in items]))

    def gather(self, value: Any) -> list[Any]:
        return [value]


@pytest.fixture
def context(tmp_path: Path) -> BuildContext:
    return BuildContext(activate(["vision"])[1], cache_dir=tmp_path, announce=lambda line: None)


@pytest.fixture
def dataset(context: BuildContext) -> ImageTextDataset:
    return PicturesConfig(drawn="shapes", symbols=5, renderings=2, size=16, held_out_rows=10).build(context)


@pytest.fixture
def held_out(dataset: ImageTextDataset) -> RetrievalSet:
    found = dataset.held_out()
    assert found is not None
    return found


def random_vectors(data: RetrievalSet, seed: int = 0) -> dict[Any, Tensor]:
    items = [*data.queries.values(), *data.corpus.values()]
    table = torch.randn(len(items), 6, generator=torch.Generator().manual_seed(seed))
    return dict(zip(items, nn.functional.normalize(table, dim=-1), strict=True))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_recall_in_both_directions(
    context: BuildContext, dataset: ImageTextDataset, held_out: RetrievalSet, direction: str
) -> None:
    options = {"kind": "image-text-retrieval", "direction": direction, "name": "x"}
    evaluator = build(context.registry, "evaluator", options, context, dataset)
    vectors = random_vectors(held_out)
    metrics = evaluator.evaluate(Vectors(vectors))
    asked, found = (
        (held_out.queries, held_out.corpus) if direction == "forward" else (held_out.corpus, held_out.queries)
    )
    pairs = {(q, d) for q, judged in held_out.qrels.items() for d in judged}
    pairs = pairs if direction == "forward" else {(d, q) for q, d in pairs}
    ranks = []
    for query, item in asked.items():
        order = sorted(found, key=lambda key: float(-(vectors[item] @ vectors[found[key]])))
        ranks.append(next(place for place, key in enumerate(order) if (query, key) in pairs))
    assert metrics["dense/Recall@1"] == pytest.approx(np.mean([rank < 1 for rank in ranks]))
    assert metrics["dense/Recall@5"] == pytest.approx(np.mean([rank < 5 for rank in ranks]))
    assert metrics["dense/MRR@10"] == pytest.approx(np.mean([1 / (1 + rank) for rank in ranks]))
    assert metrics["dense/nDCG@10"] == pytest.approx(np.mean([1 / np.log2(2 + rank) for rank in ranks]))


def test_rows_of_their_own(context: BuildContext, dataset: ImageTextDataset) -> None:
    """``data``: all of its rows are what is evaluated on."""
    data = {"kind": "pictures", "drawn": "shapes", "symbols": 3, "renderings": 4, "size": 16, "held_out_rows": 0}
    options = {"kind": "image-text-retrieval", "data": data}
    evaluator = build(context.registry, "evaluator", options, context, dataset)
    assert len(evaluator.data.queries) == 12
    path = context.cache_dir / "rows.jsonl"
    path.write_text(json.dumps({"query": "x", "pos": ["y"]}))
    other = {"kind": "image-text-retrieval", "data": {"kind": "retrieval", "path": str(path)}}
    with pytest.raises(ConfigError, match=r"data of kind 'retrieval' are no image-text rows: use kind 'image-text'"):
        build(context.registry, "evaluator", other, context, dataset)


def test_nothing_to_evaluate_on(context: BuildContext) -> None:
    empty = PicturesConfig(drawn="shapes", symbols=3, renderings=2, size=16, held_out_rows=0).build(context)
    for options in ({"kind": "image-text-retrieval"}, {"kind": "validation-loss", "loss": {"kind": "clip"}}):
        with pytest.raises(ConfigError, match=r"'pictures' holds (no rows|none) out; set"):
            build(context.registry, "evaluator", options, context, empty)


class TestTheValidationLoss:
    def rows(self, context: BuildContext, count: int | None = None) -> list[Any]:
        data = PicturesConfig(drawn="shapes", symbols=5, renderings=3, size=16, held_out_rows=0).build(context)
        return rows_of_dataset(data, 0, count)

    def vectors(self, rows: list[Any]) -> dict[Any, Tensor]:
        items = list(dict.fromkeys([r.query for r in rows] + [p for r in rows for p in r.passages]))
        table = torch.randn(len(items), 6, generator=torch.Generator().manual_seed(1))
        return dict(zip(items, nn.functional.normalize(table, dim=-1), strict=True))

    def test_is_the_mean_over_batches(self, context: BuildContext) -> None:
        rows = self.rows(context)
        assert len(rows) == 15
        vectors, lines = self.vectors(rows), list[str]()
        loss = build(context.registry, "loss", {"kind": "clip", "temperature": 0.1}, context)
        metrics = ValidationLoss("v", rows, loss, 6, lines.append).evaluate(Vectors(vectors))
        expected = []
        for some in (rows[:6], rows[6:12]):
            queries = torch.stack([vectors[r.query] for r in some])
            logits = queries @ torch.stack([vectors[r.passages[0]] for r in some]).T / 0.1
            here = torch.arange(6)
            entropy = nn.functional.cross_entropy
            expected.append(float(entropy(logits, here) + entropy(logits.T, here)) / 2)
        assert metrics["loss/loss"] == pytest.approx(np.mean(expected), rel=1e-5)
        assert lines == ["evaluation 'v': 3 of 15 rows fill no batch and are left out"]
        assert {"loss/accuracy", "loss/scale"} <= metrics.keys()

    def test_targets_are_those_of_the_engine(self, context: BuildContext) -> None:
        """As the engine gathers them for a training batch, negatives, scores and known positives included."""
        from embed_core.batch.collate import make_host_batch
        from embed_core.batch.global_batch import GlobalBatch
        from embed_core.distributed.process_group import Ranks
        from embed_core.testing.tiny import TinyModel
        from embed_core.types import Example

        rows = [
            Example(0, "a", ("p0", "n0"), positives=("p0", "other"), passage_keys=("k0", None), positive_keys=("k0",)),
            Example(4, "b", ("p1",), scores=(0.5,)),
            Example(9, "a", ("p2", "n1", "n2")),
        ]
        mine, theirs = (
            targets_of(rows),
            GlobalBatch(make_host_batch(TinyModel(), rows), 0, Ranks(0, 1, 0, "cpu")).targets,
        )
        for name in theirs._fields:
            expected, found = getattr(theirs, name), getattr(mine, name)
            if isinstance(expected, Tensor):
                torch.testing.assert_close(found, expected, equal_nan=True, msg=name)
            else:
                assert found == expected, name

    def test_is_the_same_however_many_ranks_encode(self, context: BuildContext) -> None:
        rows = self.rows(context, 7)
        vectors = self.vectors(rows)
        loss = build(context.registry, "loss", {"kind": "siglip"}, context)
        alone = ValidationLoss("v", rows, loss, 7).evaluate(Vectors(vectors))

        class Together(Vectors):
            """Three ranks whose parts are known to each of them, as after a real gather."""

            def gather(self, value: Any) -> list[Any]:
                if not isinstance(value, tuple):
                    return [value]
                self.parts.append(value)
                return self.answers[len(self.parts) - 1] if self.answers else [value]

            def __init__(self, rank: int, answers: list[Any] | None = None) -> None:
                super().__init__(vectors, ("", ""), rank)
                self.parts: list[Any] = []
                self.answers = answers

        first = [Together(rank) for rank in range(3)]
        for encoder in first:
            for items, role in (([r.query for r in rows], "query"), ([r.passages[0] for r in rows], "passage")):
                encoder.parts.clear() if role == "query" else None
                encoded(items, role, encoder)  # type: ignore[arg-type]
        answers = [[encoder.parts[n] for encoder in first] for n in range(2)]
        for rank in range(3):
            together = Together(rank, answers)
            metrics = ValidationLoss("v", rows, loss, 7).evaluate(together)
            assert together.encoded < 2 * 7
            assert metrics == pytest.approx(alone, rel=1e-6)

    def test_takes_the_loss_that_is_trained(self, context: BuildContext) -> None:
        """A scale that has been learned counts, not the one of the config."""
        loss = build(context.registry, "loss", {"kind": "clip"}, context)
        other = build(context.registry, "loss", {"kind": "siglip"}, context)
        encoder: Any = Vectors({})
        assert trained_loss(encoder, loss) is loss
        encoder.engine = type("Engine", (), {"module": type("Module", (), {"loss": loss})})
        own = build(context.registry, "loss", {"kind": "clip", "temperature": 0.5}, context)
        assert trained_loss(encoder, own) is loss
        encoder.engine.module.loss = nn.ModuleDict({"inner": loss})  # as another loss has it inside
        assert trained_loss(encoder, own) is loss
        assert trained_loss(encoder, other) is other

    def test_the_rows_held_out(self, held_out: RetrievalSet) -> None:
        rows = held_out_rows(held_out, 4)
        assert len(rows) == 4
        for row in rows:
            key = next(k for k, item in held_out.queries.items() if item == row.query)
            assert row.passages[0] in [held_out.corpus[d] for d in held_out.qrels[key]]
        assert rows == held_out_rows(held_out, None)[:4]

    def test_no_rows(self) -> None:
        with pytest.raises(DataError, match=r"evaluation 'v': no rows to compute a loss on"):
            ValidationLoss("v", [], nn.Identity(), 4)


class TestTheGallery:
    def run_ended(self, path: Path, **more: Any) -> None:
        gallery.write_albums(
            RunEvent(**{"rank": 0, "output_dir": path, "steps": 1, "error": None, "export_dir": path, **more})
        )

    def evaluate(self, context: BuildContext, dataset: ImageTextDataset, held_out: RetrievalSet) -> None:
        options = {"kind": "image-text-retrieval", "name": "x", "gallery": 3, "measures": ("R@1",), "gallery_depth": 4}
        evaluator = build(context.registry, "evaluator", options, context, dataset)
        for seed in (1, 2, 3):
            evaluator.evaluate(Vectors(random_vectors(held_out, seed)))

    def test_is_written_at_the_end_of_the_run(
        self, context: BuildContext, dataset: ImageTextDataset, held_out: RetrievalSet, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        self.evaluate(context, dataset, held_out)
        self.run_ended(tmp_path)
        image = Image.open(tmp_path / "gallery-x.png")
        assert image.size == (2 * 120 + 16 + 2 * (4 * 120 + 16), 2 * 26 + 3 * 120 + 8)
        assert f"gallery: {tmp_path / 'gallery-x.png'}" in capsys.readouterr().out
        (tmp_path / "gallery-x.png").unlink()
        self.run_ended(tmp_path)
        assert not (tmp_path / "gallery-x.png").exists()

    @pytest.mark.parametrize("more", [{"rank": 1}, {"error": RuntimeError("x")}])
    def test_not_by_other_ranks_and_not_after_a_failure(
        self, context: BuildContext, dataset: ImageTextDataset, held_out: RetrievalSet, tmp_path: Path, more: Any
    ) -> None:
        self.evaluate(context, dataset, held_out)
        self.run_ended(tmp_path, **more)
        self.run_ended(tmp_path)
        assert not list(tmp_path.glob("gallery*"))

    def test_a_folder_that_cannot_be_written_is_said(
        self, context: BuildContext, dataset: ImageTextDataset, held_out: RetrievalSet, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        self.evaluate(context, dataset, held_out)
        self.run_ended(tmp_path / "nowhere")
        assert "the gallery of x could not be drawn" in capsys.readouterr().out

    def test_relevant_results_are_framed(self, held_out: RetrievalSet) -> None:
        """The first result of the first sample is right after training, and was wrong before."""
        pictures = list(held_out.corpus.values())
        pages = [
            Page({"dense/R@1": value}, [Sample(Mixed("what is it?", pictures[0]), "a ring", [(pictures[1], right)])])
            for value, right in ((0.0, False), (0.5, True), (1.0, True))
        ]
        image = np.asarray(draw(pages))
        top, before, after = 2 * 26, 2 * 120 + 16, 2 * 120 + 16 + 120 + 16
        assert tuple(image[top, before]) == gallery.WRONG
        assert tuple(image[top, after]) == gallery.RIGHT
        assert draw(pages[:1]).width < image.shape[1]

    def test_texts_of_any_script_and_length(self) -> None:
        page = Page({}, [Sample("고양이 " * 40, Picture(None, _png()), [("", True), ("wort" * 50, False)])])
        assert draw([page]).height > 100


def _png() -> bytes:
    from io import BytesIO

    out = BytesIO()
    Image.new("RGB", (3, 40)).save(out, "PNG")
    return out.getvalue()
