"""Pictures: what they are equal to, how they are decoded, and what is said of those that cannot be."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embed_core.errors import DataError
from embed_core.utils.hashing import described, identity
from embed_vision.datasets.images import MAX_PIXELS, PictureReader, Pixels, check, decode, pixels_key
from embed_vision.datasets.items import Mixed, Picture
from embed_vision.models.config import MAX_IMAGE_PIXELS

Bytes = Callable[..., bytes]


def gradient(size: tuple[int, int] = (30, 20)) -> Image.Image:
    ramp = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (ramp, ramp.rotate(180), Image.new("L", size, 40)))


# items


def test_pictures_are_equal_by_bytes_or_path_wherever_they_are_from() -> None:
    one, other = Picture(data=b"x", place="a:1"), Picture(path="other name", data=b"x", place="b:2")
    assert one == other
    assert hash(one) == hash(other)
    assert identity(one) == identity(other)
    assert Picture("a.png", place="a:1") == Picture("a.png")
    assert len({Picture("a.png"), Picture("b.png"), Picture(data=b"a.png"), Picture("a.png")}) == 3
    assert Picture("a.png") != "a.png"


def test_mixed_items_differ_by_text_and_by_picture() -> None:
    picture = Picture("a.png")
    made = [Mixed("red", picture), Mixed("re", picture), Mixed("red", Picture("b.png")), picture, "red"]
    assert len({identity(item) for item in made}) == len(made)
    assert identity(Mixed("red", Picture("a.png", place="x:1"))) == identity(made[0])


def test_items_describe_themselves() -> None:
    assert described(Picture("pictures/cat.png")) == "[picture cat.png]"
    assert described(Picture(data=b"x" * 1234)) == "[picture of 1,234 bytes]"
    assert described(Mixed("in winter", Picture("cat.png"))) == "[picture cat.png] in winter"
    assert "x" * 100 not in repr(Picture(data=b"x" * 100))


def test_items_survive_pickling() -> None:
    item = Mixed("in winter", Picture(data=b"x", place="a:1"))
    assert identity(item) == identity(pickle.loads(pickle.dumps(item)))


def test_keys_tell_pictures_and_texts_apart() -> None:
    picture = Picture("a.png")
    keys = {pixels_key(picture), pixels_key(picture, b"a"), pixels_key(picture, b"a", b""), pixels_key(Picture("b"))}
    assert len(keys) == 4
    assert all(len(key) % 4 for key in keys)  # token lists have four bytes a token


# decoding


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "CMYK", "P", "1", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode: str, as_bytes: Bytes) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.asarray(gradient().convert("L")).astype(np.uint16) << 8) + 3)
        expected = gradient().convert("L").convert("RGB")
    elif mode == "P":
        image = gradient().quantize(8)
        expected = image.convert("RGB")
    else:
        image = gradient().convert(mode)
        expected = image.convert("RGB")
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "LA") else "PNG"
    found = decode(Picture(data=as_bytes(image, kind)))
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_photograph_is_turned_as_its_exif_data_says(as_bytes: Bytes, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    path = tmp_path / "a.jpg"
    path.write_bytes(as_bytes(gradient(), "JPEG", exif=exif, quality=95))
    found = decode(Picture(str(path)))
    assert found.size == (20, 30)
    straight = decode(Picture(data=as_bytes(gradient(), "JPEG", quality=95)))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(straight.rotate(-90, expand=True)))


def test_an_animation_is_its_first_frame(as_bytes: Bytes) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(Picture(data=data)).getpixel((4, 4)) == (255, 0, 0)


# what cannot be read


def bad(problem: str, data: bytes = b"", path: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        check(Picture(path, data or None, "rows.jsonl:7"))
    message = str(caught.value)
    assert message.startswith("rows.jsonl:7: picture ")
    assert "\n" not in message
    assert problem in message
    return message


def test_a_missing_file(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.png")
    assert repr(path) in bad("does not exist: restore the file or remove the row", path=path)


@pytest.mark.parametrize("url", ["https://example.org/a.png", "s3://bucket/a.png", "data:image/png;base64,AAAA"])
def test_a_url_is_not_fetched(url: str) -> None:
    bad("is a URL, and nothing is fetched while a model trains: download it and give its path", path=url)


def test_bytes_that_are_no_image() -> None:
    message = bad("of 12 bytes cannot be read (UnidentifiedImageError: ", b"not an image")
    assert message.endswith("mend the image or remove the row")
    assert "0x" not in message  # the same row gives the same message


def test_a_folder(tmp_path: Path) -> None:
    bad("cannot be read (IsADirectoryError", path=str(tmp_path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_file_cut_short(kind: str, as_bytes: Bytes) -> None:
    rng = np.random.default_rng(0)
    whole = as_bytes(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    bad("mend the image or remove the row", whole[: len(whole) // 2])


def test_a_decompression_bomb(as_bytes: Bytes) -> None:
    data = as_bytes(gradient((20, 30)))
    check(Picture(data=data), 600)
    message = (
        r"^rows.jsonl:7: picture of [\d,]+ bytes is 20 x 30, more than 599 pixels: scale it down or raise model.max"
    )
    with pytest.raises(DataError, match=message):
        check(Picture(data=data, place="rows.jsonl:7"), 599)
    # One that Pillow itself refuses: 200 million pixels in some kilobytes.
    bomb = as_bytes(Image.new("1", (20_000, 10_000)), "PNG")
    assert len(bomb) < 100_000
    bad("is so large that Pillow refuses it, more than 89,478,485 pixels", bomb)


def test_the_limits_agree() -> None:
    assert MAX_PIXELS == MAX_IMAGE_PIXELS == Image.MAX_IMAGE_PIXELS


# reading many


def mean(image: Image.Image, text: str) -> Pixels:
    return {"mean": np.asarray(image, dtype=np.float32).mean((0, 1))}


def test_pictures_come_in_order_and_twice_the_same_is_decoded_once(as_bytes: Bytes) -> None:
    calls: list[str] = []

    def process(image: Image.Image, text: str) -> Pixels:
        calls.append(threading.current_thread().name)
        return mean(image, text)

    pictures = [Picture(data=as_bytes(Image.new("RGB", (4, 4), (shade, 0, 0)))) for shade in range(20)]
    reader = PictureReader(process, workers=4)
    found = reader.read([*pictures, *pictures[::-1]])
    assert [float(one["mean"][0]) for one in found] == [*range(20), *range(19, -1, -1)]
    assert len(calls) == 20
    assert all(name.startswith("embed-pictures") for name in calls)
    reader.read(pictures)
    assert len(calls) == 40  # nothing was kept


def test_what_fits_is_kept_and_the_oldest_goes_first(as_bytes: Bytes) -> None:
    calls: list[str] = []

    def process(image: Image.Image, text: str) -> Pixels:
        calls.append(text)
        return {"pixels": np.zeros(100, dtype=np.uint8)}

    a, b, c, d = (Picture(data=as_bytes(Image.new("RGB", (4, 4), (shade, 0, 0)))) for shade in range(4))
    reader = PictureReader(process, workers=1, cache_bytes=300)
    reader.read([a, b, c], ["a", "b", "c"])
    reader.read([a], ["a"])
    reader.read([d], ["d"])  # b goes
    reader.read([a, c, d], ["a", "c", "d"])
    assert calls == ["a", "b", "c", "d"]
    reader.read([b, a], ["b", "other text"])
    assert calls[4:] == ["b", "other text"]


def test_a_bad_picture_among_good_ones_is_the_one_that_is_named(as_bytes: Bytes) -> None:
    good = [Picture(data=as_bytes(Image.new("RGB", (4, 4), (shade, 0, 0)))) for shade in range(6)]
    rows = [*good[:3], Picture(data=b"broken", place="rows.jsonl:4"), *good[3:]]
    with pytest.raises(DataError, match=r"^rows.jsonl:4: picture of 6 bytes cannot be read"):
        PictureReader(mean, workers=3).read(rows)


def test_what_the_processor_refuses_is_a_bad_row_too(as_bytes: Bytes) -> None:
    def process(image: Image.Image, text: str) -> Pixels:
        raise ValueError("absolute aspect ratio must be smaller than 200")

    with pytest.raises(DataError, match=r"^rows.jsonl:2: picture of .* \(4 x 4\) is refused by the model's image pro"):
        PictureReader(process).read([Picture(data=as_bytes(Image.new("RGB", (4, 4))), place="rows.jsonl:2")])


def test_copies_of_a_model_share_the_reader() -> None:
    reader = PictureReader(mean, workers=2)
    assert copy.deepcopy(reader) is reader
