"""Darknet files written by hand, each layer against a computation by hand, and what a broken file is told."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit import cli
from detkit.config import UserError
from detkit.data.voc import VOC_CLASSES
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.detectors.yolov1 import YOLOv1Config
from detkit.detectors.yolov2 import YOLOv2Config
from detkit.detectors.yolov3 import YOLOv3Config
from detkit.nn.backbones.darknet import DarknetConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.yolo_v1 import YOLOv1HeadConfig, YOLOv1SelectionConfig
from detkit.nn.heads.yolo_v3 import YOLOv3HeadConfig
from detkit.nn.input import LetterboxConfig, StretchConfig
from detkit.nn.necks.yolo import YOLONeckConfig
from detkit.structures import Batch, Categories, ImageInfo
from detkit.weights.darknet import DarknetOutputs, load_darknet, load_official
from tests.cli_support import write_config
from tests.detectors.export import check_export

NET = "[net]\nwidth=8\nheight=8\nchannels=3\n"
# layers 0 to 2: 8 channels of 8 x 8, a head (else it is no detector), and the 8 channels again for what is tested
HEAD = """[convolutional]
filters=8
size=1
activation=linear
[yolo]
anchors=4,4
num=1
classes=3
[route]
layers=0
"""


def random(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def write_model(folder: Path, cfg: str, weights: Sequence[Tensor] = (), names: Sequence[str] = ()) -> Path:
    """`folder/model.cfg`, its weights beside it, and `model.names`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.cfg"
    path.write_text(cfg)
    content = b"".join(part.numpy().astype("<f4").tobytes() for part in weights)
    path.with_suffix(".weights").write_bytes(struct.pack("<3iq", 0, 2, 5, 0) + content)
    path.with_suffix(".names").write_text("\n".join(names) + "\n")
    return path


def batch_of(images: Tensor) -> Batch:
    size = (images.shape[2], images.shape[3])
    return Batch(images, tuple(ImageInfo(i, size, size, (1.0, 1.0)) for i in range(len(images))))


@torch.no_grad()
def run_layers(folder: Path, layers: str, weights: Sequence[Tensor] = ()) -> list[Tensor]:
    """Outputs of the layers 2, 3, ... of a network in which `layers` stand from 3 on: `[2, 8, 8, 8]`, then theirs."""
    head = [random(8), random(8 * 3, seed=1)]
    path = write_model(folder, NET + HEAD + layers, [*head, *(part.flatten() for part in weights)], "abc")
    detector = load_darknet(path, names=path.with_suffix(".names"))
    outputs: list[Tensor] = []
    for layer in detector.darknet.layers[2:]:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    detector(batch_of((random(2, 3, 8, 8, low=0, high=255)).to(torch.uint8)))
    return outputs


# ---- layers


def test_convolutional(tmp_path: Path) -> None:
    """`pad=1` is half the size; `padding` is taken as it is; batch norm has darknet's epsilon."""
    beta, gamma, mean, variance = random(6), random(6, seed=1), random(6, seed=2), random(6, seed=3, low=0.1)
    weight, bias, weight2 = random(6, 4, 3, 3), random(2, seed=5), random(2, 6, 3, 3, seed=6)
    x, first, second = run_layers(
        tmp_path,
        "[convolutional]\nbatch_normalize=1\nfilters=6\nsize=3\nstride=2\npad=1\ngroups=2\nactivation=leaky\n"
        "[conv]\nfilters = 2 # two\nsize=3\npadding=2\nactivation=mish ; no batch norm\n",
        [beta, gamma, mean, variance, weight, bias, weight2],
    )
    y = F.conv2d(x, weight, stride=2, padding=1, groups=2)
    y = (y - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * gamma[:, None, None] + beta[:, None, None]
    y = torch.where(y > 0, y, 0.1 * y)
    torch.testing.assert_close(first, y)
    z = F.conv2d(y, weight2, bias, padding=2)
    assert z.shape == (2, 2, 6, 6)
    torch.testing.assert_close(second, z * (1 + z.exp()).log().tanh())


def test_local(tmp_path: Path) -> None:
    """Every place has weights of its own, place after place in the file."""
    bias, weight = random(3, 4, 4), random(16, 3, 8 * 9, seed=1)
    x, y = run_layers(tmp_path, "[local]\nfilters=3\nsize=3\nstride=2\npad=1\nactivation=linear\n", [bias, weight])
    padded = F.pad(x, (1, 1, 1, 1))
    expected = torch.zeros(2, 3, 4, 4)
    for row in range(4):
        for column in range(4):
            patch = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].flatten(1)
            expected[:, :, row, column] = patch @ weight[4 * row + column].T + bias[:, row, column]
    torch.testing.assert_close(y, expected)


def test_connected(tmp_path: Path) -> None:
    bias, weight = random(5), random(5, 512, seed=1)
    beta, weight2, gamma, mean, variance = (
        random(3), random(3, 5), random(3, seed=2), random(3, seed=3), random(3, seed=4, low=0.1)
    )  # fmt: skip
    x, first, second = run_layers(
        tmp_path,
        "[connected]\noutput=5\nactivation=relu\n[connected]\noutput=3\nbatch_normalize=1\nactivation=logistic\n",
        [bias, weight, beta, weight2, gamma, mean, variance],
    )
    y = (x.flatten(1) @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(first[:, :, 0, 0], y)
    z = (y @ weight2.T - mean) / (variance + 1e-5).sqrt() * gamma + beta
    torch.testing.assert_close(second[:, :, 0, 0], 1 / (1 + (-z).exp()))


@pytest.mark.parametrize(
    ("keys", "size", "stride", "padding", "out"),
    [
        ("size=2\nstride=2", 2, 2, 1, 4),
        ("size=2\nstride=1", 2, 1, 1, 8),  # yolov3-tiny: keeps the size, looking right and down
        ("size=3\nstride=2", 3, 2, 2, 4),
        ("size=3\nstride=3", 3, 3, 2, 3),
        ("size=5\nstride=1", 5, 1, 4, 8),
        ("size=4\nstride=1", 4, 1, 3, 8),
        ("size=4\nstride=3", 4, 3, 3, 3),
        ("size=2\nstride=2\npadding=0", 2, 2, 0, 4),
        ("size=3\nstride=2\npadding=1", 3, 2, 1, 4),
        ("stride=3", 3, 3, 2, 3),
    ],
)
def test_maxpool(tmp_path: Path, keys: str, size: int, stride: int, padding: int, out: int) -> None:
    x, y = run_layers(tmp_path, f"[maxpool]\n{keys}\n")
    assert y.shape == (2, 8, out, out)
    for row in range(out):
        for column in range(out):
            rows, columns = (
                [p for p in range(i * stride - padding // 2, i * stride - padding // 2 + size) if 0 <= p < 8]
                for i in (row, column)
            )
            assert torch.equal(y[:, :, row, column], x[:, :, rows][:, :, :, columns].amax(dim=(2, 3)))


def test_reorg_is_darknets(tmp_path: Path) -> None:
    """The index formula of reorg_cpu, whose forward layer runs it backwards."""
    x, y = run_layers(tmp_path, "[reorg]\nstride=2\n")
    assert y.shape == (2, 32, 4, 4)
    channels, height, width, stride = 8, 8, 8, 2
    flat, expected = x[0].flatten(), torch.zeros(8 * 8 * 8)
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                k2, offset = k % (channels // stride**2), k // (channels // stride**2)
                i2, j2 = i * stride + offset % stride, j * stride + offset // stride
                expected[i + width * (j + height * k)] = flat[i2 + width * stride * (j2 + height * stride * k2)]
    assert torch.equal(y[0].flatten(), expected)


def test_upsample_route_avgpool_softmax(tmp_path: Path) -> None:
    x, pooled, up, group, joined, mean, probabilities, same, cost = run_layers(
        tmp_path,
        "[maxpool]\nsize=2\nstride=2\n[upsample]\nstride=2\n[route]\nlayers=-1\ngroups=4\ngroup_id=3\n"
        "[route]\nlayers=-1, 0, 4\n[avgpool]\n[softmax]\n[dropout]\nprobability=.5\n[cost]\ntype=sse\n",
    )
    assert torch.equal(up, torch.kron(pooled, torch.ones(2, 2)))
    assert torch.equal(group, up[:, 6:8])
    assert torch.equal(joined, torch.cat([group, x, up], dim=1))
    torch.testing.assert_close(mean[:, :, 0, 0], joined.mean(dim=(2, 3)))
    torch.testing.assert_close(probabilities, mean.exp() / mean.exp().sum(dim=1, keepdim=True))
    assert torch.equal(same, probabilities)
    assert torch.equal(cost, probabilities)


def test_shortcut_adds_the_channels_that_both_have(tmp_path: Path) -> None:
    x, group, narrow, wide, several = (
        run_layers(
            tmp_path,
            "[route]\nlayers=2\ngroups=2\ngroup_id=1\n"  # 3: the last 4 channels
            "[shortcut]\nfrom=2\nactivation=linear\n"  # 4: 3 and 2
            "[route]\nlayers=0\n[shortcut]\nfrom=-3\nactivation=relu\n"  # 5, 6: 5 and 3
            "[shortcut]\nfrom=2,-1\nactivation=linear\n",  # 7: 6, 2 and 6 again
        )[:4]
        + run_layers(
            tmp_path / "more",
            "[shortcut]\nfrom=0, -1\nactivation=leaky\n",
        )[1:]
    )
    assert torch.equal(group, x[:, 4:])
    assert torch.equal(narrow, x[:, 4:] + x[:, :4])
    assert torch.equal(wide, x)  # the route
    y = 3 * x
    torch.testing.assert_close(several, torch.where(y > 0, y, 0.1 * y))


def test_shortcut_of_a_narrower_layer(tmp_path: Path) -> None:
    x, _, _, y = run_layers(
        tmp_path, "[route]\nlayers=2\ngroups=2\ngroup_id=1\n[route]\nlayers=2\n[shortcut]\nfrom=3\nactivation=relu\n"
    )
    assert torch.equal(y, torch.cat([x[:, :4] + x[:, 4:], x[:, 4:]], dim=1).clamp(min=0))


# ---- heads


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@torch.no_grad()
def run_head(folder: Path, filters: int, head: str, classes: int) -> tuple[Tensor, DarknetOutputs]:
    """What the head is given on an input of 8 x 16 x 16 px (stride 8: 2 x 2 cells), and the outputs of the detector."""
    net = "[net]\nwidth=16\nheight=16\n"
    conv = f"[convolutional]\nfilters={filters}\nsize=8\nstride=8\nactivation=linear\n"
    weights = [random(filters), random(filters * 3 * 64, seed=1, low=-0.1, high=0.1)]
    path = write_model(folder, net + conv + head, weights, [f"class {i}" for i in range(classes)])
    detector = load_darknet(path, names=path.with_suffix(".names"))
    raw: list[Tensor] = []
    detector.darknet.layers[0].register_forward_hook(lambda _module, _inputs, output: raw.append(output))
    outputs = detector(batch_of(random(1, 3, 16, 16, low=0, high=255).to(torch.uint8)))
    return raw[0][0], outputs


def sort_rows(outputs: DarknetOutputs) -> Tensor:
    return torch.cat([outputs.boxes[0], outputs.scores[0]], dim=1)


@pytest.mark.parametrize("softmax", [0, 1])
def test_region(tmp_path: Path, softmax: int) -> None:
    """Version 2: anchors in cells."""
    anchors = [(1.0, 0.5), (0.25, 2.0)]
    head = f"[region]\nanchors=1,.5, .25,2\nnum=2\ncoords=4\nclasses=3\nsoftmax={softmax}\nthresh=.6\n"
    raw, outputs = run_head(tmp_path, 16, head, 3)
    rows = []
    for row in range(2):
        for column in range(2):
            for n, (anchor_w, anchor_h) in enumerate(anchors):
                tx, ty, tw, th, objectness, *logits = raw[8 * n : 8 * n + 8, row, column].tolist()
                x, y = (sigmoid(tx) + column) / 2 * 16, (sigmoid(ty) + row) / 2 * 16
                w, h = math.exp(tw) * anchor_w / 2 * 16, math.exp(th) * anchor_h / 2 * 16
                powers = [math.exp(logit) for logit in logits]
                classes = [p / sum(powers) for p in powers] if softmax else [sigmoid(logit) for logit in logits]
                scores = [sigmoid(objectness) * p for p in classes]
                rows.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, *scores])
    torch.testing.assert_close(sort_rows(outputs), torch.tensor(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("new_coords", [0, 1])
def test_yolo(tmp_path: Path, new_coords: int) -> None:
    """Versions 3 and 4: anchors in px, of which the mask takes some; scale_x_y; Scaled-YOLOv4's new_coords."""
    anchors, mask, scale = [(2.0, 3.0), (5.0, 4.0), (7.0, 9.0)], [2, 0], 1.2
    head = f"[yolo]\nmask=2,0\nanchors=2,3, 5,4, 7,9\nnum=3\nclasses=2\nscale_x_y={scale}\nnew_coords={new_coords}\n"
    raw, outputs = run_head(tmp_path, 14, head, 2)
    squash = (lambda t: t) if new_coords else sigmoid
    rows = []
    for row in range(2):
        for column in range(2):
            for n, anchor in enumerate(mask):
                tx, ty, tw, th, objectness, *logits = raw[7 * n : 7 * n + 7, row, column].tolist()
                x, y = ((squash(t) * scale - (scale - 1) / 2 + cell) * 8 for t, cell in ((tx, column), (ty, row)))
                w, h = (
                    ((2 * t) ** 2 if new_coords else math.exp(t)) * side
                    for t, side in zip((tw, th), anchors[anchor], strict=True)
                )
                scores = [squash(objectness) * squash(logit) for logit in logits]
                rows.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, *scores])
    torch.testing.assert_close(sort_rows(outputs), torch.tensor(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("root", "softmax"), [(1, 0), (0, 1)])
def test_detection(tmp_path: Path, root: int, softmax: int) -> None:
    """Version 1: all class probabilities, then all confidences, then all boxes."""
    head = f"[detection]\nclasses=3\ncoords=4\nside=2\nnum=2\nsqrt={root}\nsoftmax={softmax}\nrescore=1\n"
    raw, outputs = run_head(tmp_path, 13, head, 3)  # 13 x 2 x 2 = 4 (3 + 2 x 5)
    flat = raw.flatten().tolist()
    rows = []
    for cell in range(4):
        for n in range(2):
            x, y, w, h = flat[4 * 5 + (2 * cell + n) * 4 :][:4]
            x, y = (x + cell % 2) / 2 * 16, (y + cell // 2) / 2 * 16
            w, h = (w**2 * 16, h**2 * 16) if root else (w * 16, h * 16)
            classes = flat[3 * cell : 3 * cell + 3]
            if softmax:
                classes = [math.exp(c) / sum(map(math.exp, classes)) for c in classes]
            scores = [min(max(flat[4 * 3 + 2 * cell + n] * p, 0), 1) for p in classes]
            rows.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, *scores])
    torch.testing.assert_close(sort_rows(outputs), torch.tensor(rows), rtol=1e-5, atol=1e-5)


def test_several_heads_follow_each_other(tmp_path: Path) -> None:
    head = "[yolo]\nanchors=4,4\nnum=1\nclasses=3\n"
    route = "[route]\nlayers=0\n"
    pool = "[maxpool]\nsize=2\nstride=2\n"
    _, outputs = run_head(tmp_path, 8, head + route + pool + head, 3)
    assert outputs.boxes.shape == (1, 4 + 1, 4)
    assert outputs.scores.shape == (1, 4 + 1, 3)


# ---- the detector


def tiny_model(folder: Path, classes: int = 2, net: str = NET) -> Path:
    """One convolution and a head of 8 x 8 cells."""
    conv = f"[convolutional]\nfilters={5 + classes}\nsize=1\nactivation=linear\n"
    head = f"[yolo]\nanchors=4,4\nnum=1\nclasses={classes}\n"
    weights = [random(5 + classes), random(3 * (5 + classes), seed=1)]
    return write_model(folder, net + conv + head, weights, [f"class {i}" for i in range(classes)])


def test_names_come_from_the_number_of_classes_or_a_file(tmp_path: Path) -> None:
    voc = load_darknet(tiny_model(tmp_path / "voc", 20))
    assert voc.categories.names == VOC_CLASSES
    coco = load_darknet(tiny_model(tmp_path / "coco", 80))
    assert coco.categories.names[:3] == ("person", "bicycle", "car")
    assert coco.categories.names[-1] == "toothbrush"
    assert len(set(coco.categories.names)) == 80
    path = tiny_model(tmp_path / "own", 2)
    with pytest.raises(UserError, match=f"^{path}: the names of its 2 classes are not known; [^\n]*:NAMES$"):
        load_darknet(path)
    assert load_darknet(path, names=path.with_suffix(".names")).categories.names == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\ntwo\nthree\n", "expected 2 class names, .* found 3, 3 of them different"),
        (b"one\none\n", "expected 2 class names, .* found 2, 1 of them different"),
        (b"\xff\xfe", "not UTF-8 text"),
        (None, "cannot read these class names: No such file"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, content: bytes | None, words: str) -> None:
    path, names = tiny_model(tmp_path), tmp_path / "other.names"
    if content is not None:
        names.write_bytes(content)
    with pytest.raises(UserError, match=f"^{names}: {words}"):
        load_darknet(path, names=names)


def test_input(tmp_path: Path) -> None:
    """Stretched, as AlexeyAB's darknet does, unless the file says letter_box=1; pixels from 0 to 1."""
    detector = load_darknet(tiny_model(tmp_path, 20))
    assert detector.input.resize == StretchConfig(size=8)
    assert not detector.training
    images = random(1, 3, 8, 8, low=0, high=255).to(torch.uint8)
    torch.testing.assert_close(detector.input(images, torch.tensor([[8, 8]])), images / 255)
    letterbox = load_darknet(tiny_model(tmp_path / "b", 20, NET + "letter_box=1\n"))
    assert letterbox.input.resize == LetterboxConfig(size=8)
    assert letterbox.input.stride == 8  # the canvas is the square whatever is rounded


def test_detections_of_a_picture_known_by_hand(tmp_path: Path) -> None:
    """All weights zero but two biases: every cell finds class 1 with .5 x sigmoid(2), a box of one anchor."""
    conv = "[convolutional]\nfilters=7\nsize=4\nstride=4\nactivation=linear\n"
    head = "[yolo]\nanchors=4,4\nnum=1\nclasses=2\n"
    bias = torch.tensor([0.0, 0, 0, 0, 0, -9, 2])
    path = write_model(tmp_path, NET + conv + head, [bias, torch.zeros(7 * 3 * 16)], ["a", "b"])
    detector = load_darknet(path, names=path.with_suffix(".names"))
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    info = ImageInfo("x", (16, 24), (8, 8), (8 / 24, 8 / 16))
    with torch.no_grad():
        (detections,) = detector.postprocess(detector(Batch(images, (info,))), [info])
    assert detections.categories.names == ("a", "b")
    assert detections.labels.tolist() == [1] * 4
    assert detections.scores.tolist() == pytest.approx([0.5 * sigmoid(2)] * 4)
    assert sorted(detections.boxes.tolist()) == [[0, 0, 12, 8], [0, 8, 12, 16], [12, 0, 24, 8], [12, 8, 24, 16]]


def test_channels_last_changes_nothing(tmp_path: Path) -> None:
    layers = "[reorg]\nstride=2\n[connected]\noutput=5\nactivation=linear\n"
    path = write_model(
        tmp_path, NET + HEAD + layers, [random(8), random(24), random(5), random(5 * 512, seed=1)], "abc"
    )
    images = random(2, 3, 8, 8, low=0, high=255).to(torch.uint8)
    detector = load_darknet(path, names=path.with_suffix(".names"))
    with torch.no_grad():
        plain = detector(batch_of(images))
        last = detector.to(memory_format=torch.channels_last)(batch_of(images))
    torch.testing.assert_close(last.boxes, plain.boxes)
    torch.testing.assert_close(last.scores, plain.scores)


def test_it_exports(tmp_path: Path) -> None:
    """Several heads, and layers whose code depends on sizes."""
    head = "[yolo]\nanchors=4,4\nnum=1\nclasses=3\n"
    layers = "[maxpool]\nsize=2\nstride=1\n" + head + "[route]\nlayers=3\n[maxpool]\nsize=2\nstride=2\n" + head
    path = write_model(tmp_path, NET + HEAD + layers, [random(8), random(24, seed=1)], "abc")
    detector = load_darknet(path, names=path.with_suffix(".names"))
    check_export(detector, batch_of(random(2, 3, 8, 8, low=0, high=255).to(torch.uint8)))


@pytest.mark.parametrize("kind", ["region", "detection"])
def test_the_older_heads_export(tmp_path: Path, kind: str) -> None:
    heads = {
        "region": "[region]\nanchors=1,1\nnum=1\nclasses=3\nsoftmax=1\n",
        "detection": "[detection]\nclasses=3\nside=8\nnum=1\nsqrt=1\n",
    }
    layers = "[convolutional]\nfilters=8\nsize=1\nactivation=linear\n" + heads[kind]
    path = write_model(tmp_path, NET + layers, [random(8, low=0), random(24, seed=1)], "abc")
    detector = load_darknet(path, names=path.with_suffix(".names"))
    check_export(detector, batch_of(random(2, 3, 8, 8, low=0, high=255).to(torch.uint8)))


def test_it_is_not_trained(tmp_path: Path) -> None:
    detector = load_darknet(tiny_model(tmp_path, 20))
    outputs = detector(batch_of(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))
    with pytest.raises(UserError, match=r"for evaluation and prediction; to train, take .* yolov1, yolov2 or yolov3"):
        detector.criterion(outputs, [])


# ---- detkit's own YOLOs from darknet's weights


def conv(filters: int, size: int, stride: int = 1, norm: int = 1, act: str = "leaky") -> str:
    return (
        f"[convolutional]\nbatch_normalize={norm}\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\n"
        f"activation={act}\n"
    )


POOL = "[maxpool]\nsize=2\nstride=2\n"
YOLOV3_TINY = (
    "[net]\nwidth=64\nheight=64\nletter_box=1\n"
    + "".join(conv(filters, 3) + POOL for filters in (16, 32, 64, 128, 256))
    + conv(512, 3) + "[maxpool]\nsize=2\nstride=1\n" + conv(1024, 3)
    + conv(256, 1) + conv(512, 3) + conv(21, 1, norm=0, act="linear")
    + "[yolo]\nmask=3,4,5\nanchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\nclasses=2\nnum=6\n"
    + "[route]\nlayers=-4\n" + conv(128, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n"
    + conv(256, 3) + conv(21, 1, norm=0, act="linear")
    + "[yolo]\nmask=0,1,2\nanchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\nclasses=2\nnum=6\n"
)  # fmt: skip
YOLOV2 = (
    "[net]\nwidth=64\nheight=64\nletter_box=1\n"
    + conv(32, 3) + POOL + conv(64, 3) + POOL + conv(128, 3) + conv(64, 1) + conv(128, 3) + POOL
    + conv(256, 3) + conv(128, 1) + conv(256, 3) + POOL
    + conv(512, 3) + conv(256, 1) + conv(512, 3) + conv(256, 1) + conv(512, 3) + POOL
    + conv(1024, 3) + conv(512, 1) + conv(1024, 3) + conv(512, 1) + conv(1024, 3)
    + conv(1024, 3) + conv(1024, 3) + "[route]\nlayers=-9\n" + conv(64, 1) + "[reorg]\nstride=2\n"
    + "[route]\nlayers=-1,-4\n" + conv(1024, 3) + conv(35, 1, norm=0, act="linear")
    + "[region]\nanchors=1.3221,1.73145, 3.19275,4.00944, 5.05587,8.09892, 9.47112,4.84053, 11.2364,10.0071\n"
    + "classes=2\nnum=5\ncoords=4\nsoftmax=1\n"
)  # fmt: skip
YOLOV1_TINY = (
    "[net]\nwidth=448\nheight=448\n"
    + "".join(conv(filters, 3) + POOL for filters in (16, 32, 64, 128, 256, 512))
    + conv(1024, 3) + conv(256, 3) + "[connected]\noutput=588\nactivation=linear\n"
    + "[detection]\nclasses=2\ncoords=4\nside=7\nnum=2\nsoftmax=0\nsqrt=1\n"
)  # fmt: skip
DETECTORS = {
    "yolov3_tiny": (
        YOLOV3_TINY,
        YOLOv3Config(
            backbone=DarknetConfig(name="yolov3_tiny", strides=(16, 32)),
            neck=YOLONeckConfig(name="yolov3_tiny"),
            head=YOLOv3HeadConfig(anchors=(((10, 14), (23, 27), (37, 58)), ((81, 82), (135, 169), (344, 319)))),
        ),
    ),
    "yolov2": (YOLOV2, YOLOv2Config()),
    "yolov1_tiny": (
        YOLOV1_TINY,
        YOLOv1Config(
            backbone=DarknetConfig(name="yolov1_tiny", strides=(64,)),
            head=YOLOv1HeadConfig(
                hidden="none", selection=YOLOv1SelectionConfig(score_threshold=0.005, nms_threshold=0.45)
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_official_weights_fill_detkits_own_detectors(tmp_path: Path, name: str) -> None:
    """The same file detects the same whether it is read with its cfg or into a detector of detkit."""
    cfg, config = DETECTORS[name]
    torch.manual_seed(0)
    detector = build_detector(config, Categories.of_names(["a", "b"])).eval()
    path = write_model(tmp_path, cfg, [], ["a", "b"])
    path.with_suffix(".weights").write_bytes(random_weights(path))
    load_official(detector, path.with_suffix(".weights"))
    darknet = load_darknet(path, names=path.with_suffix(".names"))
    path.with_suffix(".weights").unlink()  # up to 200 MB, and pytest keeps folders
    side = darknet.input.resize.size
    batch = batch_of(random(1, 3, side, side, low=0, high=255).to(torch.uint8))
    with torch.no_grad():
        ((actual,), (expected,)) = (each.postprocess(each(batch), batch.infos) for each in (detector, darknet))
    assert len(expected) >= 5
    assert torch.equal(actual.labels, expected.labels[: len(actual)])
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(actual.scores, expected.scores)


def random_weights(cfg: Path) -> bytes:
    """A file for the network of `cfg`: lively weights, bias and statistics that differ from place to place."""
    from detkit.weights.darknet_cfg import read_cfg
    from detkit.weights.darknet_network import build_network

    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    for layer in build_network(read_cfg(cfg)).weighted_layers():
        weight = next(p for p in layer.parameters() if p.ndim >= 2)
        outputs, inputs = weight.shape[0], weight[0].numel()
        parts.append(rng.normal(0, 0.1, outputs))
        if any(isinstance(module, nn.BatchNorm2d) for module in layer.modules()):
            parts += [rng.uniform(0.8, 1.2, outputs), rng.normal(0, 0.1, outputs), rng.uniform(0.5, 1.5, outputs)]
        parts.append(rng.standard_normal(outputs * inputs, dtype=np.float32) * np.float32((1.5 / inputs) ** 0.5))
    return struct.pack("<3iq", 0, 2, 5, 0) + b"".join(part.astype("<f4").tobytes() for part in parts)


def test_official_weights_need_their_detector(tmp_path: Path) -> None:
    weights = tmp_path / "a.weights"
    faster = build_detector(
        FasterRCNNConfig(backbone=ResNetConfig(name="resnet18", weights=None)), Categories.of_names(["a"])
    )
    with pytest.raises(UserError, match="for yolov1 to yolov4 and yolov7, not FasterRCNN"):
        load_official(faster, weights)
    other = YOLOv2Config(backbone=MobileNetV3Config(weights=None, strides=(16, 32)))
    with torch.device("meta"), pytest.raises(UserError, match="need a backbone of darknet"):
        load_official(build_detector(other, Categories.of_names(["a"])), weights)


# ---- the tools


def refused(capsys: pytest.CaptureFixture[str], source: object) -> str:
    """The one line of an evaluation of `source` that must end with status 2."""
    capsys.readouterr()
    assert cli.evaluate([str(source)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def test_predict_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny_model(tmp_path, 20)
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    cv2.imwrite(str(picture), random(40, 60, 3, low=0, high=255).numpy().astype(np.uint8))
    for source in (cfg, f"darknet:{cfg}", f"darknet:{cfg}:{cfg.with_suffix('.weights')}"):
        output = tmp_path / "out"
        words = [str(source), str(picture), "--output", str(output), "--device", "cpu", "--score-threshold", "0"]
        assert cli.predict(words) == 0
        (row,) = json.loads((output / "detections.json").read_text())
        assert row["detections"]
    names = tmp_path / "shapes.names"
    names.write_text("circle\ncross\nrectangle\nring\nstar\ntriangle\n")
    config, cfg = write_config(tmp_path / "tiny.yaml"), tiny_model(tmp_path / "own", 6)
    numbers = tmp_path / "numbers.json"
    assert cli.evaluate([f"darknet:{cfg}::{names}", "--config", str(config), "--json", str(numbers)]) == 0
    assert numbers.exists()
    assert "public weights bring no data" in refused(capsys, f"darknet:{cfg}::{names}")


CONV = "[convolutional]\nfilters=7\nsize=1\nactivation=linear\n"
YOLO = "[yolo]\nanchors=4,4\nnum=1\nclasses=2\n"


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ("", ["not a darknet configuration", "no section"]),
        (CONV + YOLO, ["not a darknet configuration", "expected [net]", "[convolutional], [yolo]"]),
        (NET, ["expected [net] and then layers, found [net]"]),
        (NET + "hello\n", ["model.cfg:5: expected [section], key=value or # comment, found 'hello'"]),
        (NET + "[capsule]\n", ["model.cfg:5: [capsule] of layer 0: this layer is not known; known: convolutional, "]),
        (NET + CONV + "[net]\n", ["model.cfg:9: [net] of layer 1: this layer is not known"]),
        ("[net]\nwidth=8\nheight=4\n" + CONV + YOLO, ["model.cfg:1: [net]", "square input, found 8 x 4"]),
        ("[net]\nwidth=8\n" + CONV + YOLO, ["model.cfg:1: [net]: height: missing"]),
        (NET.replace("3", "1") + CONV + YOLO, ["model.cfg:4: [net]: channels: expected 3, RGB, found 1"]),
        (NET + CONV, ["[net]", "not a detector", "[detection], [region] or [yolo]"]),
        (NET + CONV.replace("linear", "leeky") + YOLO, ["model.cfg:8: ", "activation: 'leeky' is not known", "leaky"]),
        (
            NET + CONV.replace("filters=7", "filters=x") + YOLO,
            [":6: ", "layer 0: filters: expected a whole number", "'x'"],
        ),
        (NET + CONV.replace("filters=7", "filters=0") + YOLO, ["filters: expected at least 1, found 0"]),
        (NET + CONV.replace("size=1\n", "") + YOLO, ["[convolutional] of layer 0: size: missing"]),
        (NET + CONV.replace("filters", "filter") + YOLO, ["filter: unknown key; did you mean 'filters'?"]),
        (NET + CONV + "dilation=2\n" + YOLO, ["dilation: not supported, found '2'"]),
        (
            NET + CONV + "groups=2\n" + YOLO,
            ["does not fit its input [3, 8, 8]: in_channels must be divisible by groups"],
        ),
        (NET + CONV.replace("size=1", "size=9") + YOLO, ["layer 0: does not fit its input [3, 8, 8]"]),
        (NET + CONV.replace("7", "8") + YOLO, ["[yolo] of layer 1: expected 1 x (5 + 2) = 7 outputs", "found 8"]),
        (NET + CONV + YOLO.replace("num=1", "num=2"), ["anchors: expected num=2 pairs, found 1"]),
        (NET + CONV + YOLO.replace("4,4", "4,4,4"), ["anchors: expected pairs of numbers, found 3"]),
        (NET + CONV + YOLO.replace("4,4", "4,nan"), ["anchors: expected numbers, found 'nan'"]),
        (NET + CONV + YOLO + "mask=1\n", ["mask: expected numbers of anchors, 0 to 0, found [1]"]),
        (NET + CONV + YOLO + "coords=5\n", ["coords: expected 4, found 5"]),
        (NET + CONV + "[detection]\nclasses=2\nside=8\nnum=2\n", ["expected 8^2 (2 + 5 x 2) = 768 outputs", "448"]),
        (NET + CONV + "[region]\nanchors=1,1\nnum=1\nclasses=2\ntree=a\n", ["tree: not supported, found 'a'"]),
        (NET + CONV + "[route]\nlayers=-2\n" + YOLO, ["[route] of layer 1: layers: -2 is no layer before this one"]),
        (NET + CONV + "[route]\nlayers=1\n" + YOLO, ["layers: 1 is no layer before this one; expected 0 to 0"]),
        (NET + CONV + "[route]\nlayers=0\ngroups=2\ngroup_id=2\n" + YOLO, ["group_id: expected 0 to 1, found 2"]),
        (NET + CONV + "[route]\nlayers=\n" + YOLO, ["layers: expected numbers of layers, found none"]),
        (NET + CONV + YOLO + CONV, ["layer 2", "reads layer 1, [yolo], which ends there"]),
        (NET + CONV + YOLO + "[route]\nlayers=1\n", ["layers: reads layer 1, [yolo], which ends there"]),
        (NET + CONV + "[reorg]\nstride=3\n" + YOLO, ["[reorg] of layer 1: does not fit its input [7, 8, 8]"]),
        (
            NET + CONV + POOL + "[shortcut]\nfrom=0\nactivation=linear\n" + YOLO,
            ["[shortcut] of layer 2", "[7, 4, 4] and [7, 8, 8]", "expected one height and width"],
        ),
        (
            NET + CONV + YOLO + "[route]\nlayers=0\n" + CONV.replace("7", "8") + YOLO.replace("=2", "=3"),
            ["expected one number of classes, found 2 and 3"],
        ),
    ],
)
def test_a_cfg_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], cfg: str, words: list[str]) -> None:
    path = write_model(tmp_path, cfg, [], ["a", "b"])
    message = refused(capsys, f"darknet:{path}::{path.with_suffix('.names')}")
    for word in (str(path), *words):
        assert word in message


def test_files_that_are_not_there_or_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere.cfg"
    assert f"{missing}: cannot read this darknet configuration: No such file" in refused(capsys, missing)
    assert "expected darknet:CFG" in refused(capsys, "darknet:")
    path = tiny_model(tmp_path, 20)
    weights = path.with_suffix(".weights")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-6])
    assert "cut short at ConvBlock, number 1 of 1 layers with weights: 2 of 100 floats are missing" in refused(
        capsys, path
    )
    weights.write_bytes(whole + bytes(8))
    assert f"{weights}: too long: 2 floats are left over" in refused(capsys, path)
    weights.unlink()
    assert f"{weights}: cannot read these weights: No such file" in refused(capsys, path)
    path.write_bytes(bytes(range(256)))
    assert f"{path}:" in refused(capsys, path)
