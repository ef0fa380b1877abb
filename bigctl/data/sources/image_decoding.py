"""How a picture becomes numbers, in training and in prediction alike.

The EXIF orientation is applied; transparency is laid over black, or white where that is asked for, because the colour
below transparent pixels is arbitrary; 16-bit grey is scaled to 8 bits; palettes are looked up; of an animation the
first frame is taken; resizing is bilinear and antialiased. A picture of another shape is stretched, or its middle is
taken (`data.resize`); where a part is taken, a large JPEG is decoded at a half, a quarter or an eighth of its size as
long as that is no smaller than what is wanted.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeGuard, TypeVar

import numpy as np

from bigctl import memory
from bigctl.config import schema
from bigctl.data.files.paths import hidden, similar, some
from bigctl.data.pictures import crops
from bigctl.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Part = Callable[[int, int, tuple[int, int]], crops.Box]
"""From the width and height of a picture, and what is wanted (height, width), to the part that is taken of it."""
AUTO, STRETCH, CROP = "auto", "stretch", "crop"
FAST = "fast"
"""Stretched, too, out of a JPEG that is decoded at a part of its size: for what is only looked at."""
AS_EVER = (AUTO, STRETCH)
"""Of `data.resize`, what an identity that is older than the key does not tell."""

IMAGE_SUFFIXES = frozenset(schema.ImageFolder.suffixes)
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
# Enough files a task that queueing costs nothing, few enough that a hundred pictures keep every core busy.
_FILES_A_TASK = 16


def is_image_name(file: Path) -> bool:
    return not hidden(file.name) and file.suffix.lower() in IMAGE_SUFFIXES


def read_image(
    file: Path | bytes,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    background: str = "black",
    resize: str = STRETCH,
) -> np.ndarray:
    """Decode one image, a file or its content, exactly as `decode_all` does: uint8 [H, W, C].

    Raises:
        DataError: it is missing, not an image, damaged, or too large.
    """
    check_shape(image_size, channels)
    with _opened(file) as image:
        channels = channels or (1 if _is_grey(image) else 3)
        return _to_array(image, image_size, channels, background, part_of(resize))


def read_part(
    content: bytes, name: str, image_size: tuple[int, int] | None, channels: int, background: str, part: Part | None
) -> np.ndarray:
    """A part of one image out of its content, resized where a size is given: uint8 [H, W, C]. Raises DataError as
    `read_image` does."""
    with _opened(content, name) as image:
        return _to_array(image, image_size, channels, background, part)


def part_of(resize: str) -> Part | None:
    """What is taken of a picture where nothing is drawn; None for all of it."""
    return {CROP: crops.middle, FAST: crops.whole}.get(resize)


def is_picture(value: object) -> TypeGuard[Image.Image]:
    """Whether something is an image of Pillow, which is imported only where somebody else has."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def read_pictures(
    pictures: Sequence[Image.Image],
    image_size: tuple[int, int] | None,
    channels: int | None,
    background: str = "black",
    resize: str = STRETCH,
) -> np.ndarray:
    """Images of Pillow as if they were files: uint8 [N, H, W, C]. Raises DataError as `decode_all` does."""
    check_shape(image_size, channels)
    channels = channels or (1 if all(map(_is_grey, pictures)) else 3)
    part = part_of(resize)
    arrays = [_to_array(picture, image_size, channels, background, part, whole=True) for picture in pictures]
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            height, width = arrays[0].shape[:2]
            raise DataError(
                f"images differ in size: number {number} is {array.shape[0]}x{array.shape[1]} (height x width), "
                f"number 0 is {height}x{width}",
                hint=f"data.image_size=[{height},{width}] resizes them all",
            )
    return np.stack(arrays) if arrays else np.empty((0, *(image_size or (0, 0)), channels), np.uint8)


def check_shape(image_size: tuple[int, int] | None, channels: int | None) -> None:
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
        raise DataError(f"{list(image_size)} is no image size", where="data.image_size", hint="give [HEIGHT,WIDTH]")
    if channels not in (None, 1, 3):
        raise DataError(f"images cannot have {channels} channels", where="data.channels", hint="1 is grey, 3 is RGB")


def decode_all(
    files: Sequence[Path | bytes],
    image_size: tuple[int, int] | None,
    channels: int | None,
    names: Sequence[str] | None = None,
    bad: dict[int, DataError] | None = None,
    background: str = "black",
    resize: str = STRETCH,
) -> np.ndarray:
    """All files as one uint8 [N, H, W, C]: headers are read first, so that most mistakes show within seconds.

    Args:
        files: paths, or the contents of files, with `names` for messages.
        image_size, channels: as of `read_image_folder`.
        background: "black" or "white", below what is transparent.
        resize: "stretch" or "crop", what becomes of another shape.
        bad: where it is given, files that cannot be used are left out and named here by their place.

    Raises:
        DataError: for a file that cannot be used, without `bad`; or if none can.
    """
    names = [str(file) for file in files] if names is None else names
    wrong: dict[int, DataError] = {}
    headers = each(range(len(files)), lambda i: header(files[i], names[i]), wrong)
    refuse(wrong, bad, len(files))
    channels = channels or (1 if all(grey for _, grey in headers.values()) else 3)
    model = next(iter(headers))
    size = image_size or headers[model][0]

    if image_size is None:
        for i, (found, _) in headers.items():
            if found != size:
                raise differs(names[i], found, names[model], size)
    what = f"{len(headers)} images of {size[0]}x{size[1]}"
    memory.require(len(headers) * math.prod(size) * channels, what, where=names[model])
    try:
        images = np.empty((len(headers), *size, channels), np.uint8)
    except MemoryError:
        gib = len(headers) * math.prod(size) * channels / 2**30
        raise DataError(
            f"{len(headers)} decoded images need {gib:.1f} GiB of memory", hint="give a smaller data.image_size"
        ) from None
    place = {i: row for row, i in enumerate(headers)}

    def decode(i: int) -> None:
        with _opened(files[i], names[i]) as image:
            array = _to_array(image, image_size, channels, background, part_of(resize))
        if array.shape != images.shape[1:]:  # an orientation stored after the pixels is not in the header
            raise differs(names[i], array.shape, names[model], size)
        images[place[i]] = array

    decoded = each([*headers], decode, wrong)
    refuse(wrong, bad, len(files))
    return images if len(decoded) == len(headers) else images[[place[i] for i in decoded]]


def differs(name: str, found: Sequence[int], model: str, size: Sequence[int]) -> DataError:
    """What to say of a picture that has not the size of another one, the model for all."""
    return DataError(
        f"images differ in size: this one is {found[0]}x{found[1]} (height x width), {model} is {size[0]}x{size[1]}",
        where=name,
        hint=f"data.image_size=[{size[0]},{size[1]}] resizes them all",
    )


def decode_each(
    files: Sequence[bytes],
    size: tuple[int, int],
    channels: int,
    names: Sequence[str],
    background: str,
    resize: str = STRETCH,
) -> tuple[np.ndarray, dict[int, DataError]]:
    """All files as one uint8 [N, H, W, C], black where one cannot be used; and what is wrong with these, by place."""
    images, wrong = np.zeros((len(files), *size, channels), np.uint8), dict[int, DataError]()

    def decode(i: int) -> None:
        with _opened(files[i], names[i]) as image:
            images[i] = _to_array(image, size, channels, background, part_of(resize))

    each(range(len(files)), decode, wrong)
    return images, wrong


def refuse(wrong: dict[int, DataError], bad: dict[int, DataError] | None, count: int) -> None:
    """Raise what is wrong with some files, or note it in `bad`."""
    if bad is not None and len(wrong) < count:
        bad |= wrong
    elif wrong:
        first, *others = (wrong[i] for i in sorted(wrong))
        if not others:
            raise first
        shown = some([str(error.where) for error in others], 3)
        message = f"{first.message}; {len(others)} more files cannot be used: {shown}"
        raise DataError(message, where=first.where, hint=first.hint)


def each(places: Sequence[int], work: Callable[[int], T], wrong: dict[int, DataError]) -> dict[int, T]:
    """`work` of each place, on threads, in order; errors go to `wrong`."""

    def part(start: int) -> list[tuple[int, T | DataError]]:
        results: list[tuple[int, T | DataError]] = []
        for i in places[start : start + _FILES_A_TASK]:
            try:
                results.append((i, work(i)))
            except DataError as error:
                results.append((i, error))
        return results

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        results = [result for done in pool.map(part, range(0, len(places), _FILES_A_TASK)) for result in done]
    wrong |= {i: result for i, result in results if isinstance(result, DataError)}
    return {i: result for i, result in results if not isinstance(result, DataError)}


@contextmanager
def _opened(file: Path | bytes | IO[bytes], name: str | None = None) -> Iterator[Image.Image]:
    """An open image; whatever goes wrong in it, then or while it is used, is a DataError that names the file."""
    from PIL import Image, UnidentifiedImageError

    where = name or ("image data" if isinstance(file, bytes) else str(file))
    limit = Image.MAX_IMAGE_PIXELS or 2**27
    hint = "replace or delete it"
    try:
        if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
            raise DataError("this is no file, but a pipe or the like", where=where, hint=hint)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as image:
            if image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+x\d+ pixels|\(\d+ pixels\)", str(error))  # what Pillow says names another limit
        has = f": it has {found[0].strip('()')}" if found else ""
        raise DataError(f"image is too large, above {limit} pixels{has}", where=where, hint=hint) from None
    except FileNotFoundError:
        raise DataError("no such file", where=where, hint=similar(Path(where))) from None
    except UnidentifiedImageError:
        empty = not (file.stat().st_size if isinstance(file, Path) else file if isinstance(file, bytes) else _end(file))
        what = "the file is empty" if empty else f"its content is none of {', '.join(_FORMATS)}"
        raise DataError(f"this is not an image: {what}", where=where, hint=hint) from None
    # Decoders meet damaged files with whatever exception comes first: struct.error, IndexError, SyntaxError, ...
    except Exception as error:
        raise DataError(f"the image cannot be decoded: {error}", where=where, hint=hint) from None


def _end(file: IO[bytes]) -> int:
    return file.seek(0, os.SEEK_END)


def header(file: Path | bytes | IO[bytes], name: str) -> tuple[tuple[int, int], bool]:
    """(height, width) as it will be seen, and whether it is grey, without decoding the pixels."""
    with _opened(file, name) as image:
        # Pillow would decode the whole PNG to look for an orientation behind the pixels.
        known = image.format != "PNG" or "exif" in image.info
        turned = known and _orientation(image) >= 5
        return ((image.width, image.height) if turned else (image.height, image.width)), _is_grey(image)


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [0, 0, 1]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; of 5 to 8 height and width are swapped."""
    try:
        value = image.getexif().get(0x0112, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    except Exception:  # a broken tag is no reason to refuse a sound picture
        return 1


def _to_array(
    image: Image.Image,
    image_size: tuple[int, int] | None,
    channels: int,
    background: str,
    part: Part | None = None,
    *,
    whole: bool = False,
) -> np.ndarray:
    """uint8 [H, W, C] of an open image; see the top of this file for the rules. `whole`: decode at full size, as an
    image is not to be changed that belongs to somebody else."""
    from PIL import Image

    box: crops.Box | None = None
    orientation = 1
    if part is not None and image_size is not None:
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        box = part(width, height, image_size)
        if not whole:
            box = _drafted(image, box, image_size, turned=orientation >= 5)
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        below = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(below, image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which would copy it
    turn = Image.Transpose
    turns = (
        turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_270, turn.TRANSVERSE,
        turn.ROTATE_90,
    )  # fmt: skip
    if orientation > 1:
        image = image.transpose(turns[orientation - 2])
    if image_size is not None and (image.size != (image_size[1], image_size[0]) or box is not None):
        image = image.resize((image_size[1], image_size[0]), Image.Resampling.BILINEAR, box)
    return np.array(image).reshape(image.height, image.width, channels)


def _drafted(image: Image.Image, box: crops.Box, wanted: tuple[int, int], *, turned: bool) -> crops.Box:
    """Have a JPEG decoded at as small a size as leaves enough of a part of it; gives the part at that size."""
    from PIL import JpegImagePlugin

    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return box
    before = image.size[::-1] if turned else image.size
    columns = math.ceil(before[0] * wanted[1] / (box[2] - box[0]))
    rows = math.ceil(before[1] * wanted[0] / (box[3] - box[1]))
    drafted = image.draft(None, (rows, columns) if turned else (columns, rows))
    if drafted is None:
        return box
    full = before[1] if turned else before[0]
    left, top, right, bottom = (edge * drafted[1][2] / full for edge in box)
    after = image.size[::-1] if turned else image.size
    return left, top, min(right, after[0]), min(bottom, after[1])
