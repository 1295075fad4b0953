"""Decodes pictures and runs them through a model's image processor, in threads and with a bounded cache."""

from __future__ import annotations

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from embed_core.errors import DataError
from embed_core.utils.messages import one_line
from embed_vision.datasets.items import Picture

MAX_PIXELS = 89_478_485
"""Pillow's own limit, above which it warns of a decompression bomb: a quarter of a gigabyte as RGB."""
MOST_WORKERS = 8
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")

Pixels = Mapping[str, NDArray[Any]]
"""An image processor's output for one picture, by the model's argument names, without the batch dimension."""
Process = Callable[[Image.Image, str], Pixels]


def decode(picture: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in RGB, rotated by its EXIF data; of an animation the first frame.

    It follows transformers' ``load_image``: colours under transparent parts are kept, CMYK, palettes and greyscale are
    converted. 16-bit greyscale is scaled to 8 bits, which Pillow alone would clip at 255.
    Raises DataError, with the row's place, for a URL, a missing or damaged file, a file that is no image, and one of
    more than ``max_pixels`` pixels.
    """
    if picture.data is None and _URL.match(str(picture.path)):
        raise _error(picture, "is a URL, and nothing is fetched while a model trains: download it and give its path")
    source: Any = BytesIO(picture.data) if picture.data is not None else picture.path
    try:
        with warnings.catch_warnings():
            # The size is checked below; other warnings are about metadata that is not used.
            warnings.simplefilter("ignore")
            with Image.open(source) as opened:
                if opened.width * opened.height <= max_pixels:
                    return _rgb(opened)
                size = f"{opened.width} x {opened.height}"
    except FileNotFoundError:
        raise _error(picture, "does not exist: restore the file or remove the row") from None
    except Image.DecompressionBombError:
        size = "so large that Pillow refuses it"
    except Exception as error:  # UnidentifiedImageError, OSError, SyntaxError, struct.error … by format and damage
        reason = re.sub(r" at 0x[0-9a-f]+", "", one_line(error))[:120]
        raise _error(
            picture, f"cannot be read ({type(error).__name__}: {reason}): mend the image or remove the row"
        ) from None
    raise _error(picture, f"is {size}, more than {max_pixels:,} pixels: scale it down or raise model.max_image_pixels")


def check(picture: Picture, max_pixels: int = MAX_PIXELS) -> None:
    """Decode the whole image. Raises :func:`decode`'s DataError for a picture that cannot be trained on."""
    decode(picture, max_pixels)


def _rgb(opened: Image.Image) -> Image.Image:
    if opened.mode.startswith("I;16"):
        opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
    turned: Image.Image = ImageOps.exif_transpose(opened)
    return turned.convert("RGB")


def _error(picture: Picture, problem: str) -> DataError:
    place = f"{picture.place}: " if picture.place else ""
    name = repr(picture.path) if picture.path else picture.name
    return DataError(f"{place}picture {name} {problem}")


class PictureReader:
    """Runs pictures through ``process``, several at a time; up to ``cache_bytes`` of results are cached.

    ``process`` takes one RGB image and the text that goes with it, and returns :data:`Pixels`. The reader is
    thread-safe. A copy is the reader itself: it holds nothing that a model's copies must not share.
    """

    def __init__(
        self,
        process: Process,
        *,
        workers: int = 0,
        cache_bytes: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._process, self._max_pixels, self._cache_bytes = process, max_pixels, cache_bytes
        self._workers = workers or default_workers()
        self._pool: ThreadPoolExecutor | None = None
        self._kept: OrderedDict[bytes, Pixels] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def read(self, pictures: Sequence[Picture], texts: Sequence[str] | None = None) -> list[Pixels]:
        """One :data:`Pixels` per picture, in order; a picture that occurs twice is decoded once.

        ``texts`` go to ``process`` with the pictures (default: empty). Raises :func:`decode`'s DataError for the first
        bad one.
        """
        jobs = list(zip(pictures, texts if texts is not None else [""] * len(pictures), strict=True))
        keys = [pixels_key(picture, text.encode("utf-8", "surrogatepass")) for picture, text in jobs]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
        for key, pixels in zip(missing, self._map(list(missing.values())), strict=True):
            found[key] = pixels
            self._keep(key, pixels)
        return [found[key] for key in keys]

    def blank(self, width: int, height: int, text: str = "") -> Pixels:
        """The pixels of a black picture of that size."""
        return self._process(Image.new("RGB", (width, height)), text)

    def _map(self, jobs: Sequence[tuple[Picture, str]]) -> list[Pixels]:
        if len(jobs) < 2 or self._workers == 1:
            return [self._one(job) for job in jobs]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="embed-pictures")
        return list(self._pool.map(self._one, jobs))

    def _one(self, job: tuple[Picture, str]) -> Pixels:
        picture, text = job
        image = decode(picture, self._max_pixels)
        try:
            return self._process(image, text)
        except Exception as error:  # an image too narrow for the model's patches, for instance
            reason = one_line(error, 160)
            raise _error(
                picture, f"({image.width} x {image.height}) is refused by the model's image processor: {reason}"
            ) from error

    def _keep(self, key: bytes, pixels: Pixels) -> None:
        size = sum(value.nbytes for value in pixels.values())
        if size > self._cache_bytes:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = pixels
            self._size += size
            while self._size > self._cache_bytes:
                _, old = self._kept.popitem(last=False)
                self._size -= sum(value.nbytes for value in old.values())


def default_workers() -> int:
    """Number of this process's cores, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores))


def pixels_key(picture: Picture, *others: bytes) -> bytes:
    """A key for :class:`embed_core.types.Encoded` that no token list has: those have four bytes a token."""
    digest = blake2b(picture.identity, digest_size=16)
    for other in others:
        digest.update(b"\0%d\0" % len(other) + other)
    return b"\0p" + digest.digest()


def processed_by(processor: Any) -> Process:
    """Wraps a transformers image processor: one image in, numpy arrays without the batch dimension out."""

    def process(image: Image.Image, text: str) -> Pixels:
        output = processor(images=[image], return_tensors="pt")
        return {name: value.numpy()[0] for name, value in output.items()}

    return process
