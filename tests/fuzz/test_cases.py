"""Files that chance does not draw: bombs, endless nesting, claims of a header, and what is no file of the format."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detkit.config import to_yaml
from tests.engine.prediction.films import write_film
from tests.export.conftest import SSD
from tests.fuzz.harness import Tally, Target, try_input
from tests.fuzz.targets import BUILDERS
from tests.fuzz.weight_targets import HEADER, RUN, archive, state_of_run

Read = Callable[[str, bytes], str]
ANY = (
    b"",
    b"\n",
    b"\0" * 1000,
    b"\xff" * 1000,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff\0",
    b"[",
    b"{",
    b"<",
    b"9" * 5000,
)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """`read(name, content)`: how a target ends, which must be as it may."""
    built: dict[str, tuple[Target, Path]] = {}

    def call(name: str, content: bytes) -> str:
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            built[name] = BUILDERS[name](folder), folder
        target, folder = built[name]
        tally = Tally(name)
        fault = try_input(target, content, folder, tally)
        assert fault is None, fault[1]
        return next(iter(tally.ends))

    return call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_no_file_of_the_format(name: str, read: Read) -> None:
    ends = {read(name, content) for content in ANY}
    if name not in ("yolo_labels", "server"):  # an empty label file has no objects, and the server only answers
        assert "result" not in ends


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILDERS)
def test_marks_of_byte_order_and_other_encodings(name: str, read: Read, tmp_path: Path) -> None:
    """A file behind a mark of UTF-8 is still read where it is text; in another encoding it is read or refused."""
    target = BUILDERS[name](tmp_path)
    end = read(name, b"\xef\xbb\xbf" + target.seeds[0])
    if name in ("voc_xml", "yolo_labels", "yolo_yaml", "darknet_cfg", "config"):
        assert end == "result"
    text = target.seeds[0].decode("latin-1")
    for encoding in ("utf-16", "utf-32", "utf-16-be"):
        read(name, text.encode(encoding))


def laughs(depth: int = 30) -> bytes:
    """YAML of 600 bytes that stands for 10 ** 30 values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, depth)]
    return "\n".join(lines).encode()


def laughs_in_xml() -> bytes:
    entities = ['<!ENTITY a0 "ha">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 30))]
    body = "<annotation><filename>&a29;</filename></annotation>"
    return f"<?xml version='1.0'?><!DOCTYPE annotation [{''.join(entities)}]>{body}".encode()


@pytest.mark.parametrize("name", ["config", "yolo_yaml"])
def test_aliases_without_end(name: str, read: Read) -> None:
    assert read(name, laughs()) in ("ConfigError", "DataError")
    assert read(name, b"a: &a [*a]\n") != "result"
    assert read(name, b"<<: &a {<<: *a}\n") != "result"


def test_entities_without_end(read: Read) -> None:
    assert read("voc_xml", laughs_in_xml()) == "DataError"
    external = (
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><filename>&e;</filename></annotation>'
    )
    assert read("voc_xml", external) == "DataError"


@pytest.mark.parametrize("depth", [500, 3_000, 20_000])
def test_nesting_without_end(depth: int, read: Read) -> None:
    for name in ("coco", "clips", "hugging_face"):
        for opening, closing in ((b"[", b"]"), (b'{"images":', b"}")):
            assert read(name, opening * depth + closing * depth) != "result"
            assert read(name, opening * depth) != "result"
    if depth <= 3000:  # PyYAML reads more brackets for seconds
        for name in ("config", "yolo_yaml"):
            for text in (b"[" * depth, b"{a: " * depth + b"}" * depth, b"? " * depth, b"- " * depth):
                assert read(name, text) == "ConfigError"
    assert (
        read("voc_xml", b"<annotation>" + b"<object>" * depth + b"</object>" * depth + b"</annotation>") == "DataError"
    )
    assert read("voc_xml", b"<a>" * depth) == "DataError"


@pytest.mark.parametrize("digits", [400, 4_000, 5_000, 100_000])
def test_numbers_of_many_digits(digits: int, read: Read) -> None:
    number = b"9" * digits
    for target, before, after in (
        (
            "coco",
            b'{"images": [{"id": ',
            b', "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
        ),
        ("coco", b'{"images": [{"id": 1, "file_name": "a.jpg", "width": ', b'}], "annotations": [], "categories": []}'),
        ("yolo_labels", b"0 0.5 0.5 0.2 ", b"\n"),
        ("yolo_labels", b"", b" 0.5 0.5 0.2 0.2\n"),
        ("yolo_yaml", b"train: .\nnames: {", b": a}\n"),
        ("yolo_yaml", b"train: .\nnames: [dog]\nkpt_shape: [", b", 3]\n"),
        ("yolo_yaml", b"train: .\nnames: [dog]\nkpt_shape: [1, 3]\nflip_idx: [", b"]\n"),
        ("config", b"train: {epochs: ", b"}\n"),
        ("darknet_cfg", b"[net]\nwidth=", b"\nheight=8\n[softmax]\n"),
        ("hugging_face", b'{"model_type": "detr", "id2label": {"0": "a"}, "d_model": ', b"}"),
        ("clips", b'{"classes": ["a"], "videos": [{"name": "v", "frames": "street", "annotated": [', b"]}]}"),
        ("voc_xml", b"<annotation><size><width>", b"</width><height>3</height></size></annotation>"),
    ):
        read(target, before + number + after)


def test_halves_of_characters(read: Read) -> None:
    """A name that no file and no terminal can be sent is refused where it is read."""
    images, categories = b'"images": [{"id": 1, "file_name": "a.jpg"}]', b'"categories": [{"id": 1, "name": "\\ud800"}]'
    content = b'{%s, "annotations": [], %s}' % (images, categories)
    assert read("coco", content) == "DataError"
    assert read("clips", b'{"classes": ["\\udfff"], "videos": [{"name": "v", "frames": "street"}]}') != "result"
    assert read("config", b'device: "\\ud800"\n') == "ConfigError"
    assert read("yolo_yaml", b'train: .\nnames: ["\\ud800"]\n') != "result"


def png(width: int, height: int, data: bytes) -> bytes:
    """One bit a pixel."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    body = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_headers_that_claim_a_billion_pixels(read: Read) -> None:
    side = 40_000
    heads = {
        "png": png(side, side, zlib.compress(bytes(1000))),
        "gif": b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0, 0, 0)
        + b"\x2c"
        + struct.pack("<4HB", 0, 0, side, side, 0),
        "bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(60),
        "ppm": b"P6 %d %d 255\n" % (side, side) + bytes(100),
        "text": b"P3 %d %d 255\n" % (side, side) + b"1 " * 100,
    }
    for content in heads.values():
        assert read("images", content) == "UserError"
        assert read("server", b"\n\n" + content) == "result"


def test_a_chunk_of_a_png_that_claims_four_gigabytes(read: Read) -> None:
    """OpenCV would take the memory before it looks whether the bytes are there."""
    whole = png(8, 8, zlib.compress(bytes(16)))
    start = whole.index(b"IDAT") - 4
    assert read("images", whole) == "result"
    assert read("images", whole[:start] + b"\xff\xff\x07\x49" + whole[start + 4 :]) == "UserError"


def test_a_picture_that_is_far_larger_than_its_file(read: Read) -> None:
    """16000 x 16000 px of one colour in 31 kB: read, as pictures of scanners are; the server has a limit."""
    compress = zlib.compressobj(9)
    bomb = png(16_000, 16_000, b"".join(compress.compress(bytes(2001)) for _ in range(16_000)) + compress.flush())
    assert len(bomb) < 40_000
    assert read("server", b"\n\n" + bomb) == "result"


@pytest.mark.parametrize(
    "content",
    [
        HEADER,
        HEADER[:15],
        struct.pack("<3iq", 2**31 - 1, 2**31 - 1, 0, 2**63 - 1),
        struct.pack("<3iq", 0, 2, 5, -1) + bytes(10**6),
        HEADER + np.full(10**5, np.nan, "<f4").tobytes(),
    ],
    ids=["empty", "short", "numbers", "long", "nan"],
)
def test_darknet_weights_of_another_size(content: bytes, read: Read) -> None:
    assert read("darknet_weights", content) == "UserError"


@pytest.mark.parametrize("size", [2**31 - 1, 10**9, 65_536])
@pytest.mark.parametrize("key", ["filters", "size", "groups", "output", "classes", "stride"])
def test_a_network_that_no_memory_holds(key: str, size: int, read: Read) -> None:
    layer = "connected" if key == "output" else "convolutional"
    keys = {"filters": 4, "size": 3, "output": 4, "activation": "linear", key: size}
    body = "".join(
        f"{name}={value}\n"
        for name, value in keys.items()
        if name in ("filters", "size", "output", key) or name == "activation"
    )
    head = f"[yolo]\nanchors=4,4\nnum=1\nclasses={size if key == 'classes' else 3}\n"
    text = f"[net]\nwidth=16\nheight=16\n[{layer}]\n{body}[convolutional]\nfilters=8\nactivation=linear\n{head}"
    assert read("darknet_cfg", text.encode()) == "UserError"
    assert read("darknet_cfg", f"[net]\nwidth={size}\nheight={size}\n[softmax]\n".encode()) == "UserError"


def test_lengths_of_a_safetensors_header(read: Read) -> None:
    for length in (0, 1, 2**31, 2**63 - 1, 2**64 - 1):
        assert read("safetensors_file", struct.pack("<Q", length) + b"{}") in ("UserError", "CheckpointError")
    shape = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
    assert read("safetensors_file", struct.pack("<Q", len(shape)) + shape + bytes(4)) == "UserError"


@pytest.mark.filterwarnings("ignore")
def test_archives_that_are_none(read: Read, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    bomb = (tmp_path / "bomb.zip").read_bytes()
    assert len(bomb) < 10**6
    for name, error in (("checkpoint", "CheckpointError"), ("pth_file", "UserError")):
        assert read(name, bomb) == error
        assert read(name, b"PK\x05\x06" + bytes(18)) == error
        assert read(name, b"\x80\x02cos\nsystem\nX\x04\0\0\0trueq\0\x85q\x01Rq\x02.") == error


# ---- what fuzzing has found


@pytest.mark.parametrize("text", ["!!int ''", "!!float ''", "!!bool 7", "!!timestamp x", "!!binary é", "!!set [1]"])
def test_a_yaml_value_that_is_not_of_its_tag(text: str, read: Read) -> None:
    assert read("config", f"device: {text}\n".encode()) == "ConfigError"
    assert read("yolo_yaml", f"train: {text}\n".encode()) != "result"


def test_names_and_shapes_of_data_yaml(read: Read) -> None:
    for text in ("kpt_shape: [[1], 3]", "kpt_shape: [\u0663, 3]", "flip_idx: [[0]]\nkpt_shape: [1, 3]"):
        assert read("yolo_yaml", f"train: .\nnames: [dog, cat]\n{text}\n".encode()) != "result"
    assert read("yolo_yaml", "train: .\nnames: {\u00b2: dog}\n".encode()) == "DataError"
    elsewhere = f"train: .\nnames: [dog, cat]\npath: {'x' * 3000}\n"
    assert read("yolo_yaml", elsewhere.encode()) == "result", "a folder of another machine: that of the file is taken"


@pytest.mark.parametrize("size", [[10**15, 10**15], [2**20, 2**20], [0, 0]])
def test_run_lengths_of_a_picture_that_there_is_not(size: list[int], read: Read) -> None:
    mask = {"size": size, "counts": [0, size[0] * size[1]]}
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask}
    tables = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "dog"}]}
    content = json.dumps({**tables, "annotations": [row]}).encode()
    read("coco", content)
    assert read("coco", content + b" " * (-len(content) % 4)) == "DataError", "the policy is to raise"


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "[]"},
        {"config": "model: 3"},
        {"config": "model: {name: ssd}\ntrain: [1]"},
        {"config": "augment: {hsv: 3}\nmodel: {name: ssd, backbone: {levels: [9]}}"},
        {"model": 3, "class_names": ["dog"]},
        {"class_names": 3, "categories": None},
        {"class_names": [], "categories": None},
        {"categories": {"names": ["dog"], "ids": [1], "keypoints": {"names": ["a"]}}},
        {"categories": {"names": ["dog"], "ids": [1], "keypoints": [3]}},
    ],
    ids=str,
)
def test_parts_of_a_checkpoint_that_are_something_else(changes: dict[str, object], read: Read) -> None:
    content = {"format": "detkit checkpoint 1", **state_of_run(), **changes}
    assert read("checkpoint", archive(content)) in ("CheckpointError", "ConfigError")


@pytest.mark.parametrize("key", ["min_sizes", "max_sizes", "ratios", "steps"])
def test_default_boxes_have_sides(key: str, read: Read) -> None:
    priors = {
        "min_sizes": [24],
        "max_sizes": [40],
        "ratios": [[2]],
        "steps": [8],
        key: [[-2]] if key == "ratios" else [-2],
    }
    run = {**RUN, "model": {**SSD, "head": {"priors": priors}}}
    assert read("config", to_yaml(run).encode()) == "ConfigError"


def test_the_type_of_a_model_is_text(read: Read) -> None:
    assert read("hugging_face", b'{"model_type": ["detr"]}') == "UserError"


def test_a_video_of_an_unknown_codec(read: Read, tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.avi", 3, codec="mjpeg", pixels="yuvj420p").read_bytes()
    assert read("videos", film) == "result"
    assert read("videos", film.replace(b"MJPG", b"XQZ7")) == "UserError"
