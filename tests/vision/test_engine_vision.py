"""Vision models in the loop: the same at 1 and 2 ranks, at every ZeRO stage, cached or not, whatever a rank's rows
hold; and a cached batch that fits where the direct one does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embed_vision.datasets.items import Picture
from processes import launch

WORKER = str(Path(__file__).with_name("vision_worker.py"))
ONE_RANK = [
    "clip-t2i-1-80-direct",
    "clip-t2i-2-80-cached",
    "clip-t2i-3-80-cached",
    "clip-t2i-0-80-cached-checkpointing",
]
TWO_RANKS = [
    "clip-mixed-0-40-direct",
    "clip-mixed-1-40-cached",
    "clip-mixed-2-40-cached",
    "clip-mixed-3-40-cached",
    "siglip-mixed-3-60-cached",
    "qwen3-mixed-3-60-cached",
    "loraclip-t2i-2-80-cached",
    "clip-t2i-0-80-direct-own",
    "clip-mixed-3-40-cached-own",
    "siglip-mixed-3-60-cached-own",
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory,
    clip_dir: Path,
    siglip_dir: Path,
    vlm_dir: Callable[[str], Path],
    make_picture: Callable[..., Picture],
) -> Path:
    """Models, pictures and captions for the workers."""
    folder = tmp_path_factory.mktemp("answers")
    for name, directory in {"clip": clip_dir, "siglip": siglip_dir, "qwen3": vlm_dir("qwen3_vl")}.items():
        shutil.copytree(directory, folder / name)
    captions = []
    for colour in ("red", "green", "blue", "white"):
        for shape in ("circle", "square"):
            (folder / f"{len(captions)}.png").write_bytes(make_picture(colour, shape).data or b"")
            captions.append(f"a {colour} {shape}, the number {len(captions)}")
    (folder / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def answers(out: Path) -> dict[str, Any]:
    """What every setting gave, by ``ranks-model-mode-stage-budget-strategy``."""
    references = sorted({_reference(setting) for setting in (*ONE_RANK, *TWO_RANKS)})
    for ranks, settings in ((1, [*references, *ONE_RANK]), (2, TWO_RANKS)):
        assert launch([sys.executable, WORKER, str(out), *settings], ranks) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("?-*.json")}


def _reference(setting: str) -> str:
    """The same model, rows and loss in one chunk with one graph."""
    model, mode, *rest = setting.split("-")
    return f"{model}-{mode}-0-100000-direct{'-own' if rest[-1] == 'own' else ''}"


@pytest.mark.parametrize("setting", [*(f"1-{s}" for s in ONE_RANK), *(f"2-{s}" for s in TWO_RANKS)])
def test_losses_gradients_and_weights_agree(answers: dict[str, Any], setting: str) -> None:
    reference = answers[f"1-{_reference(setting.split('-', 1)[1])}"]
    for one, other in zip(answers[setting]["steps"], reference["steps"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=TOLERANCE)
        assert one["gradients"].keys() == other["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert gradient == pytest.approx(other["gradients"][name], abs=TOLERANCE), name
    for name, weight in answers[setting]["weights"].items():
        assert weight == pytest.approx(reference["weights"][name], abs=TOLERANCE), name


def test_both_towers_and_the_scale_are_compared(answers: dict[str, Any]) -> None:
    gradients = answers["1-clip-t2i-0-100000-direct"]["steps"][0]["gradients"]
    for part in ("text_model", "vision_model", "text_projection", "visual_projection", "loss.logit_scale"):
        assert max(max(map(abs, value)) for name, value in gradients.items() if part in name) > 1e-4, part
    for setting, names in (("clip-t2i", ("logit_scale",)), ("siglip-mixed", ("logit_scale", "logit_bias"))):
        gradients = answers[f"1-{setting}-0-100000-direct-own"]["steps"][0]["gradients"]
        assert all(abs(gradients[f"loss.{name}"][0]) > 1e-3 for name in names), setting


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_512_pictures_fit_cached_where_they_do_not_fit_directly(out: Path) -> None:
    def run(strategy: str, limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, WORKER, str(out), "memory", strategy, str(limit)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for strategy in ("direct", "cached"):
        assert run(strategy, 0).returncode == 0
    free = {s: json.loads((out / f"memory-{s}-0.json").read_text()) for s in ("direct", "cached")}
    assert free["cached"]["taken"] < 0.5 * free["direct"]["taken"]
    # Address space that no page backs counts too: a limit between the two, with room for an allocator's arenas.
    limit = (free["direct"]["taken"] + free["cached"]["taken"]) // 2
    failed = run("direct", limit)
    assert failed.returncode != 0
    assert "emory" in failed.stderr
    fits = run("cached", limit)
    assert fits.returncode == 0, fits.stderr[-800:]
    cached = json.loads((out / f"memory-cached-{limit}.json").read_text())
    assert cached["loss"] == pytest.approx(free["direct"]["loss"], abs=TOLERANCE)
    assert cached["gradients"].keys() == free["direct"]["gradients"].keys()
    for name, gradient in cached["gradients"].items():
        assert gradient == pytest.approx(free["direct"]["gradients"][name], abs=TOLERANCE), name
