"""YOLOv4 of detkit from darknet's weights: the same as the network that darknet's own description makes of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from detkit.detectors.build import build_detector
from detkit.detectors.yolov4 import YOLOv4Config
from detkit.nn.backbones.csp_darknet53 import CSPDarknet53Config
from detkit.nn.heads.yolo_v4 import YOLOv4HeadConfig, YOLOv4SelectionConfig
from detkit.nn.input import StretchConfig
from detkit.nn.necks.yolo import YOLONeckConfig
from detkit.structures import Categories
from detkit.weights.darknet import load_darknet, load_official
from tests.nn.heads.test_yolo_v4 import TINY
from tests.weights.test_darknet import POOL, batch_of, conv, random, random_weights, write_model

V4_ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"
TINY_ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
UP = "[upsample]\nstride=2\n"


def route(*layers: int, half: bool = False) -> str:
    return f"[route]\nlayers={','.join(map(str, layers))}\n" + ("groups=2\ngroup_id=1\n" if half else "")


def yolo(mask: str, anchors: str, scale: float) -> str:
    number = anchors.count(",") // 2 + 1
    return conv(21, 1, norm=0, act="linear") + (
        f"[yolo]\nmask={mask}\nanchors={anchors}\nclasses=2\nnum={number}\nscale_x_y={scale}\n"
    )


def stage(channels: int, width: int, hidden: int, blocks: int) -> str:
    """A strided convolution, one half of its output as it is, the other through residual blocks, and both joined."""
    residual = conv(hidden, 1, act="mish") + conv(width, 3, act="mish") + "[shortcut]\nfrom=-3\nactivation=linear\n"
    return (
        conv(channels, 3, 2, act="mish") + conv(width, 1, act="mish") + route(-2) + conv(width, 1, act="mish")
        + residual * blocks + conv(width, 1, act="mish") + route(-1, -(3 * blocks + 4)) + conv(channels, 1, act="mish")
    )  # fmt: skip


def five(width: int) -> str:
    return (conv(width, 1) + conv(2 * width, 3)) * 2 + conv(width, 1)


YOLOV4 = (
    "[net]\nwidth=64\nheight=64\n" + conv(32, 3, act="mish")
    + stage(64, 64, 32, 1) + stage(128, 64, 64, 2) + stage(256, 128, 128, 8) + stage(512, 256, 256, 8)
    + stage(1024, 512, 512, 4)  # layer 104; strides 8 and 16 end with layers 54 and 85
    + conv(512, 1) + conv(1024, 3) + conv(512, 1)
    + "[maxpool]\nstride=1\nsize=5\n" + route(-2) + "[maxpool]\nstride=1\nsize=9\n" + route(-4)
    + "[maxpool]\nstride=1\nsize=13\n" + route(-1, -3, -5, -6) + conv(512, 1) + conv(1024, 3) + conv(512, 1)
    + conv(256, 1) + UP + route(85) + conv(256, 1) + route(-1, -3) + five(256)
    + conv(128, 1) + UP + route(54) + conv(128, 1) + route(-1, -3) + five(128)
    + conv(256, 3) + yolo("0,1,2", V4_ANCHORS, 1.2)
    + route(-4) + conv(256, 3, 2) + route(-1, -16) + five(256) + conv(512, 3) + yolo("3,4,5", V4_ANCHORS, 1.1)
    + route(-4) + conv(512, 3, 2) + route(-1, -37) + five(512) + conv(1024, 3) + yolo("6,7,8", V4_ANCHORS, 1.05)
)  # fmt: skip


def tiny_stage(channels: int) -> str:
    return (
        conv(channels, 3) + route(-1, half=True) + conv(channels // 2, 3) + conv(channels // 2, 3) + route(-1, -2)
        + conv(channels, 1) + route(-6, -1) + POOL
    )  # fmt: skip


YOLOV4_TINY = (
    "[net]\nwidth=64\nheight=64\n" + conv(32, 3, 2) + conv(64, 3, 2) + "".join(map(tiny_stage, (64, 128, 256)))
    + conv(512, 3) + conv(256, 1) + conv(512, 3) + yolo("3,4,5", TINY_ANCHORS, 1.05)
    + route(-4) + conv(128, 1) + UP + route(-1, 23) + conv(256, 3) + yolo("1,2,3", TINY_ANCHORS, 1.05)
)  # fmt: skip
SELECTION = YOLOv4SelectionConfig(score_threshold=0.005, nms_threshold=0.45, max_detections=1000)
DETECTORS = {
    "yolov4": (YOLOV4, YOLOv4Config(head=YOLOv4HeadConfig(selection=SELECTION))),
    "yolov4_tiny": (
        YOLOV4_TINY,
        YOLOv4Config(
            backbone=CSPDarknet53Config(name="csp_darknet53_tiny", strides=(16, 32)),
            neck=YOLONeckConfig(name="yolov4_tiny"),
            head=YOLOv4HeadConfig(**TINY, selection=SELECTION),
        ),
    ),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_official_weights_fill_detkits_own_yolov4(tmp_path: Path, name: str) -> None:
    cfg, config = DETECTORS[name]
    config = config.model_copy(update={"input": config.input.model_copy(update={"resize": StretchConfig(size=64)})})
    detector = build_detector(config, Categories.of_names(["a", "b"])).eval()
    path = write_model(tmp_path, cfg, [], ["a", "b"])
    path.with_suffix(".weights").write_bytes(random_weights(path))
    load_official(detector, path.with_suffix(".weights"))
    darknet = load_darknet(path, names=path.with_suffix(".names"))
    path.with_suffix(".weights").unlink()  # 250 MB, and pytest keeps folders
    batch = batch_of(random(1, 3, 64, 64, low=0, high=255).to(torch.uint8))
    with torch.no_grad():
        ((actual,), (expected,)) = (each.postprocess(each(batch), batch.infos) for each in (detector, darknet))
    assert len(expected) >= 5
    assert torch.equal(actual.labels, expected.labels)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(actual.scores, expected.scores)


def test_layers_are_where_the_neck_takes_them() -> None:
    """Convolutions, shortcuts, routes, pools and heads are counted from 0, as darknet prints them."""
    sections = [line for line in YOLOV4.splitlines() if line.startswith("[")][1:]
    trunk: Sequence[str] = sections[:105]
    assert [number for number, section in enumerate(trunk) if section == "[shortcut]"][-1] == 101
    assert sections.count("[convolutional]") == 110
    assert [line for line in YOLOV4_TINY.splitlines() if line.startswith("[")].count("[convolutional]") == 21
