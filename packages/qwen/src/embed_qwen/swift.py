"""The only access to ms-swift: checks its installation, loads models and losses. No other module here imports it.

ms-swift reads its settings, and the ranks of a run, from environment variables. Here each call gets its own, put back
afterwards, and sees a single rank: gathering and averaging are the core's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from embed_core.errors import CheckpointError, PluginError
from embed_core.utils.messages import one_line

PACKAGE = "ms-swift"
OLDEST = "4.6.0"
"""Earlier releases shrink InfoNCE's gradient by the number of ranks, and can draw a positive as a negative."""
CAPPED = ("transformers", "datasets", "peft")
"""Packages of which ms-swift allows only some versions."""
MODEL_TYPE = "qwen3_emb"
"""ms-swift's name of the model family, which it could not tell from a local path alone."""
_ALONE = {"RANK": None, "LOCAL_RANK": None, "WORLD_SIZE": None, "LOCAL_WORLD_SIZE": None, "_PATCH_WORLD_SIZE": None}


class Loaded(NamedTuple):
    """A model as ms-swift loads it."""

    causal: Any
    """The transformers causal language model with ms-swift's pooling hook."""
    tokenizer: Any


def require() -> None:
    """Raises PluginError, one line, where ms-swift is absent, too old, or does not allow what is installed beside it.

    Only the packages' metadata is read: nothing is imported.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise PluginError(
            f"plugin 'qwen' needs {PACKAGE} {OLDEST} or later, which is not installed: "
            f"pip install '{PACKAGE}>={OLDEST}'"
        ) from None
    if Version(found) < Version(OLDEST):
        raise PluginError(
            f"plugin 'qwen' needs {PACKAGE} {OLDEST} or later, and {found} is installed, whose losses are wrong on "
            f"several ranks: pip install '{PACKAGE}>={OLDEST}'"
        )
    for line in metadata.requires(PACKAGE) or ():
        wanted = Requirement(line)
        if wanted.name not in CAPPED or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            raise PluginError(
                f"{PACKAGE} {found} needs {wanted.name}, which is not installed: pip install '{wanted}'"
            ) from None
        if not wanted.specifier.contains(version, prereleases=True):
            raise PluginError(
                f"{PACKAGE} {found} does not allow {wanted.name} {version}, it needs {wanted.name}{wanted.specifier}: "
                f"pip install '{wanted}', or a later {PACKAGE}"
            )


def load(directory: Path, *, trust_remote_code: bool = False) -> Loaded:
    """The model and the tokenizer of a directory, in fp32 on the CPU. Raises CheckpointError, PluginError."""
    import torch

    from embed_core.utils.logging import quiet_transformers

    imported, quiet = _imported("swift.model.register"), quiet_transformers("swift")
    with imported as register, quiet, _trusting(register, trust_remote_code):
        try:
            causal, tokenizer = register.get_model_processor(
                str(directory),
                task_type="embedding",
                model_type=MODEL_TYPE,
                torch_dtype=torch.float32,
                attn_impl="sdpa",
                device_map="cpu",
            )
        except Exception as error:  # OSError, ValueError, SafetensorError, KeyError, RuntimeError …
            reason = one_line(error, 200)
            raise CheckpointError(
                f"model directory {str(directory)!r} cannot be loaded by {PACKAGE} as {MODEL_TYPE} "
                f"({type(error).__name__}: {reason})"
            ) from error
    return Loaded(causal, tokenizer)


def loss(name: str) -> Callable[..., Any]:
    """``swift.loss.loss_map[name]`` as a function ``(sentences_ND, labels, variables) → scalar``.

    ``sentences_ND`` are the vectors as ms-swift lays a batch out, ``labels`` what goes with them, ``variables`` the
    environment variables that the loss reads. Raises PluginError where ms-swift is absent or unfit.
    """
    with _imported("swift.loss") as module:
        # The losses ask their trainer one thing: whether it is one of Megatron's.
        own = module.loss_map[name](None, _NoTrainer())

    def call(sentences_ND: Any, labels: Any, variables: Mapping[str, str | None] | None = None) -> Any:
        with alone(**(variables or {})):
            return own({"last_hidden_state": sentences_ND}, labels)

    return call


class _NoTrainer:
    """Stands in for a trainer."""


@contextmanager
def alone(**variables: str | None) -> Iterator[None]:
    """Sets ``variables`` in the environment (``None`` unsets), without a launcher's variables: as a single rank."""
    wanted = {**_ALONE, **variables}
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _imported(name: str) -> Iterator[Any]:
    """A module of ms-swift, for work as a single rank; its first import takes seconds.

    Importing ms-swift switches tokenizers' threads off for the whole process; that is put back.
    """
    import importlib

    require()
    with alone(TOKENIZERS_PARALLELISM=os.environ.get("TOKENIZERS_PARALLELISM")):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises
            reason = one_line(error, 200)
            raise PluginError(
                f"{PACKAGE} {metadata.version(PACKAGE)} cannot be imported ({type(error).__name__}: {reason}): "
                f"pip install --force-reinstall '{PACKAGE}>={OLDEST}'"
            ) from error
        yield module


@contextmanager
def _trusting(register: Any, trust: bool) -> Iterator[None]:
    """Limits trust in remote code: ms-swift trusts that of every model unless its loader is told otherwise."""
    loader = register.ModelLoader
    before = loader.default_trust_remote_code
    loader.default_trust_remote_code = trust
    try:
        yield
    finally:
        loader.default_trust_remote_code = before
