"""The dataset kinds of embed-vision."""

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
    """What a row is and how it is drawn: the fields that every image-text dataset has."""

    retrieval_mode: Mode = "t2i"
    """What is looked for with what: t a text, i a picture, m a text with a picture (the query only)."""
    negatives: int = Field(default=1, ge=0)
    """Hard negatives drawn per row; repeated where a row has fewer; a row without any has its positive only."""
    query_prompt: str | None = None
    """Put before every query text, unless the row has a `prompt`; None = the model's own."""
    passage_prompt: str | None = None
    """Put before every passage text; None = the model's own."""
    limit: int | None = Field(default=None, gt=0)
    """Training rows used at most, evenly spread over the data; None = all."""

    def draw_options(self) -> DrawOptions:
        """As the dataset takes them."""
        from embed_vision.datasets.dataset import DrawOptions

        return DrawOptions(self.negatives, self.query_prompt, self.passage_prompt)


class ImageTextConfig(ImageTextFields):
    """Rows with pictures: a JSONL or Parquet file, or a Hugging Face dataset; pictures as paths or bytes."""

    kind: Literal["image-text"] = "image-text"
    path: str = PICTURES
    """A .jsonl, .json or .parquet file, a folder of Parquet files or one that `save_to_disk` wrote, an image folder, a
    Hugging Face dataset by name, or `pictures`: the embedded pictures, as of that kind. Relative to the working
    directory. (A folder of that name is `./pictures`.)"""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role → the data's own column: `{query: caption, positive: image}`. Roles: query, query_image, positive,
    negatives, score, prompt. Those left out are recognised by the usual names."""
    image_root: str | None = None
    """What relative paths of pictures are relative to; None = the folder of the file."""
    split: str | None = None
    """Split of a Hugging Face dataset; None = the only one, or `train`."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset of the hub; None = its default."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at the first row that cannot be used, a broken or missing picture included, with file, line and
    reason; `skip` leaves such rows out, counts them and names the first."""
    check_images: Literal["decode", "open"] = "decode"
    """`decode` reads every picture whole before the run starts, once (the result is cached); `open` looks at the
    headers only: faster, but a picture that is cut off then stops the run in the middle."""
    max_image_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Pixels of a picture beyond which its row is a bad one; as of the model."""
    held_out_rows: int | None = Field(default=0, ge=0)
    """Rows held out for evaluation, at most; None = a tenth of them, at most 200. Chosen by a hash of their content,
    together with all rows that share a query or a positive with them. Their positives and negatives are the corpus."""

    @field_validator("columns")
    @classmethod
    def _roles_exist(cls, columns: dict[str, str]) -> dict[str, str]:
        for role in columns:
            if role not in ROLES:
                raise ValueError(f"columns: unknown role {role!r}: {did_you_mean(role, ROLES)}")
        return columns

    def build(self, context: BuildContext) -> ImageTextDataset:
        """Reads every row and opens every picture once. Raises DataError and ConfigError; announces the sizes."""
        if self.path == PICTURES:
            return self._pictures().build(context)
        from embed_vision.datasets.checking import CheckOptions
        from embed_vision.datasets.dataset import ImageTextDataset
        from embed_vision.datasets.rows import RowOptions
        from embed_vision.datasets.tables import open_table

        with context.first():  # the others find what rank 0 has converted and checked
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

    Each symbol is drawn several times, in a colour, on a background, turned and scaled; the caption says symbol,
    colour and background. What is held out are combinations of symbol, colour and background that no training row has.
    """

    kind: Literal["pictures"] = "pictures"
    drawn: Literal["auto", "symbols", "shapes"] = "auto"
    """`symbols` of a font, `shapes` drawn with lines; `auto` = symbols where a font has enough of them."""
    symbols: int = Field(default=160, gt=1)
    """Different symbols at most; there are 14 shapes."""
    renderings: int = Field(default=20, gt=0)
    """Training pictures of each symbol."""
    size: int = Field(default=64, ge=16, le=1024)
    """Width and height of a picture in pixels."""
    held_out_rows: int = Field(default=160, ge=0)
    """Pictures held out for evaluation; 0 = no evaluation split."""

    def build(self, context: BuildContext) -> ImageTextDataset:
        """Drawn once and cached. Raises DataError where the cache cannot be written, or no font has `symbols`."""
        from embed_vision.pictures.files import pictures
        from embed_vision.pictures.plan import Sizes

        sizes = Sizes(self.symbols, self.renderings, self.size, self.held_out_rows)
        return pictures(context, sizes, self.drawn, self.retrieval_mode, self.draw_options(), self.limit)
