"""From the recipe's keys to the parts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embed_core.config.document import lay_over
from embed_core.models.from_scratch import FROM_SCRATCH
from embed_vision.datasets.config import PICTURES
from embed_vision.recipe.defaults import (
    INFONCE_TEMPERATURE,
    LOSSES,
    SCHEDULES,
    tokens_per_picture,
    trackers,
)

if TYPE_CHECKING:
    from embed_vision.recipe.recipe import VisionRecipe

OWN_DATA = ("image_root", "column_mapping", "on_bad_row", "check_images", "split")
"""Keys that are about data of one's own."""
REVERSIBLE: Mapping[str, str] = {"t2i": "i2t", "i2t": "t2i"}
"""Modes whose opposite direction is a mode of its own, and is evaluated too."""
SANITY_SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "image_size": 16, "vocab_size": 600}
SANITY_WIDTH = 16


class Compiled:
    """The parts of the run that ``recipe`` stands for."""

    def __init__(self, recipe: VisionRecipe) -> None:
        self.recipe = recipe
        self.dims: tuple[int, ...] = tuple(recipe.addon_keys.get("mrl_dims") or ())

    def run(self, world_size: int) -> dict[str, Any]:
        """All of it."""
        recipe = self.recipe
        return {
            **recipe.compile_output(),
            "name": recipe.run_name or recipe.name,
            "model": lay_over(self._inner(), recipe.model),
            "data": self.data(),
            "sampler": {"kind": "no-duplicates", "batch_size": self.batch_size * world_size},
            "loss": self.loss(),
            "checkpoint": {"kind": "vision", **recipe.compile_checkpoint()},
            "evaluation": self.evaluation(),
            "train": self.train(),
            "engine": self.engine(),
            "tracking": {**recipe.compile_tracking(), "report_to": trackers(recipe.report_to)},
        }

    @property
    def batch_size(self) -> int:
        """Rows per rank."""
        return int(self.recipe.chosen("batch_size"))

    def _inner(self) -> dict[str, Any]:
        recipe = self.recipe
        same = {
            "trust_remote_code": recipe.trust_remote_code,
            "max_length": recipe.max_seq_length,
            "image_workers": recipe.num_workers,
        }
        if recipe.scratch:
            return {"kind": "clip", "name_or_path": FROM_SCRATCH, "from_scratch": self._shape(), **same}
        if recipe.encoder_mode == "composed":
            saved = None if recipe.named == FROM_SCRATCH else recipe.named
            parts = {"text_name_or_path": recipe.text_model_name, "image_name_or_path": recipe.image_model_name}
            pooling = recipe.pooling_method
            more = {} if pooling is None else {"text_pooling": pooling, "image_pooling": pooling}
            width = {} if recipe.projection_dim is None else {"width": recipe.projection_dim}
            return {"kind": "composed", "name_or_path": saved, **parts, **more, **width, **same}
        kind = {"auto": "vision", "clip_like": "clip", "vlm_generic": "vlm"}[recipe.encoder_mode]
        return {"kind": kind, "name_or_path": recipe.named, **same}

    @property
    def _seeing(self) -> str:
        """The model, or the part of a composed one, that pictures go through."""
        recipe = self.recipe
        if recipe.encoder_mode != "composed":
            return recipe.named
        return recipe.image_model_name or f"{recipe.named}/image"

    def _shape(self) -> dict[str, Any]:
        """The shape of a random model."""
        width = max(self.dims, default=0) or self.recipe.projection_dim
        return {} if width is None else {"width": width}

    def data(self) -> dict[str, Any]:
        """The training rows."""
        recipe = self.recipe
        return dict(lay_over({**self._rows(recipe.data_path, recipe.split), **self._held_out()}, recipe.data))

    def _held_out(self) -> dict[str, Any]:
        recipe = self.recipe
        if recipe.held_out_rows is not None:
            return {"held_out_rows": recipe.held_out_rows}
        if recipe.val_data_path is not None:
            return {"held_out_rows": 0}
        return {} if recipe.data_path == PICTURES else {"held_out_rows": None}

    def _rows(self, path: str, split: str | None) -> dict[str, Any]:
        recipe = self.recipe
        same = {"retrieval_mode": recipe.retrieval_mode, **recipe.compile_negatives()}
        if path == PICTURES:
            return {"kind": "pictures", **same}
        return {
            "kind": "image-text",
            "path": path,
            "columns": dict(recipe.column_mapping),
            "image_root": recipe.image_root,
            "on_bad_row": recipe.on_bad_row,
            "check_images": recipe.check_images,
            "split": split,
            **same,
        }

    def loss(self) -> dict[str, Any]:
        """The loss of ``loss_type``."""
        recipe, kind = self.recipe, LOSSES[self.recipe.loss_type]
        temperature = recipe.temperature
        if kind == "infonce":
            return {"kind": kind, "symmetric": True, "temperature": temperature or INFONCE_TEMPERATURE}
        if kind == "triplet":
            return {"kind": kind, "margin": recipe.triplet_margin}
        if temperature is None:
            return {"kind": kind}
        return (
            {"kind": kind, "temperature": temperature} if kind == "clip" else {"kind": kind, "scale": 1 / temperature}
        )

    def evaluation(self) -> list[dict[str, Any]]:
        """Retrieval, in both directions where there are two, and the loss; nothing where there are no rows for it."""
        recipe = self.recipe
        rows: dict[str, Any] = {}
        if recipe.val_data_path is not None:
            rows = {"data": {**self._rows(recipe.val_data_path, recipe.val_split), "negatives": 0}}
        elif self.data().get("held_out_rows", True) == 0:
            return []
        mode = recipe.retrieval_mode
        one = {"kind": "image-text-retrieval", "gallery": recipe.gallery, **rows}
        found = [{**one, "name": mode}]
        if mode in REVERSIBLE:
            found.append({**one, "name": REVERSIBLE[mode], "direction": "reverse"})
        loss = {"kind": "validation-loss", "loss": self.loss(), "batch_size": self.batch_size, **rows}
        return [*found, loss]

    def train(self) -> dict[str, Any]:
        """How long, and how it steps; ``scheduler_type: constant`` has no warm-up."""
        recipe = self.recipe
        train = recipe.compile_train(
            epochs=recipe.chosen("epochs"),
            learning_rate=recipe.lr or recipe.chosen("learning_rate"),
            schedule=SCHEDULES[recipe.scheduler_type],
        )
        if recipe.scheduler_type == "constant":
            train["schedule"] |= {"warmup_ratio": 0.0, "warmup_steps": 0}
        return train

    def engine(self) -> dict[str, Any]:
        """Precision, and how a batch is computed."""
        recipe = self.recipe
        chunks: dict[str, Any] = {}
        if recipe.use_gradient_cache is not None:
            chunks["strategy"] = "cached" if recipe.use_gradient_cache else "direct"
        if recipe.gradient_cache_chunk_size is not None:
            shape = lay_over(self._inner(), recipe.model).get("from_scratch", {})
            chunks["token_budget"] = recipe.gradient_cache_chunk_size * tokens_per_picture(self._seeing, shape)
        return {**recipe.compile_engine(), **chunks}

    def sanity(self) -> dict[str, Any]:
        """Laid over the run by ``--sanity``."""
        recipe = self.recipe
        overlay: dict[str, Any] = {}
        if recipe.scratch:
            width = {} if self.dims or recipe.projection_dim else {"width": SANITY_WIDTH}
            overlay["model"] = {"from_scratch": {**SANITY_SHAPE, **width}}
        rows: dict[str, Any] = {"limit": 64}
        if recipe.data_path == PICTURES:
            rows |= {"symbols": 16, "renderings": 4, "size": 24, "held_out_rows": 16}
        overlay["data"] = {key: value for key, value in rows.items() if key not in recipe.data}
        small = {"image-text-retrieval": {"query_limit": 16, "corpus_limit": 32}, "validation-loss": {"limit": 16}}
        evaluation = [{**one, **small[one["kind"]]} for one in self.evaluation()]
        for one in evaluation:
            if one["kind"] == "validation-loss":
                one["batch_size"] = 8
        return {**overlay, "evaluation": evaluation}
