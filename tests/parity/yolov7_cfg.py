"""Darknet's descriptions of yolov7, yolov7x and yolov7-tiny, from the facts of its cfg files (public domain), of two
classes and for pictures of 256 px.

Layers are counted from 0 without `[net]`, as darknet prints them.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.weights.test_darknet import POOL, conv
from tests.weights.test_darknet_yolov4 import UP, route

SIZE = 256  # px: eight cells of the coarsest level, so that its pools of 5, 9 and 13 cells differ
NUM_CLASSES = 2
NET = f"[net]\nwidth={SIZE}\nheight={SIZE}\n"
V7_ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"
TINY_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"


class Numbers(NamedTuple):
    """Layers that a later one reads.

    backbone  the ends of the stages of stride 16 and 8
    neck      what joins the way up at stride 16 and 32: the block of the way down, and the pools
    heads     the blocks of stride 8, 16 and 32 that are predicted from
    """

    backbone: tuple[int, int]
    neck: tuple[int, int]
    heads: tuple[int, int, int]


def pools(first: str, *after: int) -> str:
    """Max pools of 5, 9 and 13 cells, all of the map before them, which is layer -1, and what joins them."""
    wide = "".join(route(back) + f"[maxpool]\nstride=1\nsize={size}\n" for back, size in ((-2, 9), (-4, 13)))
    return first + "[maxpool]\nstride=1\nsize=5\n" + wide + route(*after)


def heads(numbers: Numbers, channels: tuple[int, int, int], act: str, anchors: str) -> str:
    text = ""
    for level, (source, width) in enumerate(zip(numbers.heads, channels, strict=True)):
        mask = ",".join(str(3 * level + anchor) for anchor in range(3))
        text += route(source) + conv(width, 3, act=act) + conv(3 * (5 + NUM_CLASSES), 1, norm=0, act="logistic")
        text += f"[yolo]\nmask={mask}\nanchors={anchors}\nclasses={NUM_CLASSES}\nnum=9\nscale_x_y=2.0\nnew_coords=1\n"
    return text


class Large(NamedTuple):
    """yolov7 and yolov7x.

    stem     channels of the first four convolutions
    stages   channels of the four stages
    convs    3x3 convolutions of a block
    neck     channels of the pools, of the blocks of stride 16 and 8 down, and of stride 16 and 32 up
    hidden   channels of the 3x3 convolutions of the neck's blocks, in this order
    taps     what the neck's blocks join
    """

    stem: tuple[int, int, int, int]
    stages: tuple[int, int, int, int]
    convs: int
    neck: tuple[int, int, int, int, int]
    hidden: tuple[int, int, int, int]
    taps: tuple[int, ...]


def block(side: int, hidden: int, out: int, convs: int, taps: tuple[int, ...], act: str = "swish") -> str:
    """Two 1x1 convolutions of one map, a chain of 3x3 ones after the second, and a 1x1 of what `taps` join."""
    return (
        conv(side, 1, act=act) + route(-2) + conv(side, 1, act=act) + conv(hidden, 3, act=act) * convs + route(*taps)
        + conv(out, 1, act=act)
    )  # fmt: skip


def down(half: int, *joined: int) -> str:
    """Half the size: a max pool and a 1x1 convolution, beside a 1x1 and a strided 3x3."""
    return (
        POOL + conv(half, 1, act="swish") + route(-3) + conv(half, 1, act="swish") + conv(half, 3, 2, act="swish")
        + route(-1, -4, *joined)
    )  # fmt: skip


def large(table: Large, numbers: Numbers) -> str:
    pairs = (*range(-1, -table.convs - 2, -2), -table.convs - 3)  # every second 3x3 convolution, and both 1x1
    one, two, three, four = table.stem
    text = NET + "".join(
        conv(width, 3, stride, act="swish") for width, stride in ((one, 1), (two, 2), (three, 1), (four, 2))
    )
    for number, (hidden, out) in enumerate(zip((64, 128, 256, 256), table.stages, strict=True)):
        text += down(table.stages[number - 1] // 2) if number else ""
        text += block(hidden, hidden, out, table.convs, pairs)
    top, *rest = table.neck
    before = "".join(conv(top, size, act="swish") for size in (1, 3, 1))
    text += conv(top, 1, act="swish") + route(-2) + pools(before, -6, -5, -3, -1)
    text += conv(top, 1, act="swish") + conv(top, 3, act="swish") + route(-1, -13) + conv(top, 1, act="swish")
    sides = (256, 128, 256, 512)
    for step in (0, 1):
        lateral = conv(rest[step], 1, act="swish")
        text += lateral + UP + route(numbers.backbone[step]) + lateral + route(-1, -3)
        text += block(sides[step], table.hidden[step], rest[step], table.convs, table.taps)
    for step in (2, 3):
        text += down(rest[step - 1], numbers.neck[step - 2])
        text += block(sides[step], table.hidden[step], rest[step], table.convs, table.taps)
    fine, middle, coarse = (2 * rest[step] for step in (1, 2, 3))
    return text + heads(numbers, (fine, middle, coarse), "swish", V7_ANCHORS)


def tiny(numbers: Numbers) -> str:
    def leaky(width: int, size: int, stride: int = 1) -> str:
        return conv(width, size, stride)

    def small(hidden: int, out: int) -> str:
        return block(hidden, hidden, out, 2, (-5, -3, -2, -1), "leaky")

    text = NET + leaky(32, 3, 2) + leaky(64, 3, 2) + small(32, 64)
    text += "".join(POOL + small(hidden, 2 * hidden) for hidden in (64, 128, 256))
    text += leaky(256, 1) + route(-2) + pools(leaky(256, 1), -1, -3, -5, -6)
    text += leaky(256, 1) + route(-10, -1) + leaky(256, 1)
    for width, source in zip((128, 64), numbers.backbone, strict=True):
        text += leaky(width, 1) + UP + route(source) + leaky(width, 1) + route(-1, -3) + small(width // 2, width)
    for width, source in zip((128, 256), numbers.neck, strict=True):
        text += leaky(width, 3, 2) + route(-1, source) + small(width // 2, width)
    return text + heads(numbers, (128, 256, 512), "leaky", TINY_ANCHORS)


YOLOV7 = large(
    Large(
        (32, 64, 64, 128), (256, 512, 1024, 1024), 4, (512, 256, 128, 256, 512), (128, 64, 128, 256),
        (-1, -2, -3, -4, -5, -7),
    ),
    Numbers((42, 27), (86, 72), (100, 115, 130)),
)  # fmt: skip
YOLOV7X = large(
    Large(
        (40, 80, 80, 160), (320, 640, 1280, 1280), 6, (640, 320, 160, 320, 640), (256, 128, 256, 512),
        (-1, -3, -5, -7, -9),
    ),
    Numbers((48, 31), (96, 80), (112, 129, 146)),
)  # fmt: skip
YOLOV7_TINY = tiny(Numbers((24, 16), (56, 44), (68, 77, 86)))
