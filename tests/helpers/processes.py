"""Start Python commands in processes that are ready at once.

A Python process that imports torch, transformers and DeepSpeed needs seconds before it does anything. Here a server
process imports them once per pytest process, and every command is a fork of that server: a process of its own, with
its own environment, signals and exit code. ``Popen``, ``run`` and ``launch`` are called like those of ``subprocess``
and ``embed_cli.launch``.

Use the real ``subprocess`` where a test is about starting: what a command imports, which variables it needs, or
programs that start Python themselves (torchrun, the deepspeed launcher).
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

import embed_cli.launch

PRELOAD = [
    "torch",
    "torch.distributed.tensor",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
    "accelerate",
    "ir_measures",
    "safetensors.torch",
    "embed_cli.run_command",
    "embed_core.train.run",
    "embed_hello.plugin",
]
"""What the server imports. None of it may start a thread or run a backward pass: neither survives a fork."""
_method = "forkserver"
"""How this process starts another one. A forked command forks itself: it is as fresh as the server."""


class Popen:
    """``[sys.executable, ...]`` with ``-m module``, ``-c program`` or a script, run in a fork of the server.

    This is the part of ``subprocess.Popen`` that the tests use. With ``PIPE`` the output is collected in a file, and
    ``communicate`` returns it as text.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = [str(word) for word in command]
        assert self.args[0] == sys.executable, f"not a command of this Python: {self.args}"
        self._files = [_stream(number, stream) for number, stream in ((1, stdout), (2, stderr))]
        context: Any = multiprocessing.get_context(_method)
        if _method == "forkserver":
            context.set_forkserver_preload(PRELOAD)
        arguments = (self.args[1:], dict(os.environ if env is None else env), str(cwd or Path.cwd()))
        descriptors = [_Descriptor(file if isinstance(file, int) else file.fileno()) for file in self._files]
        self._process = context.Process(target=_become, args=(*arguments, descriptors, start_new_session))
        self._process.start()
        self.pid = int(self._process.pid)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (_collected(file) for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str | Path],
    *,
    capture_output: bool = False,
    check: bool = False,
    timeout: float | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with text output; a command that takes too long is killed."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = Popen(command, **options)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    result = subprocess.CompletedProcess(process.args, process.wait(), out, err)
    if check:
        result.check_returncode()
    return result


def launch(command: Sequence[str], ranks: int) -> int:
    """``embed_cli.launch.launch`` with forked ranks."""
    with forked_ranks():
        return embed_cli.launch.launch(command, ranks)


@contextmanager
def forked_ranks() -> Iterator[None]:
    """The ranks that ``embed_cli`` starts within this block are forks of the server."""
    forked = SimpleNamespace(Popen=Popen, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    with mock.patch.object(embed_cli.launch, "subprocess", forked):
        yield


def _become(
    words: list[str], environment: dict[str, str], folder: str, descriptors: list[_Descriptor], new_session: bool
) -> None:
    """Turn this fork of the server into the process of the command."""
    global _method
    _method = "fork"
    gc.freeze()
    if new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor.number, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.orig_argv = [sys.executable, *words]
    for path in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        _add_to_path(path)
    try:
        with forked_ranks():
            _execute(words)
    finally:
        atexit._run_exitfuncs()


def _add_to_path(path: str) -> None:
    """What a new Python does with an entry of PYTHONPATH that this process does not have yet."""
    if path and path not in sys.path:
        sys.path.insert(0, path)
        if (Path(path) / "sitecustomize.py").exists():
            runpy.run_path(str(Path(path) / "sitecustomize.py"))


def _execute(words: list[str]) -> None:
    """Run what follows ``python`` on a command line."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


class _Descriptor:
    """An open file that is handed on to the forked process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _stream(number: int, stream: int | IO[Any] | None) -> int | IO[Any]:
    if stream is None:
        return number
    if stream == subprocess.PIPE:
        return tempfile.TemporaryFile("w+", encoding="utf-8")
    if stream == subprocess.DEVNULL:
        return Path(os.devnull).open("r+b")
    return stream


def _collected(file: int | IO[Any]) -> str:
    if isinstance(file, int) or "b" in getattr(file, "mode", ""):
        return ""
    file.seek(0)
    return str(file.read())
