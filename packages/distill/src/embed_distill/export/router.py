"""Writes one sentence-transformers model that encodes queries with the student and documents with the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import CheckpointError
from embed_core.utils.logging import quiet_transformers
from embed_core.utils.messages import one_line

if TYPE_CHECKING:
    from embed_distill.export.config import RouterConfig

FOLDER = "router"


def write_router(student: Path, teacher: Path, config: RouterConfig) -> None:
    """Write ``student/router``. The weights keep the precision they are saved in.

    Raises CheckpointError where sentence-transformers cannot load one of the two, or their vectors differ in width.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Router

    with quiet_transformers():
        queries = _loaded(student, "the exported student", trust_remote_code=False)
        documents = _loaded(teacher, "checkpoint.router.teacher", trust_remote_code=config.trust_remote_code)
        modules = [*documents, *_cut(queries, documents, config, teacher)]
        router = Router.for_query_document(query_modules=list(queries), document_modules=modules)
        prompts = {
            "query": queries.prompts.get("query") or "",
            "document": documents.prompts.get("document") or documents.prompts.get("passage") or "",
        }
        model = SentenceTransformer(
            modules=[router], device="cpu", prompts=prompts, similarity_fn_name=queries.similarity_fn_name
        )
        model.save(str(student / FOLDER), create_model_card=False)


def _loaded(directory: Path, what: str, *, trust_remote_code: bool) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            str(directory), device="cpu", trust_remote_code=trust_remote_code, model_kwargs={"dtype": "auto"}
        )
    except Exception as error:  # OSError, ValueError, ImportError, whatever a model's own code raises
        reason = one_line(error, 200)
        raise CheckpointError(
            f"{what} ({str(directory)!r}) cannot be loaded by sentence-transformers "
            f"({type(error).__name__}: {reason}): leave checkpoint.router out, or give a teacher that it loads"
        ) from error


def _cut(queries: Any, documents: Any, config: RouterConfig, teacher: Path) -> list[Any]:
    """The modules that bring the teacher's vectors to the student's width; none where the widths are equal."""
    D, W = _width(queries), _width(documents)
    if D == W:
        return []
    if config.teacher_dims != "first" or D > W:
        fixes = "export the projection (model kind 'projected', alignment: teacher-aligned)"
        if D < W:
            fixes += ", or, if the student learned the teacher's first values, set teacher_dims: first"
        raise CheckpointError(
            f"checkpoint.router: the student's vectors have {D} values, those of the teacher {str(teacher)!r} {W}; "
            f"they cannot be compared: {fixes}"
        )
    import torch
    from sentence_transformers.models import Dense, Normalize

    # Its product keeps the first values: sentence-transformers has no module that cuts one route alone.
    cut = Dense(W, D, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.eye(D, W))
    return [cut, Normalize()]


def _width(model: Any) -> int:
    return int(model.encode(["a"], convert_to_numpy=True).shape[1])
