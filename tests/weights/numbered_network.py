"""YOLOv5 and YOLOv7 as lists of numbered layers, run as their published graphs run: a witness for names of weights.

A layer is a name, the layers that it reads (-1 for the one before it) and its arguments. It draws the weights that it
lacks, under their published names, so that one run makes a state dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = tuple[Any, ...]
COCO_ANCHORS = [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]]
V7_ANCHORS = [[[12, 16], [19, 36], [40, 28]], [[36, 75], [76, 55], [72, 146]], [[142, 110], [192, 243], [459, 401]]]


class Network:
    """
    anchors   width and height in px, of three levels
    implicit  YOLOv7's, added before the predictions and multiplied with them
    """

    def __init__(
        self, layers: list[Layer], anchors: list[Any], classes: int, act: Callable[[Tensor], Tensor], implicit: bool
    ) -> None:
        self.layers, self.act, self.implicit, self.outputs = layers, act, implicit, 3 * (5 + classes)
        scaled = torch.tensor(anchors, dtype=torch.float32) / torch.tensor([8.0, 16.0, 32.0])[:, None, None]
        self.state = {f"model.{len(layers)}.anchors": scaled}

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The predictions of each level, `[B, A (5 + K), H, W]`, of images divided by 255."""
        maps: list[Tensor] = []
        for number, (kind, sources, *arguments) in enumerate(self.layers):
            inputs = [maps[source] if maps else x for source in sources]
            maps.append(getattr(self, kind)(f"model.{number}", *inputs, *arguments))
        ends = maps[-3:] if self.layers[-1][0] != "c3" else [maps[17], maps[20], maps[23]]
        return [self.predict(f"model.{len(self.layers)}", level, number) for number, level in enumerate(ends)]

    def tensor(self, key: str, *shape: int, low: float | None = None, high: float = 1.0) -> Tensor:
        """Normal numbers of variance 1 / fan in, or even ones between `low` and `high`."""
        if key not in self.state:
            fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 1
            drawn = torch.randn(shape) / fan_in**0.5 if low is None else torch.empty(shape).uniform_(low, high)
            self.state[key] = drawn
        return self.state[key]

    def norm(self, key: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        mean, var = self.tensor(f"{key}.running_mean", channels), self.tensor(f"{key}.running_var", channels, low=0.5)
        weight, bias = self.tensor(f"{key}.weight", channels, low=0.5, high=2), self.tensor(f"{key}.bias", channels)
        self.state.setdefault(f"{key}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def conv(self, key: str, x: Tensor, out: int, size: int = 1, stride: int = 1) -> Tensor:
        weight = self.tensor(f"{key}.conv.weight", out, x.shape[1], size, size)
        padding = (size - 1) // 2  # 2 of the 6 x 6
        return self.act(self.norm(f"{key}.bn", F.conv2d(x, weight, stride=stride, padding=padding)))

    def c3(self, key: str, x: Tensor, out: int, count: int, shortcut: bool) -> Tensor:
        y = self.conv(f"{key}.cv1", x, out // 2)
        for number in range(count):
            inner = self.conv(f"{key}.m.{number}.cv1", y, out // 2)
            inner = self.conv(f"{key}.m.{number}.cv2", inner, out // 2, 3)
            y = y + inner if shortcut else inner
        return self.conv(f"{key}.cv3", torch.cat([y, self.conv(f"{key}.cv2", x, out // 2)], dim=1), out)

    def sppf(self, key: str, x: Tensor, out: int) -> Tensor:
        y = self.conv(f"{key}.cv1", x, x.shape[1] // 2)
        return self.conv(f"{key}.cv2", torch.cat([y, *(pooled(y, size) for size in (5, 9, 13))], dim=1), out)

    def sppcspc(self, key: str, x: Tensor, out: int) -> Tensor:
        y = self.conv(f"{key}.cv4", self.conv(f"{key}.cv3", self.conv(f"{key}.cv1", x, out), out, 3), out)
        y = torch.cat([y, *(pooled(y, size) for size in (5, 9, 13))], dim=1)
        y = self.conv(f"{key}.cv6", self.conv(f"{key}.cv5", y, out), out, 3)
        return self.conv(f"{key}.cv7", torch.cat([y, self.conv(f"{key}.cv2", x, out)], dim=1), out)

    def rep(self, key: str, x: Tensor, out: int) -> Tensor:
        sides = []
        for name, size in (("rbr_dense", 3), ("rbr_1x1", 1)):
            weight = self.tensor(f"{key}.{name}.0.weight", out, x.shape[1], size, size)
            sides.append(self.norm(f"{key}.{name}.1", F.conv2d(x, weight, padding=size // 2)))
        return self.act(sides[0] + sides[1])

    def up(self, key: str, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def halve(self, key: str, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def pool(self, key: str, x: Tensor, size: int) -> Tensor:
        return pooled(x, size)

    def cat(self, key: str, *maps: Tensor) -> Tensor:
        return torch.cat(maps, dim=1)

    def predict(self, key: str, x: Tensor, level: int) -> Tensor:
        if self.implicit:
            x = x + self.tensor(f"{key}.ia.{level}.implicit", 1, x.shape[1], 1, 1)
        weight = self.tensor(f"{key}.m.{level}.weight", self.outputs, x.shape[1], 1, 1)
        y = F.conv2d(x, weight, self.tensor(f"{key}.m.{level}.bias", self.outputs))
        return y * self.tensor(f"{key}.im.{level}.implicit", 1, self.outputs, 1, 1, low=0.5) if self.implicit else y


def pooled(x: Tensor, size: int) -> Tensor:
    return F.max_pool2d(x, size, 1, size // 2)


def yolov5(depth: float, width: float, classes: int, anchors: list[Any] | None = None) -> Network:
    def layers_of(channels: int, count: int, shortcut: bool = True) -> list[Layer]:
        return [("c3", (-1,), int(channels * width), max(round(count * depth), 1), shortcut)]

    def conv(channels: int, size: int = 1, stride: int = 1) -> Layer:
        return "conv", (-1,), int(channels * width), size, stride

    up: Layer = ("up", (-1,))
    layers = [
        conv(64, 6, 2),
        *[conv(128, 3, 2), *layers_of(128, 3), conv(256, 3, 2), *layers_of(256, 6)],  # 1 to 4
        *[conv(512, 3, 2), *layers_of(512, 9), conv(1024, 3, 2), *layers_of(1024, 3)],  # 5 to 8
        ("sppf", (-1,), int(1024 * width)),
        *[conv(512), up, ("cat", (-1, 6)), *layers_of(512, 3, False)],  # 10 to 13
        *[conv(256), up, ("cat", (-1, 4)), *layers_of(256, 3, False)],  # 14 to 17
        *[conv(256, 3, 2), ("cat", (-1, 14)), *layers_of(512, 3, False)],  # 18 to 20
        *[conv(512, 3, 2), ("cat", (-1, 10)), *layers_of(1024, 3, False)],  # 21 to 23
    ]
    return Network(layers, anchors or COCO_ANCHORS, classes, F.silu, False)


def conv(channels: int, size: int = 1, stride: int = 1, source: int = -1) -> Layer:
    return "conv", (source,), channels, size, stride


def elan(side: int, hidden: int, count: int, taps: tuple[int, ...], out: int) -> list[Layer]:
    return [conv(side), conv(side, source=-2), *[conv(hidden, 3)] * count, ("cat", taps), conv(out)]


def mp(half: int, *joined: int) -> list[Layer]:
    """A max pool and a convolution, and beside them two convolutions."""
    return [("halve", (-1,)), conv(half), conv(half, source=-3), conv(half, 3, 2), ("cat", (-1, -3, *joined))]


def lateral(channels: int, source: int) -> list[Layer]:
    return [conv(channels), ("up", (-1,)), conv(channels, source=source), ("cat", (-1, -2))]


def yolov7(classes: int, implicit: bool = True) -> Network:
    some, every = (-1, -3, -5, -6), (-1, -2, -3, -4, -5, -6)
    layers = [
        *[conv(32, 3), conv(64, 3, 2), conv(64, 3), conv(128, 3, 2)],
        *[*elan(64, 64, 4, some, 256), *mp(128), *elan(128, 128, 4, some, 512)],  # ends with 24
        *[*mp(256), *elan(256, 256, 4, some, 1024)],  # 37
        *[*mp(512), *elan(256, 256, 4, some, 1024), ("sppcspc", (-1,), 512)],  # 51
        *[*lateral(256, 37), *elan(256, 128, 4, every, 256)],  # 63
        *[*lateral(128, 24), *elan(128, 64, 4, every, 128)],  # 75
        *[*mp(128, 63), *elan(256, 128, 4, every, 256)],  # 88
        *[*mp(256, 51), *elan(512, 256, 4, every, 512)],  # 101
        *[("rep", (75,), 256), ("rep", (88,), 512), ("rep", (101,), 1024)],
    ]
    return Network(layers, V7_ANCHORS, classes, F.silu, implicit)


def yolov7x(classes: int, implicit: bool = True) -> Network:
    taps = (-1, -3, -5, -7, -8)
    layers = [
        *[conv(40, 3), conv(80, 3, 2), conv(80, 3), conv(160, 3, 2)],
        *[*elan(64, 64, 6, taps, 320), *mp(160), *elan(128, 128, 6, taps, 640)],  # ends with 28
        *[*mp(320), *elan(256, 256, 6, taps, 1280)],  # 43
        *[*mp(640), *elan(256, 256, 6, taps, 1280), ("sppcspc", (-1,), 640)],  # 59
        *[*lateral(320, 43), *elan(256, 256, 6, taps, 320)],  # 73
        *[*lateral(160, 28), *elan(128, 128, 6, taps, 160)],  # 87
        *[*mp(160, 73), *elan(256, 256, 6, taps, 320)],  # 102
        *[*mp(320, 59), *elan(512, 512, 6, taps, 640)],  # 117
        *[conv(320, 3, source=87), conv(640, 3, source=102), conv(1280, 3, source=117)],
    ]
    return Network(layers, V7_ANCHORS, classes, F.silu, implicit)


def yolov7_tiny(classes: int, implicit: bool = True) -> Network:
    taps, halve = (-1, -2, -3, -4), ("halve", (-1,))
    layers = [
        *[conv(32, 3, 2), conv(64, 3, 2), *elan(32, 32, 2, taps, 64)],
        *[halve, *elan(64, 64, 2, taps, 128)],  # ends with 14
        *[halve, *elan(128, 128, 2, taps, 256)],  # 21
        *[halve, *elan(256, 256, 2, taps, 512)],  # 28
        *[conv(256), conv(256, source=-2), ("pool", (-1,), 5), ("pool", (-2,), 9), ("pool", (-3,), 13)],
        *[("cat", taps), conv(256), ("cat", (-1, -7)), conv(256)],  # 37
        *[*lateral(128, 21), *elan(64, 64, 2, taps, 128)],  # 47
        *[*lateral(64, 14), *elan(32, 32, 2, taps, 64)],  # 57
        *[conv(128, 3, 2), ("cat", (-1, 47)), *elan(64, 64, 2, taps, 128)],  # 65
        *[conv(256, 3, 2), ("cat", (-1, 37)), *elan(128, 128, 2, taps, 256)],  # 73
        *[conv(128, 3, source=57), conv(256, 3, source=65), conv(512, 3, source=73)],
    ]
    return Network(layers, COCO_ANCHORS, classes, lambda x: F.leaky_relu(x, 0.1), implicit)
