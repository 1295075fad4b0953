"""Datasets whose tables lie on disk: the same as a loop over rows in memory says, made once, in bounded memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.datasets import dedup
from embed_core.datasets.config import RetrievalConfig
from embed_core.datasets.dedup import blocks_of, distinct, repetitions
from embed_core.datasets.index import corpus_sample, hashes, offsets
from embed_core.datasets.index import rows as catalogue
from embed_core.datasets.index.subset import Selection
from embed_core.datasets.retrieval import RetrievalDataset
from embed_core.datasets.row import parse_row
from embed_core.datasets.split import choose_held_out, row_identities
from embed_core.errors import DataError
from embed_core.models.from_scratch.unigram import _sample


@pytest.fixture
def all_on_disk(monkeypatch):
    on_disk(monkeypatch)


def on_disk(patch: pytest.MonkeyPatch) -> None:
    """Files, tables and splits of any size are kept, and blocks are so small that everything takes several."""
    patch.setattr(offsets, "KEPT_FROM", 0)
    patch.setattr(hashes, "ON_DISK_FROM", 0)
    patch.setattr(hashes, "BLOCK", 3)
    patch.setattr(catalogue, "ANNOUNCED_FROM", 0)
    patch.setattr(dedup, "AT_ONCE", 4)
    patch.setattr(corpus_sample, "CANDIDATES", 2)
    patch.setattr(corpus_sample, "FIRST_READ", 1)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def build(path: Path, cache: Path, said: list[str] | None = None, **options) -> RetrievalDataset:
    context = BuildContext(Registry(), cache_dir=cache, announce=(said if said is not None else []).append)
    dataset = RetrievalConfig(path=str(path), **options).build(context)
    assert isinstance(dataset, RetrievalDataset)
    return dataset


TEXTS = st.integers(0, 25).map(str)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"query": TEXTS, "pos": st.lists(TEXTS, min_size=1, max_size=2)},
        optional={"neg": st.lists(TEXTS | st.just(" "), max_size=2), "doc_id": TEXTS},
    ),
    min_size=3,
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(ROWS, ROWS, st.integers(0, 2), st.sampled_from([None, 1, 2, 9]), st.integers(1, 60))
def test_everything_is_as_a_loop_over_the_rows_says(tmp_path_factory, a, b, wanted, limit, characters):
    folder = tmp_path_factory.mktemp("scale")
    (folder / "data").mkdir()
    write(folder / "data" / "a.jsonl", a)
    write(folder / "data" / "b.jsonl", b)
    rows = [parse_row(data, "x") for data in a + b]
    ids = [row_identities(row) for row in rows]
    mask = choose_held_out([[int.from_bytes(i, sys.byteorder) for i in row] for row in ids], wanted)
    kept = np.flatnonzero(~mask)
    kept = kept if limit is None or limit >= len(kept) else kept[np.arange(limit) * len(kept) // limit]
    with pytest.MonkeyPatch.context() as patch:
        on_disk(patch)
        for _ in range(2):  # made, and found again
            if wanted and not mask.any():
                with pytest.raises(ValueError, match=r"^held_out_rows="):
                    build(folder / "data", folder / "cache", held_out_rows=wanted, limit=limit)
                continue
            dataset = build(folder / "data", folder / "cache", held_out_rows=wanted, limit=limit)
            drawn = [dataset.example(n, np.random.default_rng(0)) for n in range(len(dataset))]
            assert [(e.query, e.positives) for e in drawn] == [(rows[n].query, rows[n].pos) for n in kept]
            assert [dataset.source(n) for n in range(len(dataset))] == ["a" if n < len(a) else "b" for n in kept]
            assert [list(dataset.identities(n)) for n in range(len(dataset))] == [ids[n] for n in kept]
            assert flat_identities(dataset) == [ids[n] for n in kept]
            every = [text for n in kept for text in (rows[n].query, *rows[n].pos, *rows[n].neg)]
            assert list(dataset.texts()) == list(dict.fromkeys(every))
            assert dataset.texts().sample(characters) == _sample(iter(dict.fromkeys(every)), characters)
            held = dataset.held_out()
            assert (held is None) == (not mask.any())
            if held is not None:
                assert set(held.queries.values()) == {rows[n].query for n in np.flatnonzero(mask)}


def flat_identities(dataset: RetrievalDataset) -> list[list[bytes]]:
    """The rows of ``identity_blocks``; what a row has twice is there twice."""
    rows: list[list[bytes]] = []
    for counts, flat in dataset.identity_blocks():
        raw = [value.tobytes() for value in flat]
        ends = np.cumsum(counts).tolist()
        rows += [list(dict.fromkeys(raw[e - c : e])) for e, c in zip(ends, counts.tolist(), strict=True)]
    return rows


@pytest.mark.usefixtures("all_on_disk")
def test_rows_are_validated_once(tmp_path, monkeypatch):
    path, cache, said = write(tmp_path / "t.jsonl", [{"query": str(n), "pos": ["p"]} for n in range(9)]), tmp_path, []
    fresh = build(path, cache, said)
    assert said[0] == "data: t: reading and checking 9 rows, once"
    monkeypatch.setattr(hashes, "_fill", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(catalogue, "held_out_rows", lambda *_: pytest.fail("chosen again"))
    said.clear()
    again = build(path, cache, said)
    assert len(said) == 1
    assert again.fingerprint() == fresh.fingerprint()
    monkeypatch.setattr("embed_core.datasets.sources.jsonl.ROW_VERSION", 1_000)
    with pytest.raises(pytest.fail.Exception, match="read again"):
        build(path, cache)


@pytest.mark.usefixtures("all_on_disk")
def test_a_split_is_chosen_once(tmp_path, monkeypatch):
    path = write(tmp_path / "t.jsonl", [{"query": f"q{n}", "pos": [f"p{n}"]} for n in range(30)])
    fresh = build(path, tmp_path / "cache", held_out_rows=5)
    real = catalogue.held_out_rows
    monkeypatch.setattr(catalogue, "held_out_rows", lambda *_: pytest.fail("chosen again"))
    assert build(path, tmp_path / "cache", held_out_rows=5).held_out() == fresh.held_out()
    monkeypatch.setattr(catalogue, "held_out_rows", real)
    other = build(path, tmp_path / "cache", held_out_rows=6).held_out()
    assert other is not None
    assert len(other.queries) == 6


@pytest.mark.usefixtures("all_on_disk")
def test_a_bad_row_is_named_and_nothing_is_kept(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"query": "q", "pos": ["p"]}] * 7 + [{"query": "q"}, {"pos": 1}])
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            build(path, tmp_path / "cache")
        assert str(caught.value).startswith(f"{path}:8: no `pos`")
    assert [p.name[:6] for p in (tmp_path / "cache" / "rows").iterdir()] == ["lines-"]


@pytest.mark.usefixtures("all_on_disk")
def test_rows_in_memory_leave_nothing_behind(tmp_path):
    from embed_core.datasets.sampling import DrawOptions
    from embed_core.datasets.sources.memory import InMemoryRows

    rows = [{"query": f"q{n}", "pos": [f"p{n}"]} for n in range(9)]
    dataset = RetrievalDataset(
        "rows", [InMemoryRows(rows)], DrawOptions(), lambda line: None, held_out_rows=2, cache=tmp_path
    )
    assert len(list(dataset.texts())) == 14
    assert list((tmp_path / "rows").iterdir()) == [], "their digest says nothing of how they are read"


@given(st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=40), st.integers(1, 6), st.integers(1, 9))
def test_shared_identities_by_hand(rows, at_once, block):
    encoded = [[i.to_bytes(8, sys.byteorder) for i in row] for row in rows]
    rows_with = Counter(i for row in rows for i in set(row))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "AT_ONCE", at_once)
        shared = dedup.shared_ids(blocks_of(iter(encoded), block))
    wanted = sorted(i for i, count in rows_with.items() if count > 1)
    assert shared.count == len(wanted)
    assert len(shared) == len(rows)
    assert [[wanted[number] for number in shared[n]] for n in range(len(rows))] == [
        [i for i in dict.fromkeys(row) if rows_with[i] > 1] for row in rows
    ]
    assert dict(shared.rows()) == {n: shared[n] for n in range(len(rows)) if shared[n]}


def test_identities_of_any_length_are_told_apart():
    rows = [[b"a"], [b"a" * 8], [b"a" * 9, b""], [b"a" * 9], [b""]]
    shared = dedup.shared_ids(blocks_of(iter(rows)))
    assert [len(shared[n]) for n in range(5)] == [0, 0, 2, 1, 1]
    assert sorted(shared[2]) == sorted([*shared[3], *shared[4]])


@given(st.lists(st.lists(st.integers(0, 20), max_size=6), max_size=9), st.integers(1, 5))
def test_repetitions_and_distinct_values_by_hand(parts, at_once):
    flat = [value for part in parts for value in part]

    def blocks():
        return [np.asarray(part, dtype=np.uint64) for part in parts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "AT_ONCE", at_once)
        flags = [flag for flag, _ in zip(repetitions(blocks), flat, strict=False)] if parts else []
        values = sorted(value for part in distinct(blocks) for value in part.tolist()) if parts else []
    assert flags == [value in flat[:place] for place, value in enumerate(flat)]
    assert values == sorted(set(flat))


@given(st.data())
def test_a_selection_is_the_list_it_stands_for(data):
    total = data.draw(st.integers(1, 60))
    left_out = sorted(data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1)))
    limit = data.draw(st.none() | st.integers(1, 70))
    rows = [n for n in range(total) if n not in left_out]
    wanted = rows if limit is None or limit >= len(rows) else [rows[n * len(rows) // limit] for n in range(limit)]
    selection = Selection(total, np.asarray(left_out, dtype=np.int64), limit)
    assert len(selection) == len(wanted)
    assert [selection[n] for n in range(len(wanted))] == wanted
    assert [n for block in selection.blocks(7) for n in block.tolist()] == wanted
    for outside in (-1, len(wanted)):
        with pytest.raises(IndexError):
            selection[outside]


def test_the_choice_of_rows_held_out_stays_what_it_was():
    """Chosen by the loop that this replaced: a union-find over lists, families in the order of a hash."""
    rng = random.Random(3)
    rows = [[rng.getrandbits(64), rng.choice([rng.getrandbits(64), rng.randrange(40)])] for _ in range(300)]
    family = list(range(300))

    def find(row: int) -> int:
        return row if family[row] == row else find(family[row])

    first: dict[int, int] = {}
    for row, ids in enumerate(rows):
        for identity in ids:
            a, b = find(first.setdefault(identity, row)), find(row)
            family[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for row in range(300):
        members.setdefault(find(row), []).append(row)

    def order(root: int) -> bytes:
        mark = min(identity for row in members[root] for identity in rows[row])
        return blake2b(mark.to_bytes(8, "little"), digest_size=8).digest()

    for wanted in (1, 7, 50):
        chosen, left = [], wanted
        for root in sorted(members, key=order):
            if len(members[root]) <= left:
                chosen += members[root]
                left -= len(members[root])
        assert np.flatnonzero(choose_held_out(rows, wanted)).tolist() == sorted(chosen)


MEASURE = """
import resource, sys
from pathlib import Path
from embed_core.config.context import BuildContext
from embed_core.datasets.config import RetrievalConfig
from embed_core.config.registry import Registry
from embed_core.samplers.config import NoDuplicatesConfig
import numpy as np
from embed_core.datasets.index import hashes, offsets
offsets.KEPT_FROM = hashes.ON_DISK_FROM = 0
path, cache = map(Path, sys.argv[1:])
context = BuildContext(Registry(), cache_dir=cache, announce=lambda line: None)
dataset = RetrievalConfig(path=str(path), held_out_rows=None).build(context)
dataset.texts().sample(10_000)
sampler = NoDuplicatesConfig(batch_size=64).build(context, dataset)
for draw in range(50):
    for row in sampler.batch(draw):
        dataset.example(row, np.random.default_rng(row))
print(len(dataset), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_hardly_grows_with_the_rows(tmp_path):
    """As lists of Python objects, 60,000 rows more took 60 MiB for the sampler alone; their texts are 21 MB."""
    peaks, padding = [], "x" * 300
    for rows in (10_000, 70_000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            file.writelines(f'{{"query": "q {n}", "pos": ["p {n // 3} {padding}"]}}\n' for n in range(rows))
        command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "cache")]
        counted, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert rows - 200 <= int(counted) < rows - 190  # whole families of three
        peaks.append(int(peak) / 1024)
    assert peaks[1] - peaks[0] < 10, peaks  # MiB; about 4
