"""Files of image-text rows as a dataset: formats, broken pictures, held-out rows, caches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError, DataError
from embed_vision.datasets import checking
from embed_vision.datasets.config import ImageTextConfig
from embed_vision.datasets.dataset import ImageTextDataset, reversed_set
from embed_vision.datasets.items import Picture

Write = Callable[..., Path]


def png(number: int) -> bytes:
    out = BytesIO()
    Image.new("RGB", (6, 5), (number * 7 % 256, number // 36, 9)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write([row, …])`` → rows.jsonl beside twenty pictures, ``img/0.png`` to ``img/19.png``."""
    (tmp_path / "img").mkdir()
    for n in range(20):
        (tmp_path / "img" / f"{n}.png").write_bytes(png(n))

    def go(rows: list[dict[str, Any]] | None = None) -> Path:
        rows = rows or [{"query": f"picture {n}", "positive": f"img/{n}.png"} for n in range(20)]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return go


def built(path: Path | str, tmp_path: Path, announce: Any = lambda line: None, **options: Any) -> ImageTextDataset:
    context = BuildContext(Registry(), cache_dir=tmp_path / "cache", announce=announce)
    return ImageTextConfig(path=str(path), **options).build(context)


def drawn(dataset: ImageTextDataset, row: int, seed: int = 0) -> Any:
    return dataset.example(row, np.random.default_rng(seed))


class TestFormats:
    def test_jsonl(self, write: Write, tmp_path: Path) -> None:
        lines: list[str] = []
        dataset = built(write(), tmp_path, lines.append)
        assert lines == ["data: rows, JSONL, t2i: 20 training rows"]
        example = drawn(dataset, 3)
        assert (example.query, example.passages) == ("picture 3", (Picture(str(tmp_path / "img" / "3.png")),))
        assert example.place == f"{tmp_path / 'rows.jsonl'}:4"
        assert list(dataset.texts()) == [f"picture {n}" for n in range(20)]

    def test_parquet_with_bytes(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        values = pa.array([{"bytes": png(n), "path": f"{n}.png"} for n in range(5)], image)
        pq.write_table(pa.table({"caption": [f"p{n}" for n in range(5)], "image": values}), tmp_path / "rows.parquet")
        dataset = built(tmp_path / "rows.parquet", tmp_path)
        assert drawn(dataset, 2).passages == (Picture("2.png", png(2)),)
        assert drawn(dataset, 2).place == "rows.parquet:3"
        folder = built(tmp_path, tmp_path, retrieval_mode="i2t")
        assert (drawn(folder, 4).query, drawn(folder, 4).passages) == (Picture(None, png(4)), ("p4",))

    @pytest.mark.parametrize("split", [None, "test"])
    def test_what_save_to_disk_wrote(self, tmp_path: Path, split: str | None) -> None:
        """Image features, negatives as lists of images; nothing is decoded on the way."""
        from datasets import Dataset, DatasetDict, Features, List, Value
        from datasets import Image as ImageFeature

        features = Features({"text": Value("string"), "image": ImageFeature(), "negatives": List(ImageFeature())})
        rows = [
            {"text": f"p{n}", "image": {"bytes": png(n)}, "negatives": [{"bytes": png(n + 1)}, {"bytes": png(n + 2)}]}
            for n in range(3)
        ]
        saved = Dataset.from_list(rows, features=features)
        (DatasetDict({"train": saved.select([0]), "test": saved}) if split else saved).save_to_disk(tmp_path / "saved")
        dataset = built(tmp_path / "saved", tmp_path, split=split, negatives=2)
        assert len(dataset) == 3
        assert set(drawn(dataset, 1).passages) == {Picture(None, png(n)) for n in (1, 2, 3)}

    def test_an_image_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        for n in range(3):
            (folder / f"{n}.png").write_bytes(png(n))
        lines = [json.dumps({"file_name": f"{n}.png", "text": f"p{n}"}) for n in range(3)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        dataset = built(folder, tmp_path)
        assert sorted(drawn(dataset, n).query for n in range(3)) == ["p0", "p1", "p2"]
        assert all(Path(drawn(dataset, n).passages[0].path).is_file() for n in range(3))

    def test_an_image_root(self, write: Write, tmp_path: Path) -> None:
        path = write([{"query": "x", "positive": "3.png"}])
        assert drawn(built(path, tmp_path, image_root=str(tmp_path / "img")), 0).passages[0].name == "3.png"


class TestBadRows:
    """Bad ones are named by file and line; nothing is a traceback."""

    @pytest.fixture
    def bad(self, write: Write, tmp_path: Path) -> Path:
        (tmp_path / "img" / "2.png").write_bytes(b"no image at all")
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "img" / "4.png")
        whole = (tmp_path / "img" / "4.png").read_bytes()
        (tmp_path / "img" / "4.png").write_bytes(whole[: len(whole) // 2])
        rows = [{"query": f"picture {n}", "positive": f"img/{n}.png"} for n in range(8)]
        rows[5]["positive"] = "img/none.png"
        rows[6]["positive"] = "https://example.org/6.png"
        rows[7] = {"query": "", "positive": "img/7.png"}
        return write(rows)

    def test_the_first_stops(self, bad: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=rf"^{bad}:3: picture .*2.png' cannot be read") as caught:
            built(bad, tmp_path)
        assert "\n" not in str(caught.value)

    def test_all_are_left_out(self, bad: Path, tmp_path: Path) -> None:
        lines: list[str] = []
        dataset = built(bad, tmp_path, lines.append, on_bad_row="skip")
        assert [drawn(dataset, n).query for n in range(len(dataset))] == ["picture 0", "picture 1", "picture 3"]
        assert lines[0].startswith(f"data: rows: 5 bad rows are left out: {bad}:3: picture ")
        assert lines[0].endswith("; …")
        reasons = dataset._checked.bad
        assert [reason.split(": ")[0] for reason in reasons] == [f"{bad}:{n}" for n in (3, 5, 6, 7, 8)]
        for reason, words in zip(
            reasons, ("cannot be read", "cannot be read", "does not exist", "is a URL", "is empty"), strict=True
        ):
            assert words in reason

    def test_without_decoding_a_cut_off_picture_stays(self, bad: Path, tmp_path: Path) -> None:
        dataset = built(bad, tmp_path, on_bad_row="skip", check_images="open")
        assert [drawn(dataset, n).query for n in range(len(dataset))] == [f"picture {n}" for n in (0, 1, 3, 4)]

    def test_too_large(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"more than 29 pixels"):
            built(write(), tmp_path, max_image_pixels=29)
        assert len(built(write(), tmp_path, max_image_pixels=30)) == 20

    def test_none_is_left(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"rows: none of 1 rows can be used, the first because of .*does not exist"):
            built(write([{"query": "x", "positive": "no.png"}]), tmp_path, on_bad_row="skip")

    def test_a_bad_negative_is_one(self, write: Write, tmp_path: Path) -> None:
        rows = [{"query": "x", "positive": "img/1.png", "negatives": ["img/2.png", "img/no.png"]}]
        with pytest.raises(DataError, match=r"rows.jsonl:1: picture .*no.png' does not exist"):
            built(write(rows), tmp_path)

    def test_one_picture_of_two_rows_is_named_with_each(self, write: Write, tmp_path: Path) -> None:
        rows = [{"query": f"q{n}", "positive": "img/no.png"} for n in range(2)]
        rows.append({"query": "good", "positive": "img/1.png"})
        dataset = built(write(rows), tmp_path, on_bad_row="skip")
        assert [reason.split(": ")[0].rsplit(":", 1)[1] for reason in dataset._checked.bad] == ["1", "2"]

    def test_a_line_that_is_no_json(self, write: Write, tmp_path: Path) -> None:
        path = write()
        path.write_text(path.read_text() + "{oops\n")
        with pytest.raises(DataError, match=r"rows.jsonl:21: malformed JSON"):
            built(path, tmp_path)
        assert len(built(path, tmp_path, on_bad_row="skip")) == 20


class TestTheCheckIsKept:
    def test_pictures_are_opened_once(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write()
        first = built(path, tmp_path, held_out_rows=4)
        monkeypatch.setattr(checking, "_verdict", lambda *a: pytest.fail("a picture was opened again"))
        second = built(path, tmp_path, held_out_rows=4)
        assert second.fingerprint() == first.fingerprint()
        assert [second.row(n) for n in range(16)] == [first.row(n) for n in range(16)]

    def test_unless_one_has_changed(self, write: Write, tmp_path: Path) -> None:
        path = write()
        before = built(path, tmp_path).fingerprint()
        (tmp_path / "img" / "3.png").write_bytes(b"broken now")
        with pytest.raises(DataError, match=r"rows.jsonl:4"):
            built(path, tmp_path)
        (tmp_path / "img" / "3.png").write_bytes(png(200))
        assert built(path, tmp_path).fingerprint() != before

    def test_a_damaged_one_is_made_anew(self, write: Write, tmp_path: Path) -> None:
        path = write()
        before = built(path, tmp_path).fingerprint()
        (kept,) = (tmp_path / "cache" / "vision" / "checked").glob("*.npz")
        kept.write_bytes(kept.read_bytes()[:50])
        assert built(path, tmp_path).fingerprint() == before

    def test_the_fingerprint_is_of_content(self, write: Write, tmp_path: Path) -> None:
        """The same file with another content, the same content with another mtime."""
        path = write()
        before = built(path, tmp_path).fingerprint()
        os.utime(tmp_path / "img" / "3.png", (1, 1))
        assert built(path, tmp_path).fingerprint() == before
        assert built(path, tmp_path, limit=5).fingerprint() != before
        assert built(path, tmp_path, retrieval_mode="t2i", held_out_rows=2).fingerprint() != before


class TestHeldOut:
    def test_no_picture_and_no_text_is_on_both_sides(self, write: Write, tmp_path: Path) -> None:
        """Rows 0-9 come twice with other captions; 10 and 11 are one picture under two names."""
        rows = [{"query": f"{word} {n}", "positive": f"img/{n}.png"} for word in ("a", "b") for n in range(12)]
        (tmp_path / "img" / "11.png").write_bytes((tmp_path / "img" / "10.png").read_bytes())
        dataset = built(write(rows), tmp_path, held_out_rows=8)
        held = dataset.held_out()
        assert held is not None
        train = {Path(p.path).read_bytes() for n in range(len(dataset)) for p in drawn(dataset, n).passages}
        test = {Path(p.path).read_bytes() for p in held.corpus.values()}
        assert train.isdisjoint(test)
        assert len(held.queries) + len(dataset) == 24
        assert 1 <= len(held.queries) <= 8
        assert {Path(p.path).name for p in held.corpus.values()} >= {
            Path(held.corpus[d].path).name for judged in held.qrels.values() for d in judged
        }

    def test_the_default_is_a_tenth(self, write: Write, tmp_path: Path) -> None:
        dataset = built(write(), tmp_path, held_out_rows=None)
        assert (len(dataset), len(dataset.held_out().queries)) == (18, 2)  # type: ignore[union-attr]

    def test_all_is_too_many(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"held_out_rows=20: rows has 20 rows: set at most 19"):
            built(write(), tmp_path, held_out_rows=20)

    def test_one_family_is_too_large(self, write: Write, tmp_path: Path) -> None:
        rows = [{"query": f"q{n}", "positive": "img/1.png"} for n in range(5)]
        with pytest.raises(ConfigError, match=r"held_out_rows=2: every group of rows of rows that share"):
            built(write(rows), tmp_path, held_out_rows=2)

    def test_the_other_direction(self, write: Write, tmp_path: Path) -> None:
        rows = [
            {"query": f"{word} {n}", "positive": f"img/{n}.png", "negatives": ["img/19.png"]}
            for word in "ab"
            for n in range(3)
        ]
        forward = built(write(rows), tmp_path).as_retrieval_set()
        back = reversed_set(forward)
        assert (len(forward.queries), len(forward.corpus)) == (6, 4)
        assert (len(back.queries), len(back.corpus)) == (3, 6)  # the negative answers nothing
        pairs = {(q, d) for q, judged in forward.qrels.items() for d in judged}
        assert {(q, d) for d, judged in back.qrels.items() for q in judged} == pairs


class TestDrawing:
    def test_is_a_function_of_the_generator(self, write: Write, tmp_path: Path) -> None:
        rows = [
            {"query": "x", "positive": ["img/0.png", "img/1.png"], "negatives": [f"img/{n}.png" for n in range(2, 9)]}
        ]
        dataset = built(write(rows), tmp_path, negatives=3)
        assert drawn(dataset, 0, 5) == drawn(dataset, 0, 5)
        assert len({drawn(dataset, 0, seed).passages for seed in range(9)}) > 3
        assert drawn(dataset, 0).positives == (
            Picture(str(tmp_path / "img/0.png")),
            Picture(str(tmp_path / "img/1.png")),
        )

    def test_few_negatives_are_repeated_and_none_stay_none(self, write: Write, tmp_path: Path) -> None:
        rows = [
            {"query": "x", "positive": "img/0.png", "negatives": ["img/1.png"]},
            {"query": "y", "positive": "img/2.png"},
        ]
        dataset = built(write(rows), tmp_path, negatives=3)
        assert [len(drawn(dataset, n).passages) for n in (0, 1)] == [4, 1]
        assert len(set(drawn(dataset, 0).passages)) == 2
        assert len(drawn(built(write(rows), tmp_path, negatives=0), 0).passages) == 1

    def test_prompts_and_scores(self, write: Write, tmp_path: Path) -> None:
        rows = [{"query": "x", "positive": "img/0.png", "negatives": ["img/1.png"], "score": 0.5}]
        rows.append({"query": "y", "positive": "img/2.png", "prompt": "own: "})
        dataset = built(write(rows), tmp_path, query_prompt="all: ", passage_prompt="p: ")
        first, second = drawn(dataset, 0), drawn(dataset, 1)
        assert (first.query_prompt, second.query_prompt, first.passage_prompt) == ("all: ", "own: ", "p: ")
        assert first.scores[0] == 0.5
        assert np.isnan(first.scores[1])
        assert second.scores is None

    def test_rows_of_one_picture_are_not_in_one_batch(self, write: Write, tmp_path: Path) -> None:
        from embed_core.samplers.no_duplicates import NoDuplicatesSampler

        rows = [{"query": f"{word} {n}", "positive": f"img/{n}.png"} for word in "abc" for n in range(8)]
        (tmp_path / "img" / "7.png").write_bytes((tmp_path / "img" / "6.png").read_bytes())
        dataset = built(write(rows), tmp_path)
        sampler = NoDuplicatesSampler(dataset, 1, 4, lambda line: None)
        for draw in range(2 * sampler.draws_per_epoch):
            ids = [i for row in sampler.batch(draw) for i in dataset.identities(row)]
            assert len(set(ids)) == len(ids) == 8
        blocks = list(dataset.identity_blocks())
        flat = b"".join(ids.tobytes() for _, ids in blocks)
        assert flat == b"".join(i for row in range(len(dataset)) for i in dataset.identities(row))


class TestRefused:
    def test_an_unknown_role(self) -> None:
        with pytest.raises(ValidationError, match=r"unknown role 'positives': did you mean 'positive'"):
            ImageTextConfig(columns={"positives": "x"})

    @pytest.mark.parametrize(
        ("name", "message"),
        [("./rows.jsnl", "did you mean 'rows.jsonl'"), ("rows.csv", "a .jsonl, .json or .parquet file, not '.csv'")],
    )
    def test_files(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
    ) -> None:
        write()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "rows.csv").write_text("a,b\n")
        with pytest.raises(DataError, match=message):
            built(name, tmp_path)

    def test_a_damaged_parquet_file(self, tmp_path: Path) -> None:
        (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(DataError, match=r"rows.parquet: cannot be read as parquet: ") as caught:
            built(tmp_path / "rows.parquet", tmp_path)
        assert "\n" not in str(caught.value)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"empty: no .parquet file.*it has nothing; give the .jsonl file itself"):
            built(tmp_path / "empty", tmp_path)

    def test_a_split_of_a_file(self, write: Write, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"split 'test': .*rows.jsonl has no splits: remove `split`"):
            built(write(), tmp_path, split="test")

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_list([{"query": "x", "positive": "y"}])
        DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match=r"no split 'valid': did you mean 'validation'"):
            built(tmp_path / "saved", tmp_path, split="valid", retrieval_mode="t2t")
        assert len(built(tmp_path / "saved", tmp_path, retrieval_mode="t2t")) == 1
        DatasetDict({"a": rows, "b": rows}).save_to_disk(tmp_path / "other")
        with pytest.raises(DataError, match=r"set `split` to one of: a, b"):
            built(tmp_path / "other", tmp_path, retrieval_mode="t2t")

    def test_a_name_of_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            DataError, match=r"nobody/nothing: no such file or folder here, and no Hugging Face dataset"
        ):
            built("nobody/nothing", tmp_path)
