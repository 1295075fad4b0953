"""The progress of long stages: lines in logs, a bar on a terminal, nothing on other ranks."""

from __future__ import annotations

import io

from embed_data.mining.output.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_rare_and_the_last_one_is_certain() -> None:
    times = iter([0.0, 3.0, 11.0, 12.0, 13.0])
    stream = io.StringIO()
    with Progress(stream=stream, clock=lambda: next(times)).stage("mining rows", 4000) as advance:
        for _ in range(4):
            advance(1000)
    assert stream.getvalue() == "mining rows: 2,000 of 4,000\nmining rows: 4,000 of 4,000\n"


def test_what_was_done_before_counts() -> None:
    stream = io.StringIO()
    with Progress(stream=stream).stage("mining rows", 100, done=60) as advance:
        advance(40)
    assert stream.getvalue() == "mining rows: 100 of 100\n"


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with Progress(stream=stream).stage("encoding documents", 50) as advance:
        advance(50)
    assert "encoding documents" in stream.getvalue()
    assert "50/50" in stream.getvalue()


def test_silence() -> None:
    stream = Terminal()
    with Progress(stream=stream, shown=False).stage("mining rows", 10) as advance:
        advance(10)
    with Progress(stream=stream).stage("mining rows", 10, done=10) as advance:  # nothing is left to do
        advance(0)
    assert stream.getvalue() == ""
