"""From the recipe's sections to a run of two phases.

Phase 2 is the run itself (its data are what is evaluated on), phase 1 has data, batches, loss and pace of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.config.document import lay_over
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_distill.recipe.demo import embedded_student, embedded_teacher
from embed_distill.recipe.phase1 import PHASE, placed
from embed_distill.recipe.sections import PYDOCS, SCRATCH_LENGTH, Phase1Section, Phase2Section

if TYPE_CHECKING:
    from embed_distill.recipe.recipe import DistillRecipe

DRAWN = ("file", "retrieval", "auto", "mix")
"""Dataset kinds that take the keys of phase 2 (negatives, rows held out, rows at most) where they do not say them."""


class Compiler:
    """The parts of one run."""

    def __init__(self, recipe: DistillRecipe, config_name: str, world_size: int) -> None:
        self.recipe, self.world_size = recipe, world_size
        self.model, self.phase1, self.phase2 = recipe.model, recipe.phase1, recipe.phase2
        self.training, self.paths = recipe.training, recipe.paths
        self.scratch = self.model.student == FROM_SCRATCH
        self.experiment, self.checkpoint = placed(self.model, self.paths, self.training, config_name)

    def run(self) -> dict[str, Any]:
        """The whole ``RunConfig``."""
        first = {
            "name": PHASE,
            "data": self._taught({"kind": "plain-texts", "datasets": [self.source(d) for d in self.phase1.datasets],
                                  "max_samples_per_dataset": self.phase1.max_samples_per_dataset}),
            "sampler": {"kind": "shuffled", "batch_size": self._rows_per_rank(self.phase1) * self.world_size},
            "loss": self._loss(self._phase1_terms()),
            "train": self._train(self.phase1, self._most_texts()),
        }  # fmt: skip
        last: Phase1Section | Phase2Section = self.phase1 if self.training.skip_phase2 else self.phase2
        if self._longest(self.phase1) != self._longest(last):
            first["model"] = self._student(self.phase1)
        phases = [] if self.training.skip_phase1 else [first]
        phases += [] if self.training.skip_phase2 else [{"name": "phase2"}]
        return {
            "name": self.experiment,
            "output_dir": str(self.paths.output_dir / self.experiment),
            "model": self._student(last),
            "data": self._taught(self.rows()) if self.phase2.mse_weight else self.rows(),
            "sampler": {"kind": "no-duplicates", "batch_size": self.phase2.batch_size * self.world_size},
            "loss": self._loss(self._phase2_terms()),
            "checkpoint": self._checkpoint(),
            "evaluation": self.evaluation(),
            "train": self._train(self.phase2, self.phase2.max_samples),
            "phases": phases,
        }

    def rows(self) -> dict[str, Any]:
        """Phase 2's dataset, without the teacher."""
        return self._dataset(
            self.phase2.dataset,
            limit=self.phase2.max_samples,
            negatives=self.phase2.num_negatives,
            held_out_rows=self._held_out_rows(),
        )

    def evaluation(self) -> list[dict[str, Any]]:
        """The 2×2 table, and in MRL mode every dimension."""
        places: list[dict[str, Any]] = [{"path": path} for path in self.phase2.eval_data] or [{}]
        if not self.phase2.eval_data and self._held_out_rows() == 0:
            return []
        shown: list[dict[str, Any]] = [
            {"kind": "two-by-two", **self.teacher(), **self._store(), **place} for place in places
        ]
        if self._matryoshka:
            for place in places:
                name = f"{Path(place['path']).name}-dimensions" if place else "dimensions"
                shown.append({"kind": "dimensions", "name": name, "dims": self._dims(), **place})
        return shown

    def teacher(self) -> dict[str, Any]:
        """The key that names the teacher in the kinds ``with-teacher`` and ``two-by-two``, and its value: the same
        everywhere, or vectors would be computed twice."""
        model = self.model
        longest = model.teacher_max_length or max(self._longest(self.phase1), self._longest(self.phase2))
        if model.teacher == FROM_SCRATCH:
            assert model.teacher_dim is not None, "an embedded teacher has a width"
            trained = embedded_teacher(model.teacher_dim, longest, self.rows())
            return {"teacher": lay_over(trained, model.teacher_model)}
        entry = {
            "name_or_path": model.teacher,
            "query_prompt": model.teacher_query_prompt,
            "passage_prompt": model.teacher_passage_prompt,
            "max_length": longest,
            "trust_remote_code": model.trust_remote_code,
        }
        return {"teachers": [lay_over(entry, model.teacher_model)]}

    @property
    def _matryoshka(self) -> bool:
        return not self.model.use_projection and self.model.mrl_dims != ()

    def _dims(self) -> list[int] | None:
        return None if self.model.mrl_dims is None else list(self.model.mrl_dims)

    def _rows_per_rank(self, phase: Phase1Section | Phase2Section) -> int:
        return phase.batch_size or (128 if self.scratch else 64)

    def _longest(self, phase: Phase1Section | Phase2Section) -> int:
        if self.scratch:  # one length, which its tokenizer is trained for
            return self.phase1.max_length or self.phase2.max_length or SCRATCH_LENGTH
        return phase.max_length or 512

    def _student(self, phase: Phase1Section | Phase2Section) -> dict[str, Any]:
        """As it reads texts in ``phase``."""
        longest = self._longest(phase)
        student: dict[str, Any] = {
            "kind": "transformers-encoder",
            "name_or_path": self.model.student if self.checkpoint is None else str(self.checkpoint),
            "trust_remote_code": self.model.trust_remote_code,
            "query_max_length": longest,
            "passage_max_length": longest,
            "query_prompt": self.model.query_prompt,
            "passage_prompt": self.model.passage_prompt,
        }
        if self.scratch:
            assert self.model.student_dim is not None, "an embedded student has a width"
            student["from_scratch"] = embedded_student(self.model.student_dim)
        student = dict(lay_over(student, self.model.student_model))
        start = {"init_from": self.model.teacher} if self.model.init_from_teacher and self.checkpoint is None else {}
        if not self.model.use_projection:
            return {"kind": "from-teacher", "inner": student, **start} if start else student
        hidden = self.model.projection_hidden_dim
        if hidden is None:
            assert self.model.student_dim is not None, "ModelSection checks it"
            hidden = 2 * self.model.student_dim
        return {
            "kind": "projected",
            "inner": student,
            "out_dim": self.model.teacher_dim,
            "hidden_dim": hidden or None,
            "alignment": "teacher-aligned",
            **start,
        }

    def _checkpoint(self) -> dict[str, Any]:
        layout: dict[str, Any] = {"kind": "transformers"}
        if self.model.router:
            trust = self.model.trust_remote_code
            layout = {"kind": "distilled", "router": {"teacher": self.model.teacher, "trust_remote_code": trust}}
        if self._matryoshka:
            layout = {"kind": "matryoshka", "dims": self._dims(), "inner": layout}
        if self.training.save_to_artifacts:
            directory = str(self.paths.artifacts_dir / self.experiment)
            layout = {"kind": "artifacts", "directory": directory, "inner": layout}
        return layout

    def _taught(self, inner: dict[str, Any]) -> dict[str, Any]:
        trained = self.model.teacher == FROM_SCRATCH
        kind = "with-trained-teacher" if trained else "with-teacher"
        return {"kind": kind, "inner": inner, **self.teacher(), **self._store()}

    def _store(self) -> dict[str, Any]:
        return {} if self.paths.teacher_store is None else {"store": str(self.paths.teacher_store)}

    def source(self, given: str | tuple[str, ...] | dict[str, Any]) -> dict[str, Any]:
        """One of phase 1's datasets. That of phase 2 has the same rows held out; negatives are of no use."""
        held_out_rows = self._held_out_rows() if given == self.phase2.dataset else 0
        return self._dataset(given, limit=None, negatives=0, held_out_rows=held_out_rows)

    def _dataset(self, given: str | tuple[str, ...] | dict[str, Any], **drawn: int | None) -> dict[str, Any]:
        if isinstance(given, Mapping):
            return {**drawn, **given} if given.get("kind") in DRAWN else dict(given)
        if given == PYDOCS:  # always the same rows held out
            return {"kind": "auto", "path": PYDOCS, "limit": drawn["limit"], "held_out_rows": self._held_out_rows()}
        return {"kind": "file", "path": given, **drawn}

    def _held_out_rows(self) -> int | None:
        return 0 if self.phase2.held_out_rows is None and self.phase2.eval_data else self.phase2.held_out_rows

    def _phase1_terms(self) -> dict[str, Any]:
        mse, cosine = self._teacher_terms()
        return {"mse": (mse, self.phase1.mse_weight), "cosine": (cosine, self.phase1.cosine_weight)}

    def _phase2_terms(self) -> dict[str, Any]:
        infonce = {"kind": "infonce", "temperature": self.phase2.temperature}
        return {
            "infonce": (infonce, self.phase2.infonce_weight),
            "mse": (self._teacher_terms()[0], self.phase2.mse_weight),
        }

    def _teacher_terms(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What stands for the squared error and for the cosine: in MRL mode there is no common width."""
        if self.model.use_projection:
            return {"kind": "teacher-mse"}, {"kind": "teacher-cosine"}
        if self.model.mrl_teacher == "first":
            return (
                {"kind": "teacher-mse", "teacher_dims": "first"},
                {"kind": "teacher-cosine", "teacher_dims": "first"},
            )
        return {"kind": "teacher-similarity"}, {"kind": "teacher-kl", "over": "batch"}

    def _loss(self, terms: Mapping[str, tuple[dict[str, Any], float]]) -> dict[str, Any]:
        """The terms that have a weight, added up; in MRL mode at every dimension."""
        auto = self.training.auto_scale
        if auto is None:
            auto = self.scratch or (not self.model.use_projection and self.model.mrl_teacher == "similarity")
        loss: dict[str, Any] = {
            "kind": "weighted-sum",
            "terms": {name: {"loss": term, "weight": weight} for name, (term, weight) in terms.items() if weight},
            "auto_scale": auto,
        }
        return {"kind": "matryoshka", "inner": loss, "dims": self._dims()} if self._matryoshka else loss

    def _most_texts(self) -> int | None:
        most = self.phase1.max_samples_per_dataset
        return None if most is None else most * len(self.phase1.datasets)

    def _train(self, phase: Phase1Section | Phase2Section, most_rows: int | None) -> dict[str, Any]:
        first = isinstance(phase, Phase1Section)
        usual = (2.0 if self.scratch else 1.0) if first else (1.0 if self.scratch else 3.0)
        epochs = phase.num_epochs or usual
        accumulation = phase.gradient_accumulation_steps or (1 if self.scratch else 4 if first else 8)
        steps = None
        if most_rows is not None:
            steps = math.ceil(epochs * most_rows / (self._rows_per_rank(phase) * self.world_size * accumulation))
        rates = (4e-3, 2e-5 if first else 5e-6)
        return {
            "epochs": epochs,
            "gradient_accumulation_steps": accumulation,
            "optimizer": {"learning_rate": phase.learning_rate or rates[0 if self.scratch else 1]},
            "schedule": self._schedule(phase.warmup_steps, 1000 if first else 500, steps),
        }

    def _schedule(self, given: int | None, usual: int, steps: int | None) -> dict[str, Any]:
        """``given`` steps of warm-up. A phase of fewer than ten times as many (``steps`` is the most it may have) warms
        up for a tenth: many ranks make few steps of the same rows, and the rate would never be reached."""
        warmup = usual if given is None else given
        if (given is None and self.scratch) or (steps is not None and steps < 10 * warmup):
            return {"kind": "linear", "warmup_ratio": 0.1, "warmup_steps": None}
        return {"kind": "linear", "warmup_steps": warmup}
