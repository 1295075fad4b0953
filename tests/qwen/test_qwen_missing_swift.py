"""ms-swift absent, too old, beside packages that it does not allow, or broken: one line, and only where it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from embed_core.config.context import BuildContext
from embed_core.config.registry import Registry
from embed_core.errors import PluginError
from embed_qwen import swift
from embed_qwen.losses_config import SwiftInfoNCEConfig
from embed_qwen.model_config import Qwen3EmbeddingConfig
from processes import run

HIDE = """
import sys
from importlib import abc, metadata

class Hidden(abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "swift" or name.startswith("swift."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
real = metadata.distribution
def distribution(name):
    if name == "ms-swift":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.distribution = distribution
"""


def embed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, with ms-swift hidden from it."""
    (folder / "sitecustomize.py").write_text(HIDE)
    command = [sys.executable, "-m", "embed_cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    return run(command, env=environment, capture_output=True, timeout=300)


def test_absent(tmp_path: Path) -> None:
    """A run of the model says so in one line, and writes nothing."""
    rows = [{"query": f"what is {n}", "pos": [f"{n} is a number"]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        "plugins: [qwen]\nmodel: {kind: qwen3-embedding}\n"
        f"data: {{kind: retrieval, path: {tmp_path / 'rows.jsonl'}, held_out_rows: 0}}\n"
        "sampler: {kind: shuffled, batch_size: 4}\n"
        "loss: {kind: infonce}\ncheckpoint: {kind: qwen3-embedding}\n"
    )
    result = embed(tmp_path, "run", "--config", str(tmp_path / "run.yaml"), "--output-dir", str(tmp_path / "out"))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .endswith("plugin 'qwen' needs ms-swift 4.6.0 or later, which is not installed: pip install 'ms-swift>=4.6.0'")
    )
    assert not (tmp_path / "out" / "model").exists()


def test_other_plugins_do_not_need_it(tmp_path: Path) -> None:
    """The plugin itself is loaded and listed."""
    listed = embed(tmp_path, "plugins")
    assert listed.returncode == 0, listed.stderr
    assert "qwen" in listed.stdout
    run = embed(tmp_path, "run", "--plugin", "bge", "--plugin", "qwen", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "bge-unified" in run.stdout


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``faked(name, version)``: the first distribution of that name has it, and what the real one requires."""

    def fake(name: str, version: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {one}" for one in metadata.requires(name) or ()]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return fake


def refused() -> str:
    with pytest.raises(PluginError) as caught:
        Qwen3EmbeddingConfig(name_or_path="/nowhere").build(BuildContext(registry=Registry()))
    return str(caught.value)


def test_too_old(faked: Callable[[str, str], None]) -> None:
    faked("ms-swift", "4.5.3")
    assert refused() == (
        "plugin 'qwen' needs ms-swift 4.6.0 or later, and 4.5.3 is installed, whose losses are wrong on several ranks: "
        "pip install 'ms-swift>=4.6.0'"
    )


def test_later_than_the_oldest(faked: Callable[[str, str], None]) -> None:
    faked("ms-swift", "4.10.0")
    swift.require()


def test_transformers_out_of_range(faked: Callable[[str, str], None]) -> None:
    version = metadata.version("ms-swift")
    faked("transformers", "5.20.0")
    assert refused() == (
        f"ms-swift {version} does not allow transformers 5.20.0, it needs transformers<5.20.0,>=4.33: "
        "pip install 'transformers<5.20.0,>=4.33', or a later ms-swift"
    )


def test_everything_of_swift_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift, "OLDEST", "99.0")
    context = BuildContext(registry=Registry())
    for config in (Qwen3EmbeddingConfig(name_or_path="/nowhere"), SwiftInfoNCEConfig()):
        with pytest.raises(PluginError, match=r"plugin 'qwen' needs ms-swift 99.0 or later"):
            config.build(context)  # type: ignore[attr-defined]


def test_a_package_that_it_needs_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(PluginError, match=r"ms-swift [\d.]+ needs peft, which is not installed: pip install 'peft<"):
        swift.require()


def test_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swift.loss", None)
    with pytest.raises(PluginError, match=r"ms-swift [\d.]+ cannot be imported \(ModuleNotFoundError: .*--force-reins"):
        swift.loss("infonce")


def test_configs_import_neither_swift_nor_torch() -> None:
    code = (
        "import sys, embed_qwen.plugin as p\n"
        "[hook() for name, hook in vars(p).items() if name.startswith('embed_register')]\n"
        "print(sorted({'swift', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
