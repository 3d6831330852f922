"""Pictures of every kind as uint8 RGB: the one place that decodes, for check, training, evaluation and prediction.

Pillow reads every header. OpenCV decodes the common kinds, because it is faster and the pixels are the same, and the
kinds of which Pillow would keep 8 bits of 16. Pillow decodes the rest.

Legend: H, W height and width in pixels.
"""

from __future__ import annotations

import importlib.util
import io
import os
import stat
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from detkit.config import UserError
from detkit.structures import Size

IMAGE_SUFFIXES: tuple[str, ...] = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif"),
    *(".jpe", ".mpo", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
BIT_DEPTHS = (8, 10, 12, 14, 16)  # of cameras: a file of 16 bits may hold any of them
# A header can claim any size. Above LARGE pixels, more of them for each byte of the file than any real picture has are
# refused before memory is sought for them.
LARGE, MAX_PIXELS_PER_BYTE = 2**28, 10_000

# What is read, whatever its suffix. Pillow knows more kinds, some of which start other programs.
_FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM"]
_OPENCV_MODES = {"JPEG": ("L", "RGB"), "MPO": ("L", "RGB"), "PNG": ("L", "RGB", "RGBA"), "WEBP": ("RGB",)}
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation -> OpenCV's code; 5 to 8 are transposed before

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit protects servers; here large pictures are the user's own
if importlib.util.find_spec("pillow_heif") is not None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    _FORMATS.append("HEIF")
    IMAGE_SUFFIXES += (".heic", ".heif")


def read_picture(path: str | Path, at_least: Size | None = None) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB, upright: the first frame or page, grey as three equal channels, without alpha.

    Samples of more than 8 bits are brought to 8 by `to_8_bits`. Raises UserError if the picture cannot be decoded or is
    cut short.

    at_least  (h, w): a JPEG comes at 1 / `reduction` of its size, which takes about a third of the time
    """
    try:
        with _open(path) as file:
            data = file.read()
    except (OSError, ValueError) as error:  # a ValueError: the path has a null byte
        raise UserError(_fault(path, error)) from error
    return decode_picture(data, at_least, name=path)


def decode_picture(data: bytes, at_least: Size | None = None, *, name: str | Path = "that was sent") -> np.ndarray:
    """As `read_picture`, from the content of a file, which messages call `name`."""
    try:
        return _decode(_header(io.BytesIO(data), len(data)), data, at_least)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, MemoryError, ...
        raise UserError(_fault(name, error)) from error


def upright_size(path: str | Path, decode: bool) -> Size | str:
    """(h, w) of the picture as `read_picture` gives it, or why that cannot read the file.

    decode  look at the whole file; otherwise only at its header, where that tells the size
    """
    try:
        with _open(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            picture = _header(file, num_bytes)
            if picture is None or (decode and not _suits_opencv(picture)):
                file.seek(0)
                data = file.read()
                height, width = _decode(_header(io.BytesIO(data), num_bytes), data).shape[:2]
                return height, width
            width, height = picture.size if _orientation(picture, file) < 5 else picture.size[::-1]
            if decode:
                # Pillow reports a file that is cut short. A JPEG is read in full and decoded at 1/8 of its size.
                picture.draft("RGB", (max(1, picture.width // 8), max(1, picture.height // 8)))
                picture.load()
            return height, width
    except Exception as error:
        return _fault(path, error)


def size_in_header(data: bytes) -> Size:
    """(h, w) that the header of a picture states, not turned, before memory is sought for its pixels.

    `data` is the content of its file, or the first part of it. Raises UserError if it is no picture.
    """
    try:
        picture = _header(io.BytesIO(data), sys.maxsize)  # any size: the caller has a limit of its own
        if picture is not None:
            return picture.size[::-1]
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])  # 43: BigTIFF
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return int(tags[TiffImagePlugin.IMAGELENGTH]), int(tags[TiffImagePlugin.IMAGEWIDTH])
    except Exception as error:
        raise UserError(_fault("that was sent", error)) from error


def count_pages(path: str | Path) -> int:
    """How many pages of a TIFF, or frames of an animation, the file has; `read_picture` gives the first.

    1 for kinds that have one picture, for the further images in a JPEG (previews, depth), and if that cannot be told.
    """
    try:
        with _open(path) as file:
            picture = _header(file, os.fstat(file.fileno()).st_size)
            several = picture is not None and picture.format not in ("JPEG", "MPO")
            return getattr(picture, "n_frames", 1) if several else 1
    except Exception:  # see `read_picture`, which tells of the fault
        return 1


def reduction(size: Size, at_least: Size | None) -> int:
    """1, 2, 4 or 8: the most by which a JPEG of `size` (h, w) can be decoded smaller and still have `at_least`.

    It divides both sides. Otherwise the last pixels would be of blocks that the picture fills only in part, so that
    boxes would have to be stretched otherwise than the picture.
    """
    height, width = size
    for factor in (8, 4, 2):
        whole = height % factor == width % factor == 0
        if whole and at_least is not None and height >= factor * at_least[0] and width >= factor * at_least[1]:
            return factor
    return 1


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """uint8 of the same shape, from samples of any type.

    Whole numbers of 0 to 65535: the largest decides how many bits the file has, one of `BIT_DEPTHS`, and the upper 8
    of them are used. So a picture of a 12-bit camera is as bright as one of 16 bits. All other numbers, as heights or
    temperatures, are scaled from their own range to 0..255; what is not finite becomes 0.
    """
    if samples.dtype.kind in "iu" and samples.min() >= 0 and samples.max() < 2 ** BIT_DEPTHS[-1]:
        largest = int(samples.max())
        depth = next(bits for bits in BIT_DEPTHS if largest < 2**bits)
        return (samples >> (depth - 8)).astype(np.uint8)
    finite = np.isfinite(samples)
    values = samples[finite].astype(np.float64)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    scaled = np.zeros(samples.shape, np.uint8)
    scaled[finite] = np.rint((values - low) * (255 / (high - low))) if high > low else 0
    return scaled


def _open(path: str | Path) -> BinaryIO:
    """The file. It is opened here and not by a decoder, which may not know the encoding of the name."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not an ordinary file")
    if status.st_size == 0:
        raise OSError("the file is empty")
    return open(path, "rb")


def _header(file: BinaryIO, num_bytes: int) -> ImageFile.ImageFile | None:
    """The picture before its pixels are decoded; None: a TIFF that only OpenCV may know, as one of float RGB."""
    try:
        picture = Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        if file.read(2) in (b"II", b"MM"):
            return None
        raise OSError("it is no picture of a known kind, or its header is cut short") from error
    # Pillow would turn a TIFF by what XMP says, which browsers and annotation tools do not.
    picture.info.pop("xmp", None)
    if picture.width * picture.height > max(LARGE, MAX_PIXELS_PER_BYTE * num_bytes):
        raise OSError(f"its header says {picture.width} x {picture.height} (w x h), but it has only {num_bytes} bytes")
    return picture


def _decode(picture: ImageFile.ImageFile | None, data: bytes, at_least: Size | None = None) -> np.ndarray:
    """`picture` (see `_header`), which is the file of the content `data`, as `read_picture` returns it."""
    orientation = 1 if picture is None else _orientation(picture, io.BytesIO(data))
    if picture is not None and picture.format == "PNG":
        _check_png(data)
    if picture is None or _has_16_bit_colours(picture):
        image = to_8_bits(_all_bits(data))
    else:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        if picture.format in ("JPEG", "MPO"):
            factor = reduction(picture.size if orientation >= 5 else picture.size[::-1], at_least)
            flags |= 8 * factor if factor > 1 else 0  # what OpenCV's IMREAD_REDUCED_... add to the flag of the colours
        decoded = _opencv(data, flags) if _suits_opencv(picture) else None
        image = _pillow(picture) if decoded is None else decoded
    if orientation >= 5:
        image = cv2.transpose(image)
    if orientation in _FLIPS:
        cv2.flip(image, _FLIPS[orientation], dst=image)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def _suits_opencv(picture: ImageFile.ImageFile) -> bool:
    """Whether OpenCV decodes the picture as Pillow does. Palettes, CMYK and animations it would see in its own way."""
    animated = picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False)
    known = picture.mode in _OPENCV_MODES.get(picture.format or "", ())
    return known and not animated and not _has_16_bit_colours(picture)


def _has_16_bit_colours(picture: ImageFile.ImageFile) -> bool:
    """Whether Pillow would drop the lower 8 of 16 bits; it keeps all of them only where there are no colours."""
    tile = picture.tile[0].args if picture.format in ("PNG", "TIFF") and picture.tile else ""
    return picture.mode in ("LA", "RGB", "RGBA", "RGBX") and ";16" in str(tile)


def _all_bits(data: bytes) -> np.ndarray:
    """`[H, W]` or `[H, W, 3]` RGB as stored, of the file's own type."""
    samples = _opencv(data, cv2.IMREAD_UNCHANGED)
    if samples is None or samples.shape[2:] not in ((), (3,), (4,)):
        raise OSError("OpenCV cannot decode it: it is cut short or of an unknown kind")
    return samples if samples.ndim == 2 else samples[..., 2::-1]  # BGR or BGRA -> RGB


def _opencv(data: bytes, flags: int) -> np.ndarray | None:
    """The decoded picture; None if it is above OpenCV's own limit of 2^30 pixels or of an unknown kind."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _pillow(picture: ImageFile.ImageFile) -> np.ndarray:
    """uint8 `[H, W]` or `[H, W, 3]`, not turned unless it is a TIFF."""
    if picture.mode.startswith(("I", "F")):
        return to_8_bits(np.asarray(picture))
    picture.load()
    picture.info.pop("transparency", None)  # of a palette; Pillow would warn that it goes lost
    return np.array(picture.convert("RGB"))


def _orientation(picture: ImageFile.ImageFile, file: BinaryIO) -> int:
    """How the picture must be turned, 1 to 8 as EXIF counts; 1: not at all, as a TIFF, which both decoders turn."""
    block = _png_exif(file) if picture.format == "PNG" else picture.info.get("exif")
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata is no fault of the picture; see read_picture for what Pillow raises
        return 1
    return orientation if orientation in range(1, 9) else 1


def _check_png(data: bytes) -> None:
    """Raises OSError unless all parts of a PNG are there, up to its end: OpenCV takes memory for what they claim."""
    start = 8
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        start += 12 + length
        if kind == b"IEND":
            return
    raise OSError("it is cut short: the end of a PNG is missing")


def _png_exif(file: BinaryIO) -> bytes:
    """The EXIF block of a PNG or nothing. It may stand behind the pixels, which Pillow would have to decode first."""
    block = b""
    file.seek(8)
    while len(head := file.read(8)) == 8 and not block:
        length, kind = struct.unpack(">I4s", head)
        block = file.read(length) if kind == b"eXIf" else b""
        file.seek(length + 4 if not block else 4, os.SEEK_CUR)
    return block


def _fault(path: str | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the picture {path} does not exist"
    if isinstance(error, MemoryError):
        return f"the picture {path} cannot be decoded: it does not fit into memory"
    reason = getattr(error, "strerror", None) or error
    return f"the picture {path} cannot be decoded: {reason}; replace the file"
