"""The region proposal network, on cases small enough to count."""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.anchors import AnchorConfig
from detkit.nn.heads.rpn import RPN, RPNConfig, RPNOutputs
from detkit.ops.boxes import clip_boxes, valid_boxes
from detkit.ops.nms import nms
from detkit.structures import Objects, Target


def make_rpn(levels: int = 1, **fields: Any) -> RPN:
    anchors = fields.pop("anchors", AnchorConfig(sizes=((16,),) * levels, ratios=(1.0,)))
    return RPN(RPNConfig(anchors=anchors, **fields), 4, [16 * 2**level for level in range(levels)])


def make_target(*boxes: tuple[float, float, float, float], ignore: tuple[bool, ...] | None = None) -> Target:
    flags = torch.tensor(ignore or (False,) * len(boxes), dtype=torch.bool)
    return Target(Objects(torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.int64), flags))


def make_outputs(
    anchors: list[tuple[float, float, float, float]],
    logits: list[list[float]],
    deltas: Tensor | None = None,
    level_sizes: tuple[int, ...] | None = None,
    window: tuple[float, ...] = (0, 0, 100, 100),
) -> RPNOutputs:
    scores = torch.tensor(logits)
    levels = scores.split(level_sizes or (len(anchors),), dim=1)
    deltas = torch.zeros(*scores.shape, 4) if deltas is None else deltas
    return RPNOutputs(levels, deltas, torch.tensor(anchors), torch.tensor([window] * len(scores), dtype=torch.float32))


# IoU with the object (0, 0, 10, 10): 1, 1/2, 0
ANCHORS = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (50.0, 50.0, 60.0, 60.0)]
OBJECT = (0.0, 0.0, 10.0, 10.0)


def test_losses_by_hand() -> None:
    deltas = torch.full((1, 3, 4), 9.0)
    deltas[0, 0] = torch.tensor([0.5, 0.0, 0.0, -0.05])  # of the positive; the target deltas are zero
    losses = make_rpn().criterion(make_outputs(ANCHORS, [[log(3), 77.0, 0.0]], deltas), [make_target(OBJECT)])
    # object 3/4, background 1/2; the anchor between takes no part. Smooth L1, beta 1/9: 0.5 - 1/18 and 0.05^2 * 9 / 2
    assert losses["rpn_objectness"].item() == pytest.approx((log(4 / 3) + log(2)) / 2)
    assert losses["rpn_box"].item() == pytest.approx((0.5 - 1 / 18 + 0.0025 * 9 / 2) / 2)
    assert set(losses) == {"rpn_objectness", "rpn_box"}


def test_losses_are_averaged_over_the_samples_of_the_batch() -> None:
    deltas = torch.zeros(2, 3, 4)
    deltas[:, :, 0] = 0.5
    outputs = make_outputs(ANCHORS, [[0.0] * 3] * 2, deltas)
    losses = make_rpn().criterion(outputs, [make_target(OBJECT), make_target()])
    # one positive and one background, then three backgrounds: five samples
    assert losses["rpn_objectness"].item() == pytest.approx(log(2))
    assert losses["rpn_box"].item() == pytest.approx((0.5 - 1 / 18) / 5)


def test_an_ignored_object_is_no_target() -> None:
    outputs = make_outputs(ANCHORS, [[0.0, 5.0, 0.0]])
    ignored = make_rpn().criterion(outputs, [make_target(OBJECT, ignore=(True,))])
    empty = make_rpn().criterion(outputs, [make_target()])
    assert ignored == empty
    assert empty["rpn_objectness"].item() == pytest.approx((2 * log(2) + log(1 + 2.718281828459045**5)) / 3)


def test_anchors_inside_an_ignored_object_are_neutral_if_asked() -> None:
    """The second anchor lies inside the crowd, the third half inside it."""
    anchors = [(0.0, 0.0, 10.0, 10.0), (40.0, 40.0, 45.0, 45.0), (35.0, 40.0, 45.0, 50.0), (80.0, 80.0, 90.0, 90.0)]
    target = [make_target(OBJECT, (40.0, 40.0, 60.0, 60.0), ignore=(False, True))]

    def background(ignored_iof: float | None) -> list[int]:
        outputs = make_outputs(anchors, [[0.0] * 4])
        logits = outputs.logits[0].requires_grad_()
        make_rpn(ignored_iof=ignored_iof).criterion(outputs, target)["rpn_objectness"].backward()
        assert logits.grad is not None
        return torch.nonzero(logits.grad[0] > 0)[:, 0].tolist()

    assert background(None) == [1, 2, 3], "as published"
    assert background(0.9) == [2, 3]
    assert background(0.5) == [3]


def test_as_many_samples_as_asked() -> None:
    rpn = make_rpn(batch_size_per_image=2, positive_fraction=0.5, fg_threshold=0.5)
    outputs = make_outputs([*ANCHORS, (80.0, 80.0, 90.0, 90.0)], [[1.0, 1.0, -2.0, -2.0]])  # two positives, two not
    losses = rpn.criterion(outputs, [make_target(OBJECT)])
    assert losses["rpn_objectness"].item() == pytest.approx((log(1 + 2.718281828**-1) + log(1 + 2.718281828**-2)) / 2)


def test_only_inside_anchors_leaves_out_those_that_cross_the_border() -> None:
    anchors = [(-1.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (95.0, 95.0, 101.0, 100.0), (90.0, 90.0, 100.0, 100.0)]
    target = [make_target((-1.0, 0.0, 10.0, 10.0))]

    def positive_and_background(only_inside: bool) -> tuple[list[int], list[int]]:
        rpn = make_rpn(only_inside_anchors=only_inside)
        logits = torch.zeros(1, 4, requires_grad=True)
        window = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
        outputs = RPNOutputs((logits,), torch.zeros(1, 4, 4), torch.tensor(anchors), window)
        rpn.criterion(outputs, target)["rpn_objectness"].backward()
        assert logits.grad is not None
        return torch.nonzero(logits.grad[0] < 0)[:, 0].tolist(), torch.nonzero(logits.grad[0] > 0)[:, 0].tolist()

    assert positive_and_background(False) == ([0], [2, 3])
    # py-faster-rcnn matches among the anchors inside only: the object's best one there is positive
    assert positive_and_background(True) == ([1], [3])


def test_no_anchor_inside_is_no_error() -> None:
    outputs = make_outputs([(-5.0, -5.0, 10.0, 10.0)], [[3.0]])
    losses = make_rpn(only_inside_anchors=True).criterion(outputs, [make_target(OBJECT)])
    assert losses["rpn_objectness"] == losses["rpn_box"] == 0


def propose(outputs: RPNOutputs, train: bool = False, **fields: Any) -> list[list[float]]:
    """The proposals of the first image."""
    rpn = make_rpn(len(outputs.logits), **fields).train(train)
    return rpn.propose(outputs).to_list(len(outputs.windows))[0].tolist()


def box(number: float) -> tuple[float, float, float, float]:
    """Boxes of different numbers do not overlap."""
    return 0.0, 10 * number, 10.0, 10 * number + 9


def numbers(proposals: list[list[float]]) -> list[float]:
    return [y1 / 10 for _, y1, _, _ in proposals]


FIVE = make_outputs([box(n) for n in range(5)], [[1.0, 3.0, 2.0, -1.0, 0.0]], level_sizes=(3, 2))


def test_proposals_come_best_first() -> None:
    assert numbers(propose(FIVE)) == [1, 2, 0, 4, 3]


def test_top_k_before_nms_is_for_each_level_and_after_it_for_all() -> None:
    assert numbers(propose(FIVE, pre_nms_top_k_test=2)) == [1, 2, 4, 3]
    assert numbers(propose(FIVE, pre_nms_top_k_test=1)) == [1, 4]
    assert numbers(propose(FIVE, post_nms_top_k_test=2)) == [1, 2]


def test_training_has_its_own_top_k() -> None:
    assert numbers(propose(FIVE, train=True, pre_nms_top_k_train=1)) == [1, 4]
    assert numbers(propose(FIVE, train=True, post_nms_top_k_train=3)) == [1, 2, 0]
    assert numbers(propose(FIVE, train=True, pre_nms_top_k_test=1, post_nms_top_k_test=1)) == [1, 2, 0, 4, 3]


def test_nms_looks_at_one_level_at_a_time() -> None:
    same = make_outputs([box(0)] * 3, [[1.0, 3.0, 2.0]], level_sizes=(2, 1))
    assert len(propose(same)) == 2
    assert len(propose(make_outputs([box(0)] * 3, [[1.0, 3.0, 2.0]]))) == 1


def test_nms_threshold() -> None:
    half = make_outputs([(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0)], [[1.0, 0.0]])
    assert len(propose(half, nms_threshold=0.6)) == 2
    assert len(propose(half, nms_threshold=0.4)) == 1


def test_proposals_are_decoded_and_clipped() -> None:
    deltas = torch.zeros(1, 2, 4)
    deltas[0, 0] = torch.tensor([0.5, -0.25, log(2), 0.0])
    anchors = [(80.0, 20.0, 120.0, 60.0), (-10.0, -10.0, 200.0, 200.0)]
    # centre 100, 40 moves to 120, 30; the width doubles to 80
    proposals = propose(make_outputs(anchors, [[1.0, 0.0]], deltas, window=(0, 0, 130, 100)))
    assert proposals == [[pytest.approx(80), pytest.approx(10), 130, pytest.approx(50)], [0, 0, 130, 100]]
    in_a_letterbox = propose(make_outputs(anchors, [[1.0, 0.0]], deltas, window=(0, 20, 130, 90)))
    assert in_a_letterbox == [[pytest.approx(80), 20, 130, pytest.approx(50)], [0, 20, 130, 90]]


def test_smallest_side_is_measured_in_input_pixels() -> None:
    outputs = make_outputs([(0.0, 0.0, 7.0, 20.0), (30.0, 0.0, 38.0, 20.0), (60.0, 0.0, 80.0, 7.9)], [[3.0, 2.0, 1.0]])
    assert propose(outputs, min_size=8) == [[30, 0, 38, 20]]
    assert len(propose(outputs)) == 3


def test_an_image_has_the_same_number_of_rows_whatever_is_proposed() -> None:
    outputs = make_outputs([box(n) for n in range(3)], [[1.0, -1.0, 2.0], [-1.0, -2.0, -3.0]])
    regions = make_rpn(score_threshold=0.5, post_nms_top_k_test=4).eval().propose(outputs)
    assert regions.images.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert regions.valid.tolist() == [True, True, *[False] * 6]
    assert regions.boxes[:2].tolist() == [list(box(2)), list(box(0))]
    assert not regions.boxes[2:].any()


@pytest.mark.parametrize("train", [False, True])
@torch.no_grad()
def test_a_batch_is_proposed_for_like_image_after_image(train: bool) -> None:
    """The slow way: each image and each level of it alone."""
    torch.manual_seed(0)
    top_k = {"pre_nms_top_k_train": 40, "pre_nms_top_k_test": 25, "post_nms_top_k_train": 50, "post_nms_top_k_test": 30}
    rpn = make_rpn(3, score_threshold=0.3, min_size=12, **top_k).train(train)
    windows = torch.tensor([[0.0, 0, 160, 128], [0, 0, 100, 90], [0, 0, 40, 128]])
    outputs = rpn([torch.zeros(3, 4, 8 // 2**n, 10 // 2**n) for n in range(3)], windows, (128, 160))
    logits = tuple(torch.randn_like(level) for level in outputs.logits)
    outputs = replace(outputs, logits=logits, deltas=torch.randn_like(outputs.deltas) * 0.2)
    pre, post = (40, 50) if train else (25, 30)
    anchors = outputs.anchors.split([level.shape[1] for level in outputs.logits])
    deltas = outputs.deltas.split([level.shape[1] for level in outputs.logits], dim=1)
    proposals = rpn.propose(outputs).to_list(3)
    for i, window in enumerate(windows.tolist()):
        boxes, scores = [], []
        for level, logits in enumerate(outputs.logits):
            best = logits[i].argsort(descending=True)[:pre]
            decoded = rpn.coder.decode(deltas[level][i, best], anchors[level][best])
            decoded = clip_boxes(decoded, (int(window[3]), int(window[2])))
            score = logits[i, best].sigmoid()
            rows = valid_boxes(decoded, 12) & (score >= 0.3)
            rows = rows.nonzero()[:, 0][nms(decoded[rows], score[rows], 0.7)]
            boxes.append(decoded[rows])
            scores.append(score[rows])
        order = torch.cat(scores).argsort(descending=True, stable=True)[:post]
        assert len(order) > 5
        torch.testing.assert_close(proposals[i], torch.cat(boxes)[order], rtol=1e-6, atol=1e-5)


def test_score_threshold_is_a_probability() -> None:
    assert numbers(propose(FIVE, score_threshold=0.5)) == [1, 2, 0, 4]  # logit 0 is one half


def test_no_gradient_flows_through_proposals() -> None:
    deltas = torch.zeros(1, 5, 4, requires_grad=True)
    outputs = make_outputs([box(n) for n in range(5)], [[1.0] * 5], deltas)
    assert not make_rpn().propose(outputs).boxes.requires_grad


def test_softmax_objectness_is_a_two_way_softmax() -> None:
    torch.manual_seed(0)
    anchors = AnchorConfig(sizes=((16, 32),), ratios=(0.5, 1.0, 2.0))
    rpn = make_rpn(anchors=anchors, objectness="softmax")
    features = torch.randn(2, 4, 3, 5)
    outputs = rpn([features], torch.tensor([[0.0, 0, 80, 48]] * 2), (48, 80))
    (logits,) = outputs.logits
    # as in py-faster-rcnn: the first channels are background, the last are object
    channels = rpn.objectness(F.relu(rpn.conv(features))).view(2, 2, 6, 3, 5)
    pairs = channels.permute(0, 3, 4, 2, 1).reshape(2, 3 * 5 * 6, 2)
    torch.testing.assert_close(logits.sigmoid(), pairs.softmax(dim=2)[..., 1])
    labels = torch.randint(0, 2, (2, 90))
    torch.testing.assert_close(
        F.binary_cross_entropy_with_logits(logits, labels.float()),
        F.cross_entropy(pairs.flatten(0, 1), labels.flatten()),
    )


def test_outputs_follow_the_order_of_the_anchors() -> None:
    """A unit kernel on one hot cell: the place of the response in `logits` is that of the cell's anchor."""
    rpn = make_rpn(2)
    with torch.no_grad():
        for layer in (rpn.conv, rpn.objectness, rpn.deltas):
            layer.weight.zero_()
        rpn.conv.weight[0, 0, 1, 1] = rpn.objectness.weight[0, 0] = rpn.deltas.weight[2, 0] = 1
    features = [torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 2, 3)]
    features[1][0, 0, 1, 2] = 5.0
    outputs = rpn(features, torch.tensor([[0.0, 0, 96, 64]]), (64, 96))
    assert [level.shape for level in outputs.logits] == [(1, 24), (1, 6)]
    hot = int(torch.cat(outputs.logits, dim=1).argmax())
    assert outputs.anchors[hot].tolist() == [64 - 8, 32 - 8, 64 + 8, 32 + 8]  # cell (1, 2) of stride 32
    assert outputs.deltas[0, hot].tolist() == [0, 0, 5, 0]


def test_thresholds_in_order() -> None:
    with pytest.raises(ValueError, match=r"bg_threshold 0.8 is above fg_threshold 0.7"):
        RPNConfig(bg_threshold=0.8)
