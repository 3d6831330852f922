"""Class weights in every head's loss, by hand: only the loss of the class, only where the class is the target."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.heads.dab_detr import SigmoidClasses
from detkit.nn.heads.rcnn import RCNNOutputs
from detkit.nn.heads.regions import RegionTargets, RoIOutputs
from detkit.nn.losses import FocalLossConfig
from detkit.nn.proposals.regions import Regions
from tests.nn.heads import test_dab_detr as dab_detr
from tests.nn.heads import test_detr as detr
from tests.nn.heads import test_rcnn as rcnn
from tests.nn.heads import test_roi as roi
from tests.nn.heads import test_ssd as ssd
from tests.nn.heads import test_yolo_v1 as yolo_v1
from tests.nn.heads import test_yolo_v2 as yolo_v2
from tests.nn.heads import test_yolo_v3 as yolo_v3
from tests.nn.heads.support import class_targets, make_target

TWO, THREE = torch.tensor([2.0, 5.0]), torch.tensor([2.0, 5.0, 3.0])  # of cats and dogs, and of a third class


def both(head: Any, weights: Tensor, *arguments: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses with class weights, and without; those that are not of classes must be the same to the bit."""
    plain = head.criterion(*arguments)
    head.class_weights = torch.ones_like(weights)
    alike = head.criterion(*arguments)
    for name, loss in plain.items():
        torch.testing.assert_close(alike[name], loss)
    head.class_weights = weights
    weighted = head.criterion(*arguments)
    assert {name for name in plain if not torch.equal(weighted[name], plain[name])} <= {
        name for name in plain if "class" in name
    }
    return weighted, plain


REGIONS = Regions.from_list([torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]])])
LABELS = RegionTargets(torch.tensor([2, 1, 0]), REGIONS.boxes)  # a dog, a cat, background
LOGITS = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, math.log(2), 0.0], [math.log(2), 0.0, 0.0]])
EACH = math.log(2)  # the cross-entropy of a probability of one half


def test_regions() -> None:
    """Background weighs 1, and the mean stays one over the three regions."""
    outputs = RoIOutputs(REGIONS, LOGITS, torch.zeros(3, 3, 4), LABELS)
    weighted, plain = both(roi.make_head(), TWO, outputs)
    assert plain["roi_class"].item() == pytest.approx(EACH)
    assert weighted["roi_class"].item() == pytest.approx((5 + 2 + 1) * EACH / 3)


def test_regions_of_rcnn() -> None:
    weighted, _ = both(rcnn.make_head(), TWO, RCNNOutputs(REGIONS, LOGITS, None, None, LABELS))
    assert weighted["roi_class"].item() == pytest.approx((5 + 2 + 1) * EACH / 3)


def test_ssd() -> None:
    """A dog at prior 2, a cat at prior 5; the background that is mined is the same, and weighs 1."""
    head = ssd.make_head()
    outputs = ssd.make_outputs(head, 10)
    weighted, plain = both(head, TWO, outputs, [make_target([(20, 0, 30, 10), (50, 0, 60, 10)], [1, 0])])
    dog, cat = ssd.cross_entropies(outputs, 0, 2)[2], ssd.cross_entropies(outputs, 0, 1)[5]
    torch.testing.assert_close(weighted["ssd_class"], plain["ssd_class"] + (4 * dog + 1 * cat) / 2)


def test_yolov1() -> None:
    """Half the squared error of all three classes in the cell of the object, which is a dog."""
    outputs, target = yolo_v1.one_object(yolo_v1.make_outputs())
    weighted, plain = both(yolo_v1.make_head(), THREE, outputs, [target])
    error = (outputs.classes[0, 5] - torch.tensor([0.0, 1.0, 0.0])) ** 2
    torch.testing.assert_close(plain["yolo_class"], error.sum() / 2)
    torch.testing.assert_close(weighted["yolo_class"], 5 * error.sum() / 2)


def test_yolov2() -> None:
    """A dog and an object of the third class, whose probabilities of 1/3 the softmax has from zeros."""
    head = yolo_v2.make_head()
    outputs = yolo_v2.make_outputs(head)
    weighted, _ = both(head, THREE, outputs, [make_target([(0, 0, 30, 60), (40, 4, 56, 20)], [1, 2])])
    assert weighted["yolo_class"].item() == pytest.approx((5 + 3) * math.log(3))


def test_yolov3() -> None:
    """All three logits of the prediction weigh as much: each costs ln 2 from zeros."""
    head = yolo_v3.make_head()
    outputs = yolo_v3.make_outputs(head)
    weighted, plain = both(head, THREE, outputs, [make_target([yolo_v3.OBJECT], [1])])
    assert plain["yolo_class"].item() == pytest.approx(3 * math.log(2))
    assert weighted["yolo_class"].item() == pytest.approx(5 * 3 * math.log(2))


def test_detr() -> None:
    """Query 1 is the dog; the weights of the mean, 1 for it and .1 for each of the others, are as they were."""
    probabilities = [[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]]
    boxes = [[detr.FAR, detr.SHIFTED, detr.FAR]]
    outputs = detr.make_outputs(probabilities, boxes)
    weighted, _ = both(detr.make_head(), TWO, outputs, [detr.OBJECT])
    expected = -(5 * math.log(0.6) + 0.1 * (math.log(0.1) + math.log(0.5))) / 1.2
    assert weighted["detr_class"].item() == pytest.approx(expected, abs=1e-5)


def test_focal_loss_of_a_set() -> None:
    """All logits of the matched prediction weigh as much, in the proposals of cells too."""
    head = dab_detr.make_head(proposals=dab_detr.ProposalConfig())
    outputs = dab_detr.run(head)
    tripled = torch.full((3,), 3.0)
    weighted, plain = both(head, tripled, outputs, dab_detr.TARGETS)
    for name in ("detr_class", "proposal_class"):
        extra = weighted[name] - plain[name]
        assert 0 < extra < 2 * plain[name], f"{name}: only matched predictions weigh more"
    classes, logits = SigmoidClasses(3, FocalLossConfig()), torch.zeros(1, 1, 2, 3)
    labels = torch.tensor([[[1, 3]]])
    alike = classes.loss(logits, class_targets(labels, torch.ones(1, 1, 2)))
    five = classes.loss(logits, class_targets(labels, torch.tensor([[[5.0, 1.0]]])))
    # at probability 1/2 a positive costs .25 x .25 x ln 2 and a negative .75 x .25 x ln 2
    positive, negative = 0.0625 * math.log(2), 0.1875 * math.log(2)
    assert alike.item() == pytest.approx(positive + 5 * negative)
    assert five.item() == pytest.approx(5 * (positive + 2 * negative) + 3 * negative)


def test_weights_are_in_no_checkpoint() -> None:
    head = ssd.make_head()
    names = set(head.state_dict())
    head.class_weights = TWO
    assert set(head.state_dict()) == names
