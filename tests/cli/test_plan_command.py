"""`embed plan`: the screen, the lines, the JSON, and every message of the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from embed_cli import plan_command
from embed_core.inspection.plan.data_profile import ColumnView
from embed_core.inspection.plan.report import DataView, DeviceView, MemoryPart, Plan, SpeedView, StrategyView
from embed_core.profiling.flops import Parameters
from embed_core.profiling.throughput import LargestChunk

torch.set_num_threads(1)
GIB = 2**30
Embed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def embed(command: Embed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Embed:
    """``embed("--device", "h200")`` plans a run over eight rows in ``rows.jsonl`` → exit code, stdout, stderr."""
    monkeypatch.setenv("EMBED_CACHE", str(tmp_path / "cache"))
    rows = [{"query": f"what is {n}?", "pos": [f"the number {n} " + "more " * 9 * n], "neg": ["no"]} for n in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = (
        "train_data=rows.jsonl",
        "held_out_rows=0",
        "per_device_train_batch_size=4",
        "model={from_scratch: {vocab_size: 100, hidden: 16, layers: 1, heads: 2}, passage_max_len: 64}",
        "evaluation=[]",
        "engine.precision=fp32",
    )
    settings = [part for pair in pairs for part in ("--set", pair)]

    return lambda *arguments: command("plan", "--plugin", "bge", *settings, *arguments)


def test_lines_of_this_machine(embed: Embed) -> None:
    code, out, err = embed("--batches", "1")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "plan of bge: 1 rank of cpu (this machine), fp32, ZeRO stage 0, chunks of 1,024 tokens"
    assert [line for line in lines if not line.startswith(" ")][1:5] == ["model", "memory per rank", "data", "speed"]
    names = [line.split("  ")[1] for line in lines if line.startswith("  ")]
    for name in ("weights", "gradients", "Adam moments", "loss", "activations, direct", "tokens/s measured", "time"):
        assert name in names
    assert any(line.startswith("direct fits: ") and line.endswith("; the run takes it") for line in lines)
    assert any(line.startswith("largest chunk that fits: ") for line in lines)
    passage = next(line for line in lines if line.startswith("  passage"))
    assert "% cut, " in passage
    assert "peak" in out
    assert "rows.jsonl" in err, "what the dataset announces goes to stderr"


def test_another_device_ranks_and_stage(embed: Embed) -> None:
    code, out, err = embed("--device", "h200", "--ranks", "2", "--zero-stage", "2", "--batches", "1")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "plan of bge: 2 ranks of h200, fp32, ZeRO stage 2, chunks of 16,384 tokens"
    assert "tokens/s measured" not in out
    assert any("in fp32, dense, of the data sheet" in line for line in lines)
    assert any(line.startswith("cached fits: ") and "of 140.4 GiB" in line for line in lines)


def test_json_is_the_plan(embed: Embed, tmp_path: Path) -> None:
    code, out, err = embed("--batches", "1", "--json", "plan.json")
    assert code == 0, err
    written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert "plan of bge" in out, "the lines as well"
    assert set(written) == {field.name for field in fields(Plan)}
    for key, view in (("device", DeviceView), ("speed", SpeedView), ("data", DataView), ("parameters", Parameters)):
        assert set(written[key]) == {field.name for field in fields(view)}
    assert [part["name"] for part in written["memory"]][:2] == ["weights", "gradients"]
    assert [view["name"] for view in written["strategies"]] == ["direct", "cached"]
    assert written["strategy"] in ("direct", "cached")
    assert [column["role"] for column in written["data"]["columns"]] == ["query", "passage"]
    assert 0 < written["data"]["columns"][1]["truncated_share"] < 1
    assert written["parameters"]["total"] > written["parameters"]["trainable"] > 0
    assert written["largest_chunk"]["tokens"] > 0


def test_json_on_stdout_and_nothing_else(embed: Embed) -> None:
    code, out, _ = embed("--batches", "1", "--json", "-")
    assert code == 0
    assert json.loads(out)["name"] == "bge"


def test_a_file_that_exists_stays(embed: Embed, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("mine")
    assert embed("--json", "mine.json") == (
        2,
        "",
        "error: --json 'mine.json' exists and is not overwritten: give another file, or - for the output\n",
    )
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_a_folder_that_is_not_there(embed: Embed) -> None:
    code, out, err = embed("--json", "none/plan.json")
    assert (code, out) == (2, "")
    assert err == "error: --json 'none/plan.json': there is no folder 'none': make it, or give another file\n"


def test_an_unknown_device_is_one_line(embed: Embed) -> None:
    code, out, err = embed("--device", "abacus")
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert line.startswith("error: --device 'abacus': one of: a10, a100, ")
    assert line.endswith("without --device it is the one of this machine")


def test_table_on_a_terminal(embed: Embed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "screen").open("w+", encoding="utf-8") as screen:
        console = Console(file=screen, force_terminal=True, width=110, color_system=None)
        monkeypatch.setattr(plan_command, "Console", lambda: console)
        assert embed("--batches", "1")[0] == 0
        screen.seek(0)
        shown = screen.read()
    assert "memory per rank" in shown
    assert "direct fits" in shown
    assert len(shown.splitlines()) < 45, "one screen"
    assert max(map(len, shown.splitlines())) <= 110


def made(**changes: object) -> Plan:
    """A plan by hand, for lines that depend on sizes no test machine has."""
    speed = SpeedView(6e12, 8e12, True, 2e6, 8e5, None, None, 5000, 40_000.0, 250.0)
    plan = Plan(
        name="big",
        device=DeviceView("h200", False, 140.4 * GIB, 132.6 * GIB, 989.4e12, False),
        ranks=8,
        precision="bf16",
        zero_stage=2,
        token_budget=16_384,
        checkpointing=True,
        parameters=Parameters(1000, 500, 400, 600),
        memory=(MemoryPart("weights", 2 * GIB), MemoryPart("master weights", 0.0)),
        strategies=(
            StrategyView("direct", 160 * GIB, 200 * GIB, False),
            StrategyView("cached", 20 * GIB, 41.3 * GIB, True),
        ),
        strategy="cached",
        largest_chunk=LargestChunk(65_536, 512, False, True),
        data=DataView(4, 512, 4096, 300_000, 0.02, 0.1, (ColumnView("query", 512, 20.0, 64, None, None),)),
        speed=speed,
        notes=("the loss was measured up to 64 rows and extrapolated to 512",),
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_verdicts() -> None:
    assert plan_command.verdicts(made()) == [
        "direct does not fit: 200.0 GiB of 140.4 GiB",
        "cached fits: 41.3 GiB of 140.4 GiB; the run takes it",
        "largest chunk that fits: 65,536 tokens (engine.token_budget=65536), tried on this device",
    ]
    tight = made(strategies=(StrategyView("direct", 1, 135 * GIB, False),))
    assert plan_command.verdicts(tight)[0] == (
        "direct does not fit: 135.0 GiB of 140.4 GiB, of which tensors can fill 132.6 GiB"
    )
    nothing = made(largest_chunk=LargestChunk(0, 512, False, True))
    assert plan_command.verdicts(nothing)[-1] == (
        "no chunk fits, not even one text of 512 tokens: more ranks with --zero-stage 3, "
        "engine.gradient_checkpointing, or shorter texts"
    )
    whole = made(largest_chunk=LargestChunk(9000, 512, True, False))
    assert plan_command.verdicts(whole)[-1] == (
        "largest chunk that fits: 9,000 tokens, a rank's whole share of a batch, by what smaller chunks held"
    )


def test_lines_say_what_the_numbers_are() -> None:
    lines = plan_command.plain_lines(made())
    text = "\n".join(lines)
    assert lines[0].endswith("chunks of 16,384 tokens, gradient checkpointing")
    assert "master weights" not in text, "nothing of it"
    assert "6.0 TFLOP  of the model; 1.33× that with what is computed again" in text
    assert "989.4 TFLOP/s  in bf16, dense, of the data sheet" in text
    assert "800,000  at 40% of the peak" in text
    assert "4:10  by 40% of the peak; evaluations and the optimizer come on top" in text
    assert "20.0  tokens on average, 64 at most" in text
    assert "cut" not in text, "this model does not tell"
    assert lines[-1] == "note: the loss was measured up to 64 rows and extrapolated to 512"


def test_a_stream_without_unicode(monkeypatch: pytest.MonkeyPatch, embed: Embed, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+", encoding="ascii") as stream:
        monkeypatch.setattr(plan_command, "Console", lambda: Console(file=stream))
        monkeypatch.setattr("embed_core.inspection.plan.plan.plan", lambda *_, **__: made())
        assert embed()[0] == 0
        stream.seek(0)
        assert "1.33? that" in stream.read()
