"""The embedded corpus: built without importing anything, split by module, cached, mended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import ConfigError, DataError
from embed_data.config import AutoConfig, PydocsConfig
from embed_data.pydocs.corpus import family
from embed_data.pydocs.packages import find_packages

if TYPE_CHECKING:
    from pathlib import Path

    from embed_core.protocols import Dataset

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


DEFINITION = '''
def {name}(x):
    """Return the item {item}.

    {rest} is what it returns, nothing else."""
'''


def words(n: int) -> str:
    return " ".join(NUMBERS[int(digit)] for digit in f"{n:03}")


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """A package of 60 modules with 5 documented functions each; importing it is an error."""
    name = "embed_fake_docs"
    root = tmp_path / "site" / name
    (root / "tests").mkdir(parents=True)
    (root / "_vendor").mkdir()
    (root / "__init__.py").write_text("raise SystemExit('imported')")
    # `same` is in every module, and is one pair.
    same = DEFINITION.format(name="same", item="same", rest="the same")
    for m in range(60):
        own = [DEFINITION.format(name=f"f{n}", item=words(n), rest=words(n)) for n in range(5 * m, 5 * m + 5)]
        (root / f"m{m}.py").write_text("raise SystemExit('imported')\n" + "".join(own) + same)
    for skipped in ("tests/test_x.py", "_vendor/x.py"):
        (root / skipped).write_text('def g(x, y):\n    """Return what is not wanted here."""\n')
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return name


@pytest.fixture
def context(tmp_path) -> BuildContext:
    said: list[str] = []
    made = BuildContext(Registry(), cache_dir=tmp_path / "cache", announce=said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def config(package: str, **options) -> PydocsConfig:
    return PydocsConfig(packages=(package,), **({"held_out_queries": 20, "held_out_documents": 50} | options))


def rows(dataset: Dataset) -> list[tuple[str, str]]:
    examples = [dataset.example(n, np.random.default_rng(0)) for n in range(len(dataset))]
    return [(example.query, example.passages[0]) for example in examples]


def test_the_split(package, context):
    dataset = config(package).build(context)
    held = dataset.held_out()
    assert held is not None
    train = rows(dataset)
    assert (len(held.queries), len(held.corpus)) == (20, 50)
    # 60 modules of 5, and `same` once: with the module that comes first
    assert len(train) == 301 - 50
    assert not any("not wanted" in query for query, _ in train)
    assert dataset.source(0) == package
    assert [query for query, _ in train].count("Return the item same.") == 1
    modules = {passage.split("(")[0].rsplit(".", 1)[0] for _, passage in train}
    others = {passage.split("(")[0].rsplit(".", 1)[0] for passage in held.corpus.values()}
    assert modules.isdisjoint(others)
    for query, judged in held.qrels.items():
        (document,) = judged
        number = held.queries[query].removeprefix("Return the item ").removesuffix(".")
        assert f"\n{number} is what it returns" in held.corpus[document]


def test_it_is_cached_and_the_same(package, context):
    first = config(package).build(context)
    files = {path: path.read_bytes() for path in context.cache_dir.rglob("*") if path.is_file()}
    assert "once" in context.said[0]
    context.said.clear()
    second = config(package).build(context)
    assert len(context.said) == 1  # the summary alone: nothing was built
    assert rows(first) == rows(second)
    assert first.fingerprint() == second.fingerprint()
    context.cache_dir = context.cache_dir.with_name("elsewhere")
    config(package).build(context)
    rebuilt = {path for path in context.cache_dir.rglob("*") if path.is_file()}
    assert sorted(path.read_bytes() for path in rebuilt) == sorted(files.values())


def test_another_version_or_size_is_another_cache(package, context, monkeypatch):
    config(package).build(context)
    config(package, max_rows=100).build(context)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.0")
    config(package).build(context)
    assert len(list((context.cache_dir / "pydocs").iterdir())) == 3


def damage_truncate(folder: Path) -> None:
    path = next(folder.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-50])


def damage_remove(folder: Path) -> None:
    (folder / "pydocs-held-out" / "queries.jsonl").unlink()


def damage_change(folder: Path) -> None:
    path = folder / "pydocs-held-out" / "corpus.jsonl"
    path.write_text(path.read_text().replace("what", "that"))


def damage_add(folder: Path) -> None:
    (folder / "more.jsonl").write_text("{}")


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[")


@pytest.mark.parametrize("damage", [damage_truncate, damage_remove, damage_change, damage_add, damage_manifest])
def test_a_damaged_cache_is_built_anew(package, context, damage):
    first = config(package).build(context)
    (folder,) = (context.cache_dir / "pydocs").iterdir()
    expected = rows(first)
    damage(folder)
    context.said.clear()
    again = config(package).build(context)
    assert context.said[0] == f"pydocs: {folder} is damaged and is built anew"
    assert rows(again) == expected
    assert list((context.cache_dir / "pydocs").iterdir()) == [folder]  # nothing temporary is left


def test_the_sizes(package, context):
    dataset = config(package, max_rows=100, held_out_queries=10, held_out_documents=5, limit=30).build(context)
    held = dataset.held_out()
    assert held is not None
    assert (len(dataset), len(held.queries), len(held.corpus)) == (30, 10, 10)
    (file,) = (context.cache_dir / "pydocs").glob("*/embed_fake_docs.jsonl")
    assert len(file.read_text().splitlines()) == 100
    assert all(set(json.loads(line)) == {"query", "pos"} for line in file.read_text().splitlines())
    assert config(package, held_out_queries=0).build(context).held_out() is None


def test_the_prompts(package, context):
    dataset = config(package, query_prompt="Q: ", passage_prompt="P: ").build(context)
    example = dataset.example(0, np.random.default_rng(0))
    assert (example.query_prompt, example.passage_prompt) == ("Q: ", "P: ")


def test_absent_packages_are_left_out(package, context):
    both = PydocsConfig(packages=("embed_no_such_package", package), held_out_queries=20).build(context)
    assert {both.source(n) for n in range(len(both))} == {package}
    with pytest.raises(DataError) as caught:
        PydocsConfig(packages=("embed_no_such_package", "a.b", "sys")).build(context)
    assert str(caught.value) == (
        "pydocs: none of embed_no_such_package, a.b, sys is installed as Python source: train on a file (`path`)"
    )


def test_a_package_without_docstrings(tmp_path, monkeypatch, context):
    (tmp_path / "embed_silent").mkdir()
    (tmp_path / "embed_silent" / "__init__.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError) as caught:
        config("embed_silent").build(context)
    assert str(caught.value) == f"pydocs: no docstrings in {tmp_path}/embed_silent: train on a file (`path`)"


def test_one_module_cannot_be_split(tmp_path, monkeypatch, context):
    (tmp_path / "embed_single").mkdir()
    source = "".join(f'def f{n}(x, y):\n    """Return the item {words(n)}."""\n' for n in range(9))
    (tmp_path / "embed_single" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        config("embed_single").build(context)
    assert str(caught.value) == (
        "pydocs: no 50 of 9 pairs in 1 modules can be held out by whole modules: "
        "read more `packages`, or set `held_out_queries` (`held_out_rows`) to 0"
    )
    assert len(config("embed_single", held_out_queries=0).build(context)) == 9


def test_a_cache_that_cannot_be_written(package, context, tmp_path):
    context.cache_dir = tmp_path / "file"
    context.cache_dir.write_text("")
    with pytest.raises(DataError, match=r"the corpus cannot be cached: .*: set EMBED_CACHE to a writable folder$"):
        config(package).build(context)


def test_ranks_build_it_once(package, tmp_path):
    barrier, said = threading.Barrier(2), [[], []]
    found: list[list[tuple[str, str]]] = [[], []]

    def run(rank: int) -> None:
        context = BuildContext(
            Registry(), rank=rank, world_size=2, cache_dir=tmp_path / "cache", announce=said[rank].append,
            barrier=lambda: barrier.wait(60) and None,
        )  # fmt: skip
        found[rank] = rows(config(package).build(context))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1] != []
    assert any("once" in line for line in said[0])
    assert not any("once" in line for line in said[1])


def test_families_are_three_names_deep():
    assert family("transformers.models.bert.modeling_bert") == family("transformers.models.bert")
    assert family("transformers.models.bert") != family("transformers.models.gpt2")


def test_nothing_is_imported():
    """In a fresh interpreter: finding and reading numpy's and torch's source imports neither."""
    code = (
        "import sys; from embed_data.pydocs.packages import find_packages\n"
        "import embed_data.config, embed_data.plugin\n"
        "found = find_packages(('stdlib', 'numpy', 'torch', 'transformers'))\n"
        "print(*[p.name for p in found], *{'torch', 'numpy', 'transformers'} & set(sys.modules), sep='\\n')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out.split() == ["stdlib", "numpy", "torch", "transformers"]


def test_a_real_package(context):
    dataset = PydocsConfig(packages=("numpy",), held_out_queries=50, held_out_documents=100).build(context)
    held = dataset.held_out()
    assert held is not None
    assert len(dataset) > 800
    assert (len(held.queries), len(held.corpus)) == (50, 100)
    query, passage = next(pair for pair in rows(dataset) if ".dstack(" in pair[1])
    assert query == "Stack arrays in sequence depth wise (along third axis)."
    assert "equivalent to concatenation along the third axis" in passage
    modules = dict(find_packages(("numpy",))[0].modules())
    assert not any(".tests." in name for name in modules)


@pytest.mark.slow
def test_the_default_corpus(context):
    dataset = AutoConfig().build(context)
    held = dataset.held_out()
    assert held is not None
    assert (len(dataset), len(held.queries), len(held.corpus)) == (10_000, 400, 1_000)
    texts = set(dataset.texts())
    assert len(texts) == 20_000
    assert texts.isdisjoint(held.queries.values())
    assert texts.isdisjoint(held.corpus.values())


def test_auto_is_the_corpus_or_a_file(tmp_path, context, package, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"query": f"q{n}", "pos": [f"p{n}"], "neg": ["n"]}) + "\n" for n in range(20)))
    dataset = AutoConfig(path=str(path), negatives=2, held_out_rows=5, limit=10, query_prompt="Q: ").build(context)
    held = dataset.held_out()
    assert held is not None
    assert (len(dataset), len(held.queries), dataset.name) == (10, 5, "train.jsonl")
    example = dataset.example(0, np.random.default_rng(0))
    assert (example.passages[1:], example.query_prompt) == (("n", "n"), "Q: ")
    by_default = AutoConfig(path=str(path)).build(context).held_out()
    assert by_default is not None
    assert len(by_default.queries) == 2  # a tenth
    assert AutoConfig(path=str(path), held_out_rows=0).build(context).held_out() is None
    assert context.said[0].startswith("data: train.jsonl, JSONL, FlagEmbedding rows: ")

    monkeypatch.setattr("embed_data.pydocs.packages.STDLIB", "no stdlib")  # leaves the real packages out of this test
    monkeypatch.setattr("embed_data.pydocs.packages._installed", lambda name, real=find_packages: None)
    with pytest.raises(DataError, match=r"^pydocs: none of stdlib, torch, numpy, transformers is installed"):
        AutoConfig().build(context)


def test_auto_hands_its_fields_to_the_corpus():
    made = AutoConfig(query_prompt="Q: ", passage_prompt="P: ", limit=7, held_out_rows=3)._pydocs()
    assert made == PydocsConfig(query_prompt="Q: ", passage_prompt="P: ", limit=7, held_out_queries=3)
    assert AutoConfig()._pydocs() == PydocsConfig()


def test_auto_errors(tmp_path, context):
    with pytest.raises(ConfigError, match=r"^split 'dev': the embedded corpus has no splits: remove `split` or set"):
        AutoConfig(split="dev").build(context)
    with pytest.raises(
        DataError, match=r"pydoc: no such file or folder: .* \(the word 'pydocs' is the embedded corpus\)$"
    ):
        AutoConfig(path=str(tmp_path / "pydoc")).build(context)
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"bad.jsonl:1: malformed JSON: [^\n]*column \d+$"):
        AutoConfig(path=str(tmp_path / "bad.jsonl")).build(context)


def test_the_plugin_registers_all():
    from embed_data.plugin import embed_register_datasets

    assert [kind.kind_name() for kind in embed_register_datasets()] == ["pydocs", "auto", "file", "mix", "remined"]
