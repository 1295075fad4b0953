"""`embed prove`: agreement where there is, a planted fault by name where there is one, user errors as such."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from embed_cli import prove_command
from embed_cli.run_command import RunRequest, resolve
from embed_core.config.resolve import plain
from embed_core.distributed.process_group import leave
from embed_core.errors import EmbedError
from embed_core.inspection.prove.methods import without_dropout
from embed_core.inspection.prove.variants import TOLERANCE, Finding, MeasureRequest, Variant, variants_of
from embed_core.inspection.prove.worker import Measurement, checksum_of, run
from embed_core.testing.tiny import TinyModel
from embed_core.types import Embeddings, LossOutput
from embed_hello.config import HelloLossConfig, HelloModelConfig

torch.set_num_threads(1)
FAULTS = Path(__file__).with_name("prove_faults.py")
SMALL = ("model={buckets: 64, width: 8, dimension: 8}", "data.limit=48", "held_out_rows=8", "batch_size=7")
FAULTY = {
    "1 rank, ZeRO 0, direct",
    "1 rank, ZeRO 0, cached, dropout on",
    "2 ranks, ZeRO 0, direct",
    "2 ranks, ZeRO 1, cached",
}
Embed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def embed(forked_ranks: None, command: Embed) -> Embed:
    """``embed("--ranks", "2")`` proves the small hello run → exit code, stdout, stderr."""
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return lambda *arguments: command("prove", "--plugin", "hello", *settings, *arguments)


def results(out: str) -> dict[str, str]:
    """Variant → the last word of its line."""
    names = [v.name for ranks in (1, 2) for start in variants_of(ranks) for v in start]
    lines = [line for line in out.splitlines() if not line.startswith("FAIL")]
    return {n: line.split()[-1] for n in names for line in lines if line.startswith(n + "  ")}


def test_every_way_agrees(embed: Embed, tmp_path: Path) -> None:
    code, out, err = embed("--batches", "2")
    assert (code, err) == (0, "")
    found = results(out)
    assert {name for name, result in found.items() if result == "with"} == {
        "reference",
        "1 rank, ZeRO 0, direct, dropout on",
        "2 ranks, ZeRO 0, direct, dropout on",
    }
    assert sum(result == "pass" for result in found.values()) == 13
    assert "13 of 13 variants agree" in out
    assert "this model has no dropout" in out
    chunks = [int(line.split()[-5]) for line in out.splitlines() if line.endswith("pass")]
    assert min(chunks) >= 2, "one chunk each: nothing was chunked"
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_planted_faults_fail_by_name(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detached gather, a wrong world-size factor, a chunk dropped, a random state not replayed; nothing else."""
    monkeypatch.setattr(prove_command, "WORKER", (sys.executable, str(FAULTS)))
    code, out, err = embed("--batches", "1")
    assert (code, err) == (1, "")
    found = results(out)
    assert {name for name, result in found.items() if result == "FAIL"} == FAULTY
    assert sum(result == "pass" for result in found.values()) == 13 - len(FAULTY)
    for name in FAULTY:
        assert f"FAIL: {name}: differs from" in out
    assert "9 of 13 variants agree" in out
    assert "no dropout" not in out


def test_a_tile_that_is_dropped_fails_by_name(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_command, "WORKER", (sys.executable, str(FAULTS)))
    code, out, _ = embed("--set", "loss={kind: infonce}", "--batches", "1", "--ranks", "1")
    assert code == 1
    assert results(out)["1 rank, ZeRO 0, direct, loss in tiles"] == "FAIL"


def test_one_phase(embed: Embed) -> None:
    phases = "phases=[{name: a}, {name: b, sampler: {batch_size: 3, kind: shuffled}}]"
    code, out, _ = embed("--set", phases, "--phase", "b", "--ranks", "1", "--batches", "1")
    assert code == 0
    assert "comparing on 1 batch of 3 rows" in out
    code, _, err = embed("--phase", "b")
    assert (code, err) == (2, "error: --phase 'b': this run has no phases: leave it out\n")


def test_user_errors(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = embed("--ranks", "8")
    assert code == 2
    assert err == (
        "error: --ranks 8: a batch of 7 rows (sampler.batch_size) cannot be shared by them: use at least one row per "
        "rank\n"
    )
    monkeypatch.setenv("RANK", "0")
    code, _, err = embed()
    assert (code, err) == (2, "error: embed prove starts its own ranks and RANK is set: run it without a launcher\n")


def test_a_worker_s_user_error_is_one_line_and_code_2(embed: Embed) -> None:
    code, _, err = embed("--set", "data.path=/nowhere.jsonl", "--ranks", "1")
    assert code == 2
    assert err.startswith("error: ")
    assert "/nowhere.jsonl" in err
    assert err.count("\n") == 1


def finding(**changes: Any) -> Finding:
    facts: dict[str, Any] = {
        "variant": "a",
        "against": "b",
        "loss": 1.0,
        "loss_difference": 0.0,
        "gradient_difference": 0.0,
        "scaled_difference": 0.0,
        "worst_parameter": "",
        "chunks": 2,
        "random": False,
    }
    return Finding(**{**facts, **changes})


def test_what_passes() -> None:
    assert finding(loss_difference=TOLERANCE, gradient_difference=TOLERANCE, scaled_difference=1e-3).passed
    assert not finding(loss_difference=2 * TOLERANCE).passed
    assert not finding(gradient_difference=2 * TOLERANCE).passed
    assert not finding(scaled_difference=2e-3).passed
    for name in ("loss_difference", "gradient_difference", "scaled_difference"):
        assert not finding(**{name: math.nan}).passed, name


class Given:
    """Gradients as they are."""

    chunks, random = 1, False

    def __init__(self, **gradients: torch.Tensor | None) -> None:
        self.named = gradients

    def gradients(self) -> Any:
        yield from self.named.items()


def compared(reference: Given, other: Given, losses: tuple[float, ...] = (3.0,)) -> Measurement:
    kept = Measurement(Variant("r", against="r"), Path.cwd())
    kept.keep("abc", [[3.0]], 0, reference, write=True)  # type: ignore[arg-type]
    found = Measurement(Variant("v", against="r"), Path.cwd())
    found.check_weights("abc")
    found.compare(0, list(losses), other)  # type: ignore[arg-type]
    return found


def test_differences_are_the_largest_over_parameters_and_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference = Given(a=torch.tensor([4.0, -8.0]), b=torch.tensor([1.0]), unused=None)
    same = compared(reference, Given(a=torch.tensor([4.0, -8.0]), b=torch.tensor([1.0]), unused=torch.zeros(3)))
    assert (same.loss_difference, same.gradient_difference, same.worst_parameter) == (0, 0, "")
    found = compared(reference, Given(a=torch.tensor([4.5, -8.0]), b=torch.tensor([3.0])), (3.0, 3.3))
    assert (found.gradient_difference, found.worst_parameter) == (pytest.approx(2 / 8), "b")
    assert found.loss_difference == pytest.approx(0.1)
    missing = compared(reference, Given(a=None, b=torch.tensor([1.0])))
    assert missing.gradient_difference == pytest.approx(1.0)
    lost = compared(reference, Given(a=torch.tensor([math.nan, 0]), b=torch.tensor([1.0])))
    assert math.isnan(lost.gradient_difference)


def test_a_wrong_factor_of_small_gradients_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = compared(Given(a=torch.tensor([1e-7])), Given(a=torch.tensor([2e-7])))
    assert found.gradient_difference < TOLERANCE
    assert found.scaled_difference == pytest.approx(1.0)


def test_other_weights_are_told(tmp_path: Path) -> None:
    kept = Measurement(Variant("r", against="r"), tmp_path)
    kept.keep("abc", [[3.0]], 0, Given(a=torch.ones(1)), write=True)  # type: ignore[arg-type]
    with pytest.raises(EmbedError, match=r"^v: the model's weights differ from those of 'r': a model has to draw them"):
        Measurement(Variant("v", against="r"), tmp_path).check_weights("abd")
    one, other = TinyModel(seed=0), TinyModel(seed=1)
    assert checksum_of(one) == checksum_of(TinyModel(seed=0)) != checksum_of(other)


def measure_here(directory: Path) -> None:
    """The reference and one variant of it, in this process."""
    config, _, _ = resolve(RunRequest(("hello",), overrides=SMALL), 1)
    run(MeasureRequest(plain(config), tuple(variants_of(1)[0][:2]), 1, str(directory)))


def test_weights_that_depend_on_more_than_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, calls = HelloModelConfig.build, iter(range(9))

    def drifting(self: Any, context: Any) -> Any:
        model = build(self, context)
        with torch.no_grad():
            model.project.bias += next(calls)
        return model

    monkeypatch.setattr(HelloModelConfig, "build", drifting)
    with pytest.raises(EmbedError, match="1 rank, ZeRO 0, direct: the model's weights differ from those of 'refer"):
        measure_here(tmp_path)
    leave()


def test_randomness_beside_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = HelloModelConfig.build

    def noisy(self: Any, context: Any) -> Any:
        model = build(self, context)
        model.register_forward_hook(lambda _, __, e: Embeddings(e.dense_ND + torch.rand_like(e.dense_ND)))
        return model

    monkeypatch.setattr(HelloModelConfig, "build", noisy)
    with pytest.raises(EmbedError, match="'hello': two forwards of the same texts differ with all dropout at 0"):
        measure_here(tmp_path)
    leave()


def test_a_gradient_of_zero_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(self: Any, context: Any) -> Any:
        return lambda batch, targets: LossOutput(batch.query.dense_ND.sum() * 0.0, {})

    monkeypatch.setattr(HelloLossConfig, "build", flat)
    with pytest.raises(EmbedError, match="the gradient of batch 0 is 0 everywhere: there is nothing to compare"):
        measure_here(tmp_path)
    leave()


def test_all_dropout_is_turned_off() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True))
    model[1].attention_dropout = 0.5
    model.train()
    without_dropout(model)
    x = torch.rand(2, 3, 8)
    assert torch.equal(model(x), model(x))
    assert model[1].attention_dropout == 0.0
    assert model.training


def test_a_terminal_that_knows_ascii_only(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_command, "prove", lambda *_: [finding(), finding(variant="b", loss_difference=1.0)])
    monkeypatch.setattr(sys, "stdout", open(1, "w", encoding="ascii", closefd=False))  # noqa: SIM115
    code, out, _ = embed()
    assert code == 1
    assert "diff of gradient" in out
    assert "FAIL: b: differs from 'b', the loss by 1.0e+00" in out


def test_table_on_a_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    with (tmp_path / "screen").open("w+", encoding="utf-8") as screen:
        console = Console(file=screen, force_terminal=True, width=120, color_system="standard")
        console.print(prove_command.table([finding(variant="b"), finding(), finding(loss_difference=0.5)]))
        screen.seek(0)
        shown = screen.read()
    assert "compared with" in shown
    assert "\x1b[32mpass" in shown
    assert "\x1b[1;31mFAIL" in shown
    assert "5.0e-01" in shown
