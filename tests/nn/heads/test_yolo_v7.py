"""YOLOv7's head: implicit knowledge, which of YOLOv5's candidates learn, and its losses."""

import math
from typing import Any

import pytest
import torch

from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v7 import YOLOv7Head, YOLOv7HeadConfig
from tests.nn.heads.support import make_target
from tests.nn.heads.test_yolo_v5 import (
    ANCHORS,
    FAR_APART,
    SCENE,
    SIZE,
    STRIDES,
    losses_in_loops,
    losses_of_one_positive,
    outputs_of_one_positive,
    random_outputs,
)
from tests.reference import sim_ota as reference
from tests.reference.iou import box_iou


def make_head(**fields: Any) -> YOLOv7Head:
    torch.manual_seed(0)
    return YOLOv7Head(YOLOv7HeadConfig(anchors=ANCHORS, **fields), [4] * 3, STRIDES, 3).eval()


def features(batch: int = 1) -> list[torch.Tensor]:
    return [torch.randn(batch, 4, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]


def test_implicit_knowledge_folds_into_the_convolution() -> None:
    """W (x + a) + b, times m, is (m W) x + m (W a + b)."""
    head = make_head()
    plain = make_head(implicit=False)
    plain.convs.load_state_dict(head.convs.state_dict())
    with torch.no_grad():
        for number, conv in enumerate(plain.predict):
            theirs, added = head.predict[number], head.added[number][:, 0, 0]
            factor = head.factors[number][:, 0, 0]
            conv.weight.copy_(theirs.weight * factor[:, None, None, None])
            conv.bias.copy_(factor * (theirs.bias + theirs.weight[:, :, 0, 0] @ added))
    maps = features()
    outputs = (one(maps, torch.zeros(1, 2), SIZE).raw for one in (head, plain))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_against_the_slow_reference(seed: int) -> None:
    """SimOTA in which every candidate of any object is one of all, at no extra cost."""
    head = make_head()
    empty = head(features(), torch.zeros(1, 2), SIZE)
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(empty.raw.shape, generator=generator)
    outputs = YOLOOutputs(raw, empty.cells, empty.anchors, empty.strides)
    objects = [(2.0, 3, 20, 18), (10, 8, 44, 30), (3, 3, 21, 18), (30, 2, 38, 9)][: seed + 1]
    target = make_target(objects, [0, 2, 1, 1][: seed + 1])
    levels = head.levels(outputs)
    candidates = sorted(set(super(YOLOv7Head, head).pairs(outputs, levels, 0, target)[0].tolist()))
    boxes, logits = head.boxes(outputs)[0], raw[0]
    cost = {}
    taken: dict[int, list[int]] = {}
    for number, (box, label) in enumerate(zip(objects, target.objects.labels.tolist(), strict=True)):
        overlap = {row: box_iou(tuple(boxes[row].tolist()), box) for row in candidates}
        for row in candidates:
            probability = [
                (reference.sigmoid(float(value)) * reference.sigmoid(float(logits[row, 4]))) ** 0.5
                for value in logits[row, 5:]
            ]
            kind = sum(reference.cross_entropy(p, int(c == label)) for c, p in enumerate(probability))
            cost[number, row] = kind - 3 * torch.log(torch.tensor(overlap[row] + 1e-8)).item()
        count = max(1, int(sum(sorted(overlap.values(), reverse=True)[:10])))
        for row in sorted(candidates, key=lambda row: cost[number, row])[:count]:
            taken.setdefault(row, []).append(number)
    expected = {
        row: claims[0] if len(claims) == 1 else min(range(len(objects)), key=lambda number: cost[number, row])
        for row, claims in taken.items()
    }
    rows, matches = head.pairs(outputs, levels, 0, target)
    assert dict(zip(rows.tolist(), matches.tolist(), strict=True)) == expected


def test_without_objects_there_are_no_pairs() -> None:
    head = make_head()
    outputs = head(features(), torch.zeros(1, 2), SIZE)
    rows, matches = head.pairs(outputs, head.levels(outputs), 0, make_target([]))
    assert len(rows) == len(matches) == 0
    assert head.criterion(outputs, [make_target([])])["yolo_box"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_loops(seed: int) -> None:
    """YOLOv5's, over fewer pairs and with other factors."""
    head = make_head()
    outputs = random_outputs(head, 2, seed)
    expected = losses_in_loops(head, outputs, SCENE, factors=(0.05, 0.7, 0.3))
    torch.testing.assert_close(head.criterion(outputs, SCENE), expected, rtol=1e-5, atol=1e-6)


def far_apart() -> YOLOv7Head:
    return YOLOv7Head(YOLOv7HeadConfig(anchors=FAR_APART), [4] * 3, STRIDES, 3).eval()


def test_losses_of_one_positive_by_hand() -> None:
    head = far_apart()
    losses = head.criterion(outputs_of_one_positive(head), [make_target([(16, 6, 28, 22)], [0]), make_target([])])
    torch.testing.assert_close(losses, losses_of_one_positive(0.05, 0.7, 0.3))


def test_the_cheapest_candidate_by_hand() -> None:
    """An object of 6 x 8 px at (23, 15): candidates are its cell, (5, 3), whose prediction is 1 px left and above, that
    to the right, 3 px and 1 off, and the one below, 1 and 3 off. Their IoUs, 35/61, 21/75 and 25/71, are 1.2 together:
    one answers. Nothing tells the classes apart, so it is the first. A candidate that is sure of the class costs 2.08
    less, which is more than 3 log(35/61 / (25/71)) = 1.47 and less than 3 log(35/61 / (21/75)) = 2.15.
    """
    head = far_apart()
    outputs = random_outputs(head, 1)
    outputs.raw.zero_()
    target = make_target([(20, 11, 26, 19)], [1])
    own, right, below = (row * 12 + column for column, row in ((5, 3), (6, 3), (5, 4)))
    assert 3 * math.log(2) == pytest.approx(2.08, abs=1e-3)  # three classes of which each is 1/2

    def answers() -> list[int]:
        rows, objects = head.pairs(outputs, head.levels(outputs), 0, target)
        assert objects.tolist() == [0] * len(rows)
        return rows.tolist()

    assert sorted(super(YOLOv7Head, head).pairs(outputs, head.levels(outputs), 0, target)[0].tolist()) == [
        own,
        right,
        below,
    ]
    assert answers() == [own]
    sure = torch.tensor([20.0, -20.0, 20.0, -20.0])
    outputs.raw[0, right, 4:] = sure
    assert answers() == [own]
    outputs.raw[0, below, 4:] = sure
    assert answers() == [below]


def test_as_many_answer_as_overlap_the_object() -> None:
    """The same object, of which the candidates' IoUs are 2.6 together when two predict it exactly: two answer."""
    head = far_apart()
    outputs = random_outputs(head, 1)
    outputs.raw.zero_()
    for column, row in ((6, 3), (5, 4)):  # (23, 15) is 5.75, 3.75 cells; twice a probability is .5 more than the offset
        offsets = torch.tensor([(5.75 - column + 0.5) / 2, (3.75 - row + 0.5) / 2])
        outputs.raw[0, row * 12 + column, :2] = torch.logit(offsets)
    rows, _ = head.pairs(outputs, head.levels(outputs), 0, make_target([(20, 11, 26, 19)], [1]))
    assert sorted(rows.tolist()) == [3 * 12 + 6, 4 * 12 + 5]
