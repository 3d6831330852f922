"""One decoder for every kind of picture, and the check that agrees with it."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from detkit.config import UserError
from detkit.data import pictures
from detkit.data.pictures import read_picture, to_8_bits, upright_size

NOISE = np.random.default_rng(0).integers(0, 256, (23, 37, 3)).astype(np.uint8)
PICTURE = Image.fromarray(cv2.GaussianBlur(NOISE, (0, 0), 2))
ORIENTATION = 0x0112


def read(path: Path) -> np.ndarray:
    """The picture, which the check must find good with the same size, whether it decodes or not."""
    image = read_picture(path)
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert upright_size(path, decode=True) == upright_size(path, decode=False) == image.shape[:2]
    return image


def refused(path: Path, message: str, decode: bool = True) -> None:
    """Both say so, in the same line."""
    fault = upright_size(path, decode)
    assert isinstance(fault, str)
    assert message in fault
    assert fault.startswith(f"the picture {path} ")
    assert "\n" not in fault
    with pytest.raises(UserError) as raised:
        read_picture(path)
    assert str(raised.value) == str(UserError(fault))


KINDS = {
    "1": "png tif gif bmp",
    "L": "jpg png tif webp gif bmp avif jp2 ppm",
    "LA": "png tif webp avif",
    "P": "png tif gif bmp",
    "RGB": "jpg png tif webp gif bmp avif jp2 ppm",
    "RGBA": "png tif webp gif avif",
    "CMYK": "jpg tif",
    "YCbCr": "jpg",
}


@pytest.mark.parametrize(("mode", "suffix"), [(mode, suffix) for mode in KINDS for suffix in KINDS[mode].split()])
def test_every_kind_is_as_pillow_converts_it(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    picture = PICTURE.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(PICTURE.convert("L"))
    picture.save(path)
    np.testing.assert_array_equal(read(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {"transparency": (7, 7, 7)}),
        ("a.jpg", {"progressive": True}),
        ("a.jpg", {"keep_rgb": True}),
        ("a.jpg", {"subsampling": 0}),
        ("a.tif", {"compression": "jpeg"}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.png", {"pnginfo": "gamma"}),
        ("a.jpg", {"icc_profile": b"profile"}),
    ],
)
def test_no_option_of_a_file_makes_a_difference(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    if options.get("pnginfo") == "gamma":
        info = PngImagePlugin.PngInfo()
        info.add(b"gAMA", struct.pack(">I", 20000))
        options = {"pnginfo": info}
    PICTURE.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as stored:
        np.testing.assert_array_equal(read(tmp_path / name), np.asarray(stored.convert("RGB")))


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), np.asarray(PICTURE))


@pytest.mark.parametrize("side", [1, 3, 7])
def test_a_jpeg_smaller_than_its_blocks(side: int, tmp_path: Path) -> None:
    Image.new("RGB", (side, 20), (90, 90, 90)).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").shape == (20, side, 3)


def test_a_palette_with_transparency_keeps_its_colours_and_warns_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    PICTURE.convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(PICTURE.convert("P").convert("RGB")))
    assert not recwarn.list


def test_alpha_is_left_out_and_not_painted_over(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp", "a.tif"):
        Image.new("RGBA", (4, 4), (200, 100, 50, 10)).save(tmp_path / name, lossless=True, exact=True)
        assert read(tmp_path / name)[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif", "avif"])
def test_the_first_of_several_frames_or_pages(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read(tmp_path / f"a.{suffix}"), np.broadcast_to((250, 0, 0), (10, 20, 3)), atol=4)


def test_cmyk_and_ycck_jpegs_of_adobe(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)  # no cyan: red
    np.testing.assert_allclose(read(path), np.broadcast_to((255, 0, 0), (16, 16, 3)), atol=4)
    content = path.read_bytes()
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    path.write_bytes(content[:transform] + b"\2" + content[transform + 1 :])  # the same numbers, read as YCCK
    peer = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert np.abs(peer.astype(int) - (255, 0, 0)).max() > 50
    np.testing.assert_allclose(read(path), peer, atol=4)


# Samples of more than 8 bits


@pytest.mark.parametrize(
    ("largest", "depth"),
    [
        (0, 8),
        (255, 8),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16383, 14),
        (16384, 16),
        (65535, 16),
    ],
)
def test_the_largest_value_decides_how_many_bits_a_file_has(largest: int, depth: int) -> None:
    samples = np.array([[0, largest // 2, largest]], np.uint16)
    expected = [[value // 2 ** (depth - 8) for value in (0, largest // 2, largest)]]
    assert to_8_bits(samples).tolist() == expected
    assert to_8_bits(samples.astype(np.int32)).tolist() == expected


@pytest.mark.parametrize(("largest", "depth"), [(200, 8), (4000, 12), (60000, 16)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_16_bits_are_as_bright_as_their_values(
    largest: int, depth: int, suffix: str, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    samples = np.random.default_rng(0).integers(0, largest, (20, 30, channels)).astype(np.uint16)
    samples[0, 0] = largest
    samples[..., 3:] = 65535  # what is opaque says nothing of the colours
    cv2.imwrite(str(path), samples)  # which takes BGR
    expected = np.broadcast_to(samples[..., 2::-1], (20, 30, 3)) >> (depth - 8)
    np.testing.assert_array_equal(read(path), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_are_checked_by_the_decoder_that_loads_them(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), NOISE.astype(np.uint16) * 257)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path, "it is cut short")
    path.write_bytes(content)
    assert read(path).shape == (23, 37, 3)
    monkeypatch.setattr(pictures, "_opencv", lambda data, flags: None)  # as an OpenCV that does not know this kind
    refused(path, "OpenCV cannot decode it")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiff_of_floats_is_scaled_from_its_own_range(dtype: type, channels: int, tmp_path: Path) -> None:
    """-1 becomes 0 and 3 becomes 255, so that 1 lies at 127.5, which rounds to the even number."""
    path = tmp_path / "a.tif"
    samples = np.array([[-1, 1, 3, np.nan]] * 2, dtype)[..., None].repeat(channels, 2)
    cv2.imwrite(str(path), samples, [cv2.IMWRITE_TIFF_COMPRESSION, 1])  # older OpenCVs would write colours as LogLuv
    assert read(path)[0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([-100, 0, 155], np.int16), [0, 100, 255]),  # heights below the sea
        (np.array([0, 510_000, 255_000], np.int32), [0, 255, 128]),
        (np.array([0.5, 0.5], np.float32), [0, 0]),
        (np.array([np.nan, np.inf], np.float32), [0, 0]),
        (np.array([0, 2, np.inf], np.float32), [0, 255, 0]),
    ],
)
def test_other_numbers_are_scaled_from_their_own_range(samples: np.ndarray, expected: list[int]) -> None:
    assert to_8_bits(samples).tolist() == expected


# Orientation


# Where the first row and the first column of what is stored are seen, from the EXIF standard.
SEEN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a file of this orientation stores of a picture."""
    stored = upright if SEEN[orientation][0] in ("top", "bottom") else upright.swapaxes(0, 1)
    rows, columns = (-1 if side in ("bottom", "right") else 1 for side in SEEN[orientation])
    return stored[::rows, ::columns].copy()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_every_orientation_in_every_kind_that_has_it(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (240, 0, 0), (0, 240, 0), (0, 0, 240)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    sharp = {"jpg": {"subsampling": 0}, "avif": {"subsampling": "4:4:4"}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(turned(upright, orientation)).save(path, exif=exif, quality=100, **sharp)
    np.testing.assert_allclose(read(path), upright, atol=5)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_of_16_bits_are_turned_too(orientation: int, tmp_path: Path) -> None:
    upright = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000
    stored = Image.fromarray(turned(upright, orientation))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for name in ("a.png", "a.tif"):
        stored.save(tmp_path / name, exif=exif)
        np.testing.assert_array_equal(read(tmp_path / name)[..., 0], upright >> 8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    PICTURE.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    block = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "a.png").write_bytes(content[:-12] + block + content[-12:])
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(np.asarray(PICTURE), -1))


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0", exif_of(0), exif_of(77)],
)
def test_broken_exif_is_no_fault_of_the_picture(exif: bytes, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").shape == (23, 37, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_an_orientation_in_xmp_alone_is_not_applied(suffix: str, tmp_path: Path) -> None:
    """No browser and no annotation tool does. Pillow does, so that check and training could disagree."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    options = {
        "png": {"pnginfo": info},
        "tif": {"tiffinfo": {700: xmp}},
    }.get(suffix, {"xmp": xmp})
    PICTURE.save(tmp_path / f"a.{suffix}", **options)
    assert read(tmp_path / f"a.{suffix}").shape == (23, 37, 3)


# Files that are unusual or no pictures


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"\xb0.png", b"\xff\xfe.tif"])
def test_names_that_are_not_utf_8(name: bytes, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    try:
        PICTURE.save(path)
    except OSError:
        pytest.skip("this file system refuses such a name")
    assert read(path).shape == (23, 37, 3)


def test_what_is_no_file_with_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    refused(path, "does not exist")
    path.symlink_to(tmp_path / "nowhere.jpg")
    refused(path, "does not exist")
    path.unlink()
    path.touch()
    refused(path, "is empty")
    path.write_text("hello")
    refused(path, "no picture of a known kind")
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")  # Pillow would start Ghostscript
    refused(path, "no picture of a known kind")
    (tmp_path / "b.jpg").mkdir()
    refused(tmp_path / "b.jpg", "it is a folder")
    os.mkfifo(tmp_path / "c.jpg")
    refused(tmp_path / "c.jpg", "not an ordinary file")
    refused(Path("a\0b.jpg"), "null")


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of one bit a pixel."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(pixels, 1)) + png_chunk(b"IEND", b"")


def test_a_picture_of_more_pixels_than_pillow_allows_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(14_000, 13_000, bytes((14_000 // 8 + 1) * 13_000)))
    assert upright_size(tmp_path / "a.png", decode=False) == (13_000, 14_000)


def test_what_opencv_refuses_for_its_size_is_decoded_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def imdecode(data: np.ndarray, flags: int) -> np.ndarray:
        raise cv2.error("pixels <= CV_IO_MAX_IMAGE_PIXELS")

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    PICTURE.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(PICTURE))


def test_a_header_that_claims_what_the_file_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(40_000, 30_000, b""))
    refused(tmp_path / "a.png", "says 40000 x 30000 (w x h), but it has only")
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG")
    size = struct.pack(">HH", 23, 37)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue().replace(size, struct.pack(">HH", 60_000, 65_000), 1))
    refused(tmp_path / "a.jpg", "says 65000 x 60000 (w x h), but it has only")


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "_pillow", no_memory)
    PICTURE.save(tmp_path / "a.gif")
    refused(tmp_path / "a.gif", "does not fit into memory")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif", "avif", "jp2"])
def test_whatever_the_check_finds_good_can_be_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    PICTURE.save(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        garbled = bytearray(content[: int(rng.integers(20, len(content) + 1))] if rng.random() < 0.3 else content)
        for place in rng.integers(0, len(garbled), 4).tolist():
            garbled[place] = int(rng.integers(256))
        path.write_bytes(garbled)
        size = upright_size(path, decode=True)
        if isinstance(size, tuple):
            assert read_picture(path).shape[:2] == size


def test_a_png_that_is_cut_short_leaves_nothing_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cut short: the end of a PNG is missing"):
        read_picture(path)
    assert capfd.readouterr() == ("", "")
