"""`embed explain`: what it prints of a step is what the loop trains on at that step."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from embed_cli import explain_command
from embed_cli.run_command import RunRequest, resolve
from embed_core.errors import ConfigError
from embed_core.inspection.explain import StepView, explain
from embed_core.testing.datasets import RowsDataset, tiny_dataset
from embed_core.types import Example

torch.set_num_threads(1)
SMALL = ("model={buckets: 64, width: 8, dimension: 8}", "sampler={kind: shuffled, batch_size: 6}", "evaluation=[]")


class Spy(RowsDataset):
    """Keeps every example in the order in which the loop drew them."""

    drawn: list[Example]

    def example(self, row: int, rng: Any) -> Example:
        example = super().example(row, rng)
        self.drawn.append(example)
        return example


def spied() -> Spy:
    """Rows with several positives, so that the draw matters, and with texts in common."""
    rows = [
        (f"question {n}", [f"answer {n} {'long ' * (n % 5)}", f"other answer {n}", f"third {n}"], ["shared negative"])
        for n in range(16)
    ]
    dataset = Spy(rows, name="spied", sources=2)
    dataset.drawn = []
    return dataset


def view_of(step: int, *settings: str, dataset: Any = None, ranks: int = 1) -> StepView:
    config, _, registry = resolve(RunRequest(("hello",), overrides=(*SMALL, *settings)), ranks)
    return explain(config, registry, step, world_size=ranks, dataset=dataset or spied())


def test_it_is_what_the_loop_draws(hello_run: Any) -> None:
    """Six steps of two batches over an epoch of two: the draws of later epochs come without those before."""
    settings = ("train.max_steps=6", "train.gradient_accumulation_steps=2", "engine.token_budget=64", "evaluation=[]")
    dataset = spied()
    seen = hello_run(*settings, dataset=dataset)
    assert len(dataset.drawn) == 6 * 2 * 6
    for event in reversed(seen.steps):
        view = view_of(event.step, *settings)
        rows = [row for batch in view.batches for row in batch.rows]
        drawn = dataset.drawn[12 * (event.step - 1) : 12 * event.step]
        assert [(r.row, r.source, r.place) for r in rows] == [(e.row, e.source, e.place) for e in drawn]
        assert [[t.text for t in r.texts] for r in rows] == [[e.query, *e.passages] for e in drawn]
        assert sum(batch.tokens for batch in view.batches) == event.tokens
        assert sum(batch.padded_tokens for batch in view.batches) == event.padded_tokens
        assert sum(len(batch.rows) for batch in view.batches) == event.rows
        assert (view.step, view.total_steps) == (event.step, event.total_steps)
        assert [batch.draw for batch in view.batches] == [2 * event.step - 2, 2 * event.step - 1]
    assert len({e.passages[0] for e in dataset.drawn}) > 16, "the same positive each time: the draw was not tested"


def test_texts_tokens_and_chunks() -> None:
    (batch,) = view_of(1, "engine.token_budget=64").batches
    texts = [text for row in batch.rows for text in row.texts]
    assert [t.part for t in batch.rows[0].texts] == ["query", "positive", "negative"]
    assert {t.uses for t in texts if t.text == "shared negative"} == {6}
    assert {t.uses for t in texts if t.text != "shared negative"} == {1}
    assert (batch.texts, batch.distinct_texts) == (18, 13)
    once = {t.text: t.tokens for t in texts}
    assert batch.tokens == sum(once.values()) == sum(chunk.tokens for chunk in batch.chunks)
    assert batch.padding_share == pytest.approx(1 - batch.tokens / batch.padded_tokens)
    assert len(batch.chunks) > 1
    assert {row.known_positives for row in batch.rows} == {3}
    (twice,) = view_of(1, "engine.deduplicate=false").batches
    assert twice.distinct_texts == 18
    assert {t.uses for row in twice.rows for t in row.texts} == {1}


@pytest.mark.parametrize(("stage", "equal"), [(0, False), (3, True)])
def test_several_ranks_share_the_batch(stage: int, equal: bool) -> None:
    settings = ("sampler.batch_size=7", "engine.token_budget=40", f"engine.zero_stage={stage}")
    (alone,) = view_of(2, *settings).batches
    (batch,) = view_of(2, *settings, ranks=3).batches
    assert [r.row for r in batch.rows] == [r.row for r in alone.rows]
    assert [r.rank for r in batch.rows] == [0, 0, 1, 1, 1, 2, 2]
    counts = [len(list(chunks)) for _, chunks in groupby(batch.chunks, key=lambda chunk: chunk.rank)]
    assert (len(set(counts)) == 1) is equal, counts


def test_a_step_the_run_does_not_have() -> None:
    for step in (0, 4):
        with pytest.raises(ConfigError) as error:
            view_of(step, "train.max_steps=3")
        assert str(error.value) == (
            f"--step {step}: this run has 3 steps: give one from 1 to 3, or more train.epochs or train.max_steps"
        )


PHASES = (
    "phases=[{name: a, train: {max_steps: 3}}, "
    "{name: b, loss: {kind: infonce}, sampler: {kind: shuffled, batch_size: 4}}]"
)


def test_steps_are_counted_through_the_phases(hello_run: Any) -> None:
    dataset = spied()
    seen = hello_run("train.max_steps=4", PHASES, "evaluation=[]", dataset=dataset)
    assert [event.phase for event in seen.steps] == ["a"] * 3 + ["b"] * 4
    drawn = [example.row for example in dataset.drawn]
    for step, rows in ((3, drawn[12:18]), (6, drawn[26:30])):
        view = view_of(step, "train.max_steps=4", PHASES)
        assert (view.phase, [row.row for row in view.batches[0].rows]) == ("a" if step == 3 else "b", rows)
    assert view.total_steps == 7
    with pytest.raises(ConfigError, match="--step 8: this run has 7 steps"):
        view_of(8, "train.max_steps=4", PHASES)


def test_one_phase_of_a_run() -> None:
    config, _, _ = resolve(RunRequest(("hello",), overrides=(*SMALL, PHASES)), 1)
    assert (config.only("b").in_phase(0).loss.kind, config.only(None).in_phase(0).loss.kind) == ("infonce", "hello")
    with pytest.raises(ConfigError, match=r"--phase 'c': no phase of this run: .*a, b"):
        config.only("c")
    with pytest.raises(ConfigError, match="--phase 'c': this run has no phases: leave it out"):
        config.model_copy(update={"phases": ()}).only("c")


def test_rows_that_only_the_run_can_make(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _, registry = resolve(RunRequest(("hello",), overrides=(*SMALL, PHASES)), 1)
    made = config.phases[1].model_copy(update={"data": config.data})
    monkeypatch.setattr(type(config.data), "waits", lambda self: True)
    config = config.model_copy(update={"phases": (config.phases[0], made)})
    with pytest.raises(ConfigError, match="phase 'b': its rows are made with the model of the phases before it"):
        explain(config, registry, 10**6, dataset=spied())


def test_more_ranks_than_rows() -> None:
    with pytest.raises(ConfigError, match="batch 0 has 6 rows for 7 ranks: every rank needs one, use fewer ranks or"):
        view_of(1, dataset=tiny_dataset(), ranks=7)


@pytest.fixture
def embed(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """``embed("--step", "1")`` explains a run over four rows in ``rows.jsonl`` → exit code, stdout, stderr."""
    rows = [
        {
            "query": f"what is {n}?",
            "pos": [f"the number {n}\nand " + "more " * 40],
            "neg": ["nothing"],
            "pos_scores": [0.9],
            "neg_scores": [0.25],
            "prompt": "Ask: ",
        }
        for n in range(4)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = (*SMALL[:1], "sampler={kind: shuffled, batch_size: 2}", "data.path=rows.jsonl", "data.held_out_rows=0")
    settings = [part for pair in (*pairs, "data.negatives=1", "held_out_rows=0") for part in ("--set", pair)]

    return lambda *arguments: command("explain", "--plugin", "hello", *settings, *arguments)


def test_lines(embed: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = embed("--step", "1")
    assert code == 0
    title, header, *lines = out.splitlines()
    assert title.startswith("step 1 of 20, batch 0: 2 rows, 6 texts, 5 encoded, ")
    assert header.split() == ["row", "rank", "source", "place", "part", "tokens", "score", "uses", "text"]
    query, positive, negative = (line.split(maxsplit=8) for line in lines[:3])
    assert query[2] == "rows"
    assert query[3].endswith(f"rows.jsonl:{int(query[0]) + 1}")
    assert query[4:5] + query[6:] == ["query", "-", "-", f"[Ask: ] what is {query[0]}?"]
    assert positive[4:5] + positive[6:8] == ["positive", "0.9", "-"]
    assert positive[8].startswith(f"the number {query[0]} and more")
    assert positive[8].endswith("…")
    assert len(positive[8]) == explain_command.SHORT
    assert negative[4:] == ["negative", negative[5], "0.25", "×2", "nothing"]
    assert lines[6].startswith("chunk 0 of rank 0: 2 texts of up to ")
    code, out, _ = embed("--step", "1", "--full")
    assert f"the number {query[0]}\\nand {'more ' * 40}".rstrip() in out


def test_json_is_the_step_and_nothing_else(embed: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = embed("--step", "20", "--json", "--nproc", "2")
    view = json.loads(out)
    assert code == 0
    assert "rows.jsonl" in err, "what the dataset announces goes to stderr"
    assert (view["step"], view["total_steps"], view["world_size"]) == (20, 20, 2)
    assert [row["rank"] for row in view["batches"][0]["rows"]] == [0, 1]
    assert view["batches"][0]["rows"][0]["texts"][2]["score"] == 0.25


def test_a_step_too_far_is_one_line(embed: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = embed("--step", "21")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --step 21: this run has 20 steps: give one from 1 to 20")


def test_table_on_a_terminal(
    embed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "screen").open("w+", encoding="utf-8") as screen:
        console = Console(file=screen, force_terminal=True, width=160, color_system=None)
        monkeypatch.setattr(explain_command, "Console", lambda: console)
        assert embed("--step", "1")[0] == 0
        screen.seek(0)
        shown = screen.read()
    assert "step 1 of 20, batch 0: 2 rows" in shown
    assert shown.count("nothing") == 2
    assert shown.count("rows.jsonl:") == 2, "a row's place once"
    assert "chunk 0 of rank 0" in shown
