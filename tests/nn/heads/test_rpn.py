"""The region proposal network, on cases small enough to count."""

from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.heads.rpn import RPN, AnchorConfig, RPNConfig, RPNOutputs
from detkit.structures import ImageInfo, Target

INFO = ImageInfo(0, (100, 100), (100, 100), (1.0, 1.0))


def make_rpn(levels: int = 1, **fields: Any) -> RPN:
    anchors = fields.pop("anchors", AnchorConfig(sizes=((16,),) * levels, ratios=(1.0,)))
    return RPN(RPNConfig(anchors=anchors, **fields), 4, [16 * 2**level for level in range(levels)])


def make_target(*boxes: tuple[float, float, float, float], ignore: tuple[bool, ...] | None = None) -> Target:
    flags = torch.tensor(ignore or (False,) * len(boxes), dtype=torch.bool)
    return Target(torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.int64), flags)


def make_outputs(
    anchors: list[tuple[float, float, float, float]],
    logits: list[list[float]],
    deltas: Tensor | None = None,
    level_sizes: tuple[int, ...] | None = None,
) -> RPNOutputs:
    scores = torch.tensor(logits)
    sizes = level_sizes or (len(anchors),)
    moved = torch.zeros(*scores.shape, 4) if deltas is None else deltas
    return RPNOutputs(scores, moved, torch.tensor(anchors), sizes, ((100, 100),) * len(scores))


# IoU with the object (0, 0, 10, 10): 1, 1/2, 0
ANCHORS = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (50.0, 50.0, 60.0, 60.0)]
OBJECT = (0.0, 0.0, 10.0, 10.0)


def test_losses_by_hand() -> None:
    deltas = torch.full((1, 3, 4), 9.0)
    deltas[0, 0] = torch.tensor([0.5, 0.0, 0.0, -0.05])  # of the positive; the wanted deltas are zero
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
        outputs = RPNOutputs(logits, torch.zeros(1, 4, 4), torch.tensor(anchors), (4,), ((100, 100),))
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


def propose(outputs: RPNOutputs, info: ImageInfo = INFO, train: bool = False, **fields: Any) -> list[list[float]]:
    rpn = make_rpn(len(outputs.level_sizes), **fields).train(train)
    return rpn.propose(outputs, [info] * len(outputs.logits))[0].tolist()


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
    outputs = make_outputs([(80.0, 20.0, 120.0, 60.0), (-10.0, -10.0, 200.0, 200.0)], [[1.0, 0.0]], deltas)
    # centre 100, 40 moves to 120, 30; the width doubles to 80
    found = propose(outputs, ImageInfo(0, (100, 130), (100, 130), (1.0, 1.0)))
    assert found == [[pytest.approx(80), pytest.approx(10), 130, pytest.approx(50)], [0, 0, 130, 100]]


def test_smallest_side_is_measured_in_original_pixels() -> None:
    outputs = make_outputs([(0.0, 0.0, 7.0, 20.0), (30.0, 0.0, 38.0, 20.0), (60.0, 0.0, 80.0, 7.9)], [[3.0, 2.0, 1.0]])
    halved = ImageInfo(0, (200, 200), (100, 100), (0.5, 0.5))  # 16 px there are 8 here
    assert propose(outputs, halved, min_size=16) == [[30, 0, 38, 20]]
    assert len(propose(outputs, halved)) == 3


def test_score_threshold_is_a_probability() -> None:
    assert numbers(propose(FIVE, score_threshold=0.5)) == [1, 2, 0, 4]  # logit 0 is one half


def test_no_gradient_flows_through_proposals() -> None:
    deltas = torch.zeros(1, 5, 4, requires_grad=True)
    outputs = make_outputs([box(n) for n in range(5)], [[1.0] * 5], deltas)
    assert not make_rpn().propose(outputs, [INFO])[0].requires_grad


def test_softmax_objectness_is_a_two_way_softmax() -> None:
    torch.manual_seed(0)
    anchors = AnchorConfig(sizes=((16, 32),), ratios=(0.5, 1.0, 2.0))
    rpn = make_rpn(anchors=anchors, objectness="softmax")
    features = torch.randn(2, 4, 3, 5)
    outputs = rpn([features], [(48, 80)] * 2, (48, 80))
    # as in py-faster-rcnn: the first channels are background, the last are object
    channels = rpn.objectness(F.relu(rpn.conv(features))).view(2, 2, 6, 3, 5)
    pairs = channels.permute(0, 3, 4, 2, 1).reshape(2, 3 * 5 * 6, 2)
    torch.testing.assert_close(outputs.logits.sigmoid(), pairs.softmax(dim=2)[..., 1])
    labels = torch.randint(0, 2, (2, 90))
    torch.testing.assert_close(
        F.binary_cross_entropy_with_logits(outputs.logits, labels.float()),
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
    outputs = rpn(features, [(64, 96)], (64, 96))
    assert outputs.level_sizes == (24, 6)
    hot = int(outputs.logits[0].argmax())
    assert outputs.anchors[hot].tolist() == [64 - 8, 32 - 8, 64 + 8, 32 + 8]  # cell (1, 2) of stride 32
    assert outputs.deltas[0, hot].tolist() == [0, 0, 5, 0]


def test_spacing_follows_the_image_or_the_stride() -> None:
    features = [torch.zeros(1, 4, 4, 4)]  # an image of 60 px has 4 cells at stride 16: 15 px each
    for spacing, expected in (("image", 45), ("stride", 48)):
        anchors = AnchorConfig(sizes=((16,),), ratios=(1.0,), spacing=spacing)
        last = make_rpn(anchors=anchors)(features, [(60, 60)], (60, 60)).anchors[-1]
        assert last.tolist() == [expected - 8, expected - 8, expected + 8, expected + 8]


def test_anchors_of_vgg16_are_the_published_table() -> None:
    """shaoqingren/faster_rcnn lists them from 1 and with inclusive corners; ours are continuous."""
    published = [
        (-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200),
        (-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264),
        (-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360),
    ]  # fmt: skip
    anchors = AnchorConfig(sizes=((128, 256, 512),), rounding="sides", spacing="stride", offset=0.5)
    rpn = make_rpn(anchors=anchors, objectness="softmax")
    found = rpn([torch.zeros(1, 4, 2, 2)], [(32, 32)], (32, 32)).anchors
    first = torch.tensor(published) + torch.tensor([-1, -1, 0, 0])
    assert torch.equal(found[:9], first.float())
    assert torch.equal(found[9:18], first.float() + torch.tensor([16, 0, 16, 0]))
    assert torch.equal(found[18:27], first.float() + torch.tensor([0, 16, 0, 16]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((16,), (32,)), "anchors.sizes: expected 1 lists, one a level, got 2"),
        ((), "anchors.sizes: expected 1 lists, one a level, got 0"),
    ],
)
def test_one_list_of_sizes_for_each_level(sizes: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rpn(anchors=AnchorConfig(sizes=sizes))


def test_as_many_sizes_on_every_level() -> None:
    with pytest.raises(ValueError, match=r"expected as many sizes on every level, got \[1, 2\]"):
        make_rpn(2, anchors=AnchorConfig(sizes=((16,), (16, 32))))


def test_thresholds_in_order() -> None:
    with pytest.raises(ValueError, match=r"bg_threshold 0.8 is above fg_threshold 0.7"):
        RPNConfig(bg_threshold=0.8)
