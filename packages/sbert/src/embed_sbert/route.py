"""Finds which modules a text goes through, and its reader: looked up in a SentenceTransformer once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed_core.errors import CheckpointError
from embed_core.text.prompts import Prompt
from embed_core.text.tokenizer import TextTokenizer
from embed_core.types import Role
from embed_core.utils.messages import one_line
from embed_sbert.model import Route
from embed_sbert.readers import IDS, MASK, TASKS, BagReader, BulkReader, ModuleReader, Reader

PROBES = ("a", "Two texts, one longer than the other.", "셋째 글")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
LONG_PROBE = 2_000
"""Words of a text that most models have to cut."""
_MOST = 2**31 - 1
"""Maximum tokens of a text where a model sets no limit."""


def routes_of(built: Any) -> Mapping[Role, Route]:
    """Routes by role; one object for both where all texts go the same way. Raises CheckpointError for a Router that is
    not the first module."""
    from sentence_transformers.base.modules import Router

    names = list(built._modules)
    misplaced = [name for name in names[1:] if isinstance(built._modules[name], Router)]
    if misplaced:
        raise CheckpointError(
            f"the model has a Router as module {misplaced[0]}: only as the first module are its routes known beforehand"
        )
    _check_strides(built)
    prompts = {role: Prompt(prompt_of(built, role)) for role in TASKS}
    if isinstance(built[0], Router):
        return {role: _routed(built, role, prompts) for role in TASKS}
    if any("task" in getattr(module, "forward_kwargs", ()) for module in built):
        return {
            role: Route(_reader(built[0], prompts, names, built, role), _task(role), tuple(names)) for role in TASKS
        }
    both = Route(_reader(built[0], prompts, names, built), {}, tuple(names))
    return {"query": both, "passage": both}


def _check_strides(built: Any) -> None:
    from sentence_transformers.sentence_transformer.modules import CNN

    if any(isinstance(one, CNN) and any(stride != 1 for stride in one.stride_sizes) for one in built.modules()):
        raise CheckpointError(
            "the model has a CNN with strides: its Pooling then takes padding for text, and vectors depend on the "
            "batch; only stride_sizes of 1 are supported"
        )


def prompt_of(built: Any, role: Role) -> str | None:
    """The prompt that ``encode_query`` and ``encode_document`` choose."""
    wanted = ("query",) if role == "query" else _DOCUMENT_PROMPTS
    name = next((one for one in wanted if one in built.prompts), built.default_prompt_name)
    prompt: str | None = None if name is None else built.prompts.get(name)
    return prompt or None


def _routed(built: Any, role: Role, prompts: Mapping[Role, Prompt]) -> Route:
    from sentence_transformers.base.modules import Router

    router, first = built[0], next(iter(built._modules))
    try:
        name = router._resolve_route(task=TASKS[role], modality="text")
    except ValueError as error:
        raise CheckpointError(f"the model's Router has no way for a {role}: {one_line(error)}") from None
    inside = [f"{first}.sub_modules.{name}.{number}" for number in range(len(router.sub_modules[name]))]
    if any(isinstance(module, Router) for module in router.sub_modules[name]):
        raise CheckpointError(
            "the model has a Router inside a Router, which is not supported: train each way by itself"
        )
    names = [*inside, *list(built._modules)[1:]]
    return Route(_reader(router.sub_modules[name][0], prompts, names, built, role), _task(role), tuple(names))


def _task(role: Role) -> Mapping[str, Any]:
    return {"task": TASKS[role]}


def _reader(
    module: Any, prompts: Mapping[Role, Prompt], names: list[str], built: Any, role: Role | None = None
) -> Reader:
    """The reader for ``module``, the first of ``names``; ``role`` is given where each role has its own."""
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    if isinstance(module, StaticEmbedding):
        return BagReader(module, prompts)
    pooling = [one for one in map(built.get_submodule, names) if isinstance(one, Pooling)]
    all_in = all(one.include_prompt for one in pooling)
    text = _bulk(module, prompts) if all_in else None
    if text is None:
        return ModuleReader(module, prompts, with_task=role is not None)
    return BulkReader(text)


def _bulk(module: Any, prompts: Mapping[Role, Prompt]) -> TextTokenizer | None:
    """The core's tokeniser, if it gives the module's own ids. They are compared, because ``preprocess`` may do more
    (chat templates, expansion, sides)."""
    from sentence_transformers.base.modules import Transformer

    tokenizer: Any = getattr(module, "tokenizer", None)
    if not isinstance(module, Transformer) or not getattr(tokenizer, "is_fast", False):
        return None
    if tokenizer.pad_token_id is None:
        return None
    longest = int(min(module.max_seq_length or _MOST, _MOST))
    limits: dict[Role, int] = {
        "query": min(module.query_length or longest, longest),
        "passage": min(module.document_length or longest, longest),
    }
    text = TextTokenizer(tokenizer, limits, prompts)
    return text if all(_same(module, text, role, limits[role]) for role in TASKS) else None


def _same(module: Any, text: TextTokenizer, role: Role, limit: int) -> bool:
    """Whether ``preprocess`` gives nothing but the same ids, a mask, and token types of 0, also where it has to cut."""
    texts = [*PROBES, "word " * min(2 * limit, LONG_PROBE)]
    features = dict(module.preprocess(texts, task=TASKS[role]))
    if features.pop("modality", "text") != "text" or set(features) - {IDS, MASK, "token_type_ids"}:
        return False
    if "token_type_ids" in features and bool(features["token_type_ids"].any()):
        return False
    found = text.encode(texts, role, [""] * len(texts))
    rows = zip(found, features[IDS], features[MASK].bool(), strict=True)
    return all(one.data[IDS] == ids[mask].tolist() for one, ids, mask in rows)
