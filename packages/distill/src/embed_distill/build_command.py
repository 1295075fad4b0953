"""The command ``embed teacher build``: precomputes the teacher vectors of a run's texts or of a file's texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from embed_cli.ranks import check_one_launcher, joined, on_ranks
from embed_core.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import typer

    from embed_core.config.component import DatasetConfig
    from embed_core.config.context import BuildContext
    from embed_core.config.registry import Registry
    from embed_core.config.run import RunConfig
    from embed_core.protocols import Dataset
    from embed_core.types import Example, RetrievalSet, Role
    from embed_distill.datasets.config import WithTeacherConfig
    from embed_distill.store.codec import Dtype

ROLES = ("passage", "query")
DTYPES = ("fp16", "int8")


@dataclass(frozen=True)
class BuildRequest:
    """The options of the command, ``--nproc`` aside."""

    plugins: tuple[str, ...] = ()
    config: str | None = None
    overrides: tuple[str, ...] = ()
    texts: Path | None = None
    role: str = "passage"
    teachers: tuple[str, ...] = ()
    store: str | None = None
    dtype: str | None = None
    device: str = "auto"

    @property
    def of_a_run(self) -> bool:
        """Whether the texts come from a run's data."""
        return bool(self.plugins or self.config)

    def check(self) -> None:
        """Raises ConfigError for options that contradict each other, DataError for a file that is not there."""
        if self.of_a_run == (self.texts is not None):
            raise ConfigError(
                "embed teacher build: whose texts? Give --plugin or --config, or --texts FILE, one of them"
            )
        for option, value, known in (("role", self.role, ROLES), ("dtype", self.dtype or "fp16", DTYPES)):
            if value not in known:
                raise ConfigError(f"--{option} {value!r}: {did_you_mean(value, known)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {self.device!r}: {did_you_mean(self.device, ('auto', 'cpu', 'cuda'))}")
        if self.texts is not None and not self.teachers:
            raise ConfigError("embed teacher build --texts: name the model with --teacher NAME")
        if self.texts is not None and not self.texts.is_file():
            raise DataError(f"--texts {str(self.texts)!r}: there is no such file")


def execute(request: BuildRequest, nproc: int, command: typer.Context) -> None:
    """Build here, or start ``nproc`` ranks that do, with the command line of ``command``.

    Raises EmbedError for everything a user can mend.
    """
    request.check()
    check_one_launcher(nproc)
    on_ranks(command, nproc, lambda: _run(request))


def _run(request: BuildRequest) -> None:
    run, registry = _resolved(request)
    with joined(request.device) as ranks:
        from embed_core.config.context import BuildContext

        context = BuildContext(
            registry,
            seed=42 if run is None else run.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            announce=print if ranks.rank == 0 else lambda line: None,
            barrier=ranks.barrier,
        )
        _fill(request, run, context)


def _resolved(request: BuildRequest) -> tuple[RunConfig | None, Registry]:
    if not request.of_a_run:
        from embed_core.plugin.manager import activate

        return None, activate(["distill"])[1]
    from embed_cli.run_command import RunRequest, resolve

    run, _, registry = resolve(RunRequest(request.plugins, request.config, request.overrides), 1)
    return run, registry


def _fill(request: BuildRequest, run: RunConfig | None, context: BuildContext) -> None:
    from embed_distill.teacher.cached import Sources
    from embed_distill.teacher.config import TeacherConfig
    from embed_distill.teacher.precompute import fill

    named = tuple(TeacherConfig(name_or_path=name) for name in request.teachers)
    built: dict[str, Dataset] = {}
    for data, teaching in _datasets(request, run, context, built):
        teachers = named or (teaching.teachers if teaching is not None else ())
        store = request.store or (teaching.store if teaching is not None else None)
        dtype: Any = request.dtype or (teaching.dtype if teaching is not None else "fp16")
        for source in Sources.of(teachers, store, cast("Dtype", dtype), context).each:
            fill(data, source, context)


def _datasets(
    request: BuildRequest, run: RunConfig | None, context: BuildContext, built: dict[str, Dataset]
) -> Iterator[tuple[Dataset, WithTeacherConfig | None]]:
    """Yields the file, or every dataset of the run that has a teacher; with ``--teacher``, every dataset of the run."""
    if run is None:
        assert request.texts is not None, "check() sees to it"
        yield TextFile(request.texts, cast("Role", request.role)), None
        return
    found = list(_configs(run, everyone=bool(request.teachers)))
    if not found:
        raise ConfigError(
            "the run has no teacher: set teacher_model_name or data.kind with-teacher, or name one with --teacher"
        )
    for inner, teaching in found:
        name = inner.model_dump_json(serialize_as_any=True)
        if name not in built:
            if inner.waits():
                context.announce(f"teacher: data of kind {inner.kind!r} is made in the run, and its vectors with it")
                continue
            built[name] = inner.build(context)
        yield built[name], teaching


def _configs(run: RunConfig, *, everyone: bool) -> Iterator[tuple[DatasetConfig, WithTeacherConfig | None]]:
    from embed_distill.datasets.config import WithTeacherConfig

    for data in (run.data, *(phase.data for phase in run.phases if phase.data is not None)):
        if isinstance(data, WithTeacherConfig):
            yield data.inner, data
        elif everyone:
            yield data, None


class TextFile:
    """Presents the texts of a file as a :class:`~embed_core.protocols.Dataset`. Passages are only in ``texts()``;
    queries are rows. Raises DataError for a line that is not a text."""

    def __init__(self, path: Path, role: Role) -> None:
        self.path, self.name, self._role = path, path.name, role
        self._jsonl = path.suffix in (".jsonl", ".json")
        self._queries = list(self._read()) if role == "query" else []

    def __len__(self) -> int:
        return len(self._queries)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """The query of this row, without passages."""
        from embed_core.types import Example

        return Example(row, self._queries[row], ())

    def texts(self) -> Iterator[str]:
        """Yields the passages."""
        return self._read() if self._role == "passage" else iter(())

    def identities(self, row: int) -> Iterable[bytes]:
        """The text itself is its identity."""
        return [self._queries[row].encode("utf-8", "surrogatepass")]

    def source(self, row: int) -> str:
        """The file's name."""
        return self.name

    def held_out(self) -> RetrievalSet | None:
        """A file has no evaluation split: None."""
        return None

    def fingerprint(self) -> str:
        """Hex digest of the file's content and of the role of its texts."""
        digest = blake2b(self._role.encode(), digest_size=16)
        with self.path.open("rb") as file:
            while part := file.read(1 << 24):
                digest.update(part)
        return digest.hexdigest()

    def _read(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield self._text(line, number) if self._jsonl else line.rstrip("\n")

    def _text(self, line: str, number: int) -> str:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.path}:{number}: not valid JSON ({error}): one object or string a line") from None
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            known: Sequence[str] = sorted(value) if isinstance(value, dict) else ()
            raise DataError(
                f"{self.path}:{number}: no `text`: {did_you_mean('text', known)}; a line is a string or has that key"
            )
        return text
