"""The dataset kinds ``image-text`` and ``pictures``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from embed_core.config.component import DatasetConfig, resolved_path
from embed_core.errors import did_you_mean

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_vision.datasets.dataset import DrawOptions, ImageTextDataset

PICTURES = "pictures"
Mode = Literal["t2i", "i2t", "i2i", "t2t", "m2i", "m2t"]
ROLES = ("query", "query_image", "positive", "negatives", "score", "prompt")
MAX_PIXELS = 89_478_485


class ImageTextFields(DatasetConfig):
    """Keys that every image-text dataset has: the mode of a row, and how examples are drawn from it."""

    retrieval_mode: Mode = "t2i"
    """Types of query and passage, in this order: t a text, i a picture, m a text with a picture (query only)."""
    negatives: int = Field(default=1, ge=0)
    """Hard negatives drawn per row; repeated where a row has fewer; a row without any has only its positive."""
    query_prompt: str | None = None
    """Prefix of every query text, unless the row has a `prompt`; None = the model's own."""
    passage_prompt: str | None = None
    """Prefix of every passage text; None = the model's own."""
    limit: int | None = Field(default=None, gt=0)
    """Largest number of training rows, evenly spread over the data; None = all."""

    def draw_options(self) -> DrawOptions:
        """The options in the form that the dataset takes."""
        from embed_vision.datasets.dataset import DrawOptions

        return DrawOptions(self.negatives, self.query_prompt, self.passage_prompt)


class ImageTextConfig(ImageTextFields):
    """Rows with pictures: a JSONL or Parquet file, or a Hugging Face dataset; pictures as paths or bytes."""

    kind: Literal["image-text"] = "image-text"
    path: str = PICTURES
    """A .jsonl, .json or .parquet file, a folder of Parquet files or one that `save_to_disk` wrote, an image folder,
    the name of a Hugging Face dataset, or `pictures` for the embedded pictures, as in kind `pictures`. Relative to the
    working directory. (A folder of that name is `./pictures`.)"""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps roles to the data's columns: `{query: caption, positive: image}`. Roles: query, query_image, positive,
    negatives, score, prompt. Roles that are left out are recognised by the usual column names."""
    image_root: str | None = None
    """Folder that relative paths of pictures start from; None = the folder of the file."""
    split: str | None = None
    """Split of a Hugging Face dataset; None = the only one, or `train`."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset of the hub; None = its default."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at the first row that cannot be used, for instance for a broken or missing picture, with file, line
    and reason; `skip` leaves such rows out, counts them and names the first."""
    check_images: Literal["decode", "open"] = "decode"
    """`decode` reads every picture fully before the run starts, once (the result is cached); `open` reads only the
    headers, which is faster, but a truncated picture then stops the run in the middle."""
    max_image_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """A picture with more pixels makes its row a bad one; the model has the same limit."""
    held_out_rows: int | None = Field(default=0, ge=0)
    """Most rows held out for evaluation; None = a tenth, at most 200. They are chosen by a hash of their content,
    together with all rows that share a query or positive. Their positives and negatives are the corpus."""

    @field_validator("columns")
    @classmethod
    def _roles_exist(cls, columns: dict[str, str]) -> dict[str, str]:
        for role in columns:
            if role not in ROLES:
                raise ValueError(f"columns: unknown role {role!r}: {did_you_mean(role, ROLES)}")
        return columns

    def build(self, context: BuildContext) -> ImageTextDataset:
        """Read every row and open every picture once. Raises DataError and ConfigError; announces the sizes."""
        if self.path == PICTURES:
            return self._pictures().build(context)
        from embed_vision.datasets.checking import CheckOptions
        from embed_vision.datasets.dataset import ImageTextDataset
        from embed_vision.datasets.rows import RowOptions
        from embed_vision.datasets.tables import open_table

        with context.first():  # rank 0 converts and checks, the others read its cache
            table = open_table(self.path, self.split, self.subset, context.cache_dir)
            root = table.folder if self.image_root is None else resolved_path(self.image_root)
            return ImageTextDataset(
                table,
                RowOptions(self.retrieval_mode, self.columns, root),
                CheckOptions(self.on_bad_row, self.check_images, self.max_image_pixels),
                self.draw_options(),
                context.announce,
                context.cache_dir,
                self.held_out_rows,
                self.limit,
            )

    def _pictures(self) -> PicturesConfig:
        common = {name: getattr(self, name) for name in ImageTextFields.model_fields if name != "kind"}
        held_out = self.held_out_rows if "held_out_rows" in self.model_fields_set else None
        return PicturesConfig.model_validate({**common, **({} if held_out is None else {"held_out_rows": held_out})})


class PicturesConfig(ImageTextFields):
    """The embedded pictures: symbols of an installed font with their Unicode names, or drawn shapes. No network.

    Each symbol is drawn several times, in a colour, on a background, turned and scaled; the caption names symbol,
    colour and background. Held-out pictures have combinations of the three that no training row has.
    """

    kind: Literal["pictures"] = "pictures"
    drawn: Literal["auto", "symbols", "shapes"] = "auto"
    """`symbols` draws those of a font, `shapes` lines; `auto` = symbols where a font has enough of them."""
    symbols: int = Field(default=160, gt=1)
    """Largest number of different symbols; there are 14 shapes."""
    renderings: int = Field(default=20, gt=0)
    """Number of training pictures of each symbol."""
    size: int = Field(default=64, ge=16, le=1024)
    """Width and height of a picture in pixels."""
    held_out_rows: int = Field(default=160, ge=0)
    """Number of pictures held out for evaluation; 0 = no evaluation split."""

    def build(self, context: BuildContext) -> ImageTextDataset:
        """Draw the pictures once and cache them. Raises DataError for a failing cache, or no font with `symbols`."""
        from embed_vision.pictures.files import pictures
        from embed_vision.pictures.plan import Sizes

        sizes = Sizes(self.symbols, self.renderings, self.size, self.held_out_rows)
        return pictures(context, sizes, self.drawn, self.retrieval_mode, self.draw_options(), self.limit)
