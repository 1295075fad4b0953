"""Every recipe trains as it was recorded: loss and gradient norm of each step, to 1e-5."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from processes import run

sys.path.insert(0, str(Path(__file__).parent))
from golden_curves import CASES, HERE, recorded

TOLERANCE = 1e-5
CURVE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from golden_curves import curve
print(json.dumps(curve(sys.argv[2], Path(sys.argv[3]))))
"""
"""Prints the steps of a case. A process of its own has nothing of what earlier tests have set in torch."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all cases write: some load the models that others export."""
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(autouse=True)
def _own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_CACHE", str(folder / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_as_recorded(name: str, folder: Path) -> None:
    """A step that differs is named with both values; ``make golden`` records changes that are meant."""
    answer = run([sys.executable, "-c", CURVE, str(HERE), name, str(folder)], capture_output=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    found, wanted = json.loads(answer.stdout.splitlines()[-1]), recorded(name)
    assert [(one["step"], one["phase"]) for one in found] == [(one["step"], one["phase"]) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        for key in ("loss", "gradient_norm"):
            assert one[key] == pytest.approx(other[key], rel=TOLERANCE, abs=1e-7), f"{name}, step {one['step']}: {key}"


def test_every_recorded_file_is_a_case() -> None:
    assert {path.stem for path in HERE.glob("*.json")} == set(CASES)
    assert all(len(recorded(name)) >= 12 for name in CASES)
