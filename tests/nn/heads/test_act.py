"""ACT's head: what differs from SSD's, by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from detkit.nn.anchors import PriorConfig
from detkit.nn.heads.act import ACTHead, ACTHeadConfig, ACTSelectionConfig
from detkit.nn.heads.ssd import SSDHead, SSDHeadConfig, SSDOutputs
from detkit.structures import ImageInfo, Target
from tests.nn.heads.support import detect, make_target
from tests.nn.heads.test_ssd import PRIORS, cross_entropies

FRAMES = 3


def make_head(priors: PriorConfig = PRIORS, **fields: Any) -> ACTHead:
    """For the classes cat and dog, and levels of 2 channels a frame."""
    torch.manual_seed(0)
    return ACTHead(ACTHeadConfig(priors=priors, **fields), [2 * FRAMES] * len(priors.min_sizes), 2, FRAMES)


def make_outputs(head: SSDHead, count: int) -> SSDOutputs:
    """Squares of 10 px side by side, as in `test_ssd`."""
    torch.manual_seed(1)
    logits, deltas = torch.randn(1, count, 3), torch.randn(1, count, 4 * head.num_boxes)
    return SSDOutputs(logits, deltas, head.priors([(1, count)], (10, 10 * count)))


def target_of(tubes: list[list[tuple[float, float, float, float]]], labels: list[int] | None = None) -> Target:
    target = make_target([tube[0] for tube in tubes], labels)
    return Target(replace(target.objects, tubes=torch.tensor(tubes, dtype=torch.float32).view(-1, FRAMES, 4)))


MOVING = [(20.0, 0.0, 30.0, 10.0), (21.0, 0.0, 31.0, 10.0), (22.0, 0.0, 32.0, 10.0)]


def test_the_loss_of_boxes_is_divided_by_the_frames() -> None:
    """Prior 2 is at x = 20, and the object 0, 1 and 2 px right of it: dx = 0, 0.1 and 0.2, each over 0.1."""
    head = make_head()
    outputs = make_outputs(head, 8)
    losses = head.criterion(outputs, [target_of([MOVING], [1])])
    expected = torch.zeros(FRAMES, 4)
    expected[:, 0] = torch.tensor([0.0, 1.0, 2.0])
    distances = F.smooth_l1_loss(outputs.deltas[0, 2].view(FRAMES, 4), expected, reduction="sum")
    torch.testing.assert_close(losses["act_box"], distances / FRAMES)


def test_the_loss_of_classes_is_ssds() -> None:
    """One positive prior and the three hardest of the others."""
    head = make_head()
    outputs = make_outputs(head, 8)
    losses = head.criterion(outputs, [target_of([MOVING], [1])])
    hardest = cross_entropies(outputs, 0, 0)[[0, 1, 3, 4, 5, 6, 7]].sort(descending=True).values[:3]
    torch.testing.assert_close(losses["act_class"], cross_entropies(outputs, 0, 2)[2] + hardest.sum())
    assert losses.keys() == {"act_class", "act_box"}


def test_a_prior_answers_for_the_object_that_it_overlaps_in_all_frames() -> None:
    """The object begins in prior 2, IoU 1, 0 and 0, and is in prior 3 afterwards, IoU 0, 1 and 1."""
    head = make_head()
    outputs = make_outputs(head, 8)
    squares = [(20.0, 0.0, 30.0, 10.0), (30.0, 0.0, 40.0, 10.0), (30.0, 0.0, 40.0, 10.0)]
    losses = head.criterion(outputs, [target_of([squares])])
    expected = torch.zeros(4 * FRAMES)
    expected[0] = -10.0  # one side left, over 0.1
    torch.testing.assert_close(
        losses["act_box"], F.smooth_l1_loss(outputs.deltas[0, 3], expected, reduction="sum") / FRAMES
    )


def test_one_frame_is_ssd() -> None:
    """The same losses and detections as SSD's head with the same outputs."""
    act, ssd = ACTHead(ACTHeadConfig(priors=PRIORS), [2], 2, 1), SSDHead(SSDHeadConfig(priors=PRIORS), [2], 2)
    outputs = make_outputs(ssd, 8)
    target = make_target([(21, 0, 33, 10), (50, 1, 60, 9)], [1, 0])
    clip = Target(replace(target.objects, tubes=target.objects.boxes[:, None]))
    expected = ssd.criterion(outputs, [target])
    losses = act.criterion(outputs, [clip])
    for name in ("class", "box"):
        torch.testing.assert_close(losses[f"act_{name}"], expected[f"ssd_{name}"])
    info = ImageInfo(0, (20, 160), (10, 80), (0.5, 0.5))
    for one, other in zip(detect(act, outputs, info), detect(ssd, outputs, info), strict=True):
        assert len(one) == len(other) > 2
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.labels, other.labels)
        assert one.objects.tubes is not None
        torch.testing.assert_close(one.objects.tubes[:, 0], other.boxes)


def test_positives_of_every_clip_have_the_tubelets_of_their_object() -> None:
    """The second clip has the objects in the other order, and one more that is ignored before them."""
    head = make_head()
    still = [(50.0, 0.0, 60.0, 10.0)] * FRAMES
    first, second = target_of([MOVING, still]), target_of([still, still, MOVING])
    second = Target(replace(second.objects, ignore=torch.tensor([True, False, False])))
    outputs = make_outputs(head, 8)
    alone = head.criterion(outputs, [first])["act_box"]
    outputs = SSDOutputs(outputs.logits.repeat(2, 1, 1), outputs.deltas.repeat(2, 1, 1), outputs.priors)
    torch.testing.assert_close(head.criterion(outputs, [first, second])["act_box"], alone)


def test_a_batch_without_objects_has_no_loss_but_a_gradient_of_zero() -> None:
    head = make_head()
    outputs = head([torch.randn(2, 2 * FRAMES, 1, 6)], torch.tensor([[10, 60]] * 2), (10, 60))
    losses = head.criterion(outputs, [target_of([])] * 2)
    assert {name: loss.item() for name, loss in losses.items()} == {"act_class": 0, "act_box": 0}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_detections_have_a_box_in_each_frame() -> None:
    """Prior 1 is at x = 10; in frame t it moves by 0.1 t of its side, and is twice as high in the last."""
    head = make_head(selection=ACTSelectionConfig(score_threshold=0.5))
    logits, deltas = torch.zeros(1, 4, 3), torch.zeros(1, 4, 4 * FRAMES)
    logits[0, 1, 2] = 4.0  # dog
    deltas[0, 1, [4, 8]] = torch.tensor([1.0, 2.0])
    deltas[0, 1, 11] = 5 * math.log(2)
    outputs = SSDOutputs(logits, deltas, head.priors([(1, 4)], (10, 40)))
    (detections,) = detect(head, outputs, ImageInfo(0, (20, 80), (10, 40), (0.5, 0.5)))
    assert detections.labels.tolist() == [1]
    expected = torch.tensor([[[20.0, 0, 40, 20], [22, 0, 42, 20], [24, 0, 44, 20]]])  # twice as large; cut at y = 0, 20
    assert detections.objects.tubes is not None
    torch.testing.assert_close(detections.objects.tubes, expected)
    torch.testing.assert_close(detections.boxes, expected[:, 0])
    assert detections.scores[0].item() == pytest.approx(math.exp(4) / (math.exp(4) + 2))


def test_suppression_is_by_the_mean_overlap() -> None:
    """Two squares share their first box, and are apart in the others: IoU 1, 0 and 0. A third shares all three."""
    head = make_head()
    deltas = torch.zeros(1, 3, 4 * FRAMES)
    deltas[0, 1, 0], deltas[0, 2, 0:12:4] = -10.0, -20.0  # one side left, in the first frame, and two in each
    logits = torch.zeros(1, 3, 3)
    logits[0, :, 1] = torch.tensor([7.0, 6.0, 5.0])
    outputs = SSDOutputs(logits, deltas, head.priors([(1, 3)], (10, 30)))
    (detections,) = detect(head, outputs, ImageInfo(0, (10, 30), (10, 30), (1.0, 1.0)))
    cats = detections.labels == 0
    assert detections.boxes[cats].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10]]
    torch.testing.assert_close(detections.scores[cats], logits.softmax(dim=2)[0, :2, 1])


def test_other_suppressions_are_refused() -> None:
    with pytest.raises(ValueError, match="Input should be 'nms'"):
        ACTHeadConfig.model_validate({"selection": {"suppression": "diou"}})


def test_class_rows_are_those_of_ssd() -> None:
    head = make_head()
    assert head.class_rows(2)["classifier.0"].tolist() == [-2, 0, 1]
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert shapes["classifier.0.weight"] == (3, 2 * FRAMES, 3, 3)
    assert shapes["regressor.0.weight"] == (4 * FRAMES, 2 * FRAMES, 3, 3)
