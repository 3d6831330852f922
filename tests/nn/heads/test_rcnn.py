"""R-CNN's head by hand: the softmax while it learns, SVMs and regressors once they are there."""

import math

import pytest
import torch

from detkit.nn.heads.rcnn import RCNNHead, RCNNHeadConfig, RCNNSelectionConfig
from detkit.nn.heads.regions import RegionTargets
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows

WINDOWS = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
BOXES = torch.tensor([[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 90.0, 70.0]])
REGIONS = Regions.from_list([BOXES])


def make_head(**fields: object) -> RCNNHead:
    torch.manual_seed(0)
    selection = RCNNSelectionConfig(score_threshold=0.3, nms_threshold=0.5, top_k_per_class=None)
    config = RCNNHeadConfig(output_size=1, hidden=(2,), dropout=0.0, selection=selection, **fields)  # type: ignore[arg-type]
    head = RCNNHead(config, 2, 2)  # cats and dogs
    with torch.no_grad():
        head.hidden[0].weight.copy_(torch.eye(2))  # type: ignore[operator, union-attr]
        head.classifier.weight.copy_(torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]))
    return head.eval()


def detections(rows: DetectionRows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, scores and labels of the only image."""
    count = int(rows.counts)
    return rows.boxes[0, :count], rows.scores[0, :count], rows.labels[0, :count]


def finish(head: RCNNHead) -> RCNNHead:
    """An SVM for cats and one for dogs that have swapped what the softmax says, and boxes that grow."""
    head.finished.fill_(True)
    if head.config.svm:
        head.fc7_scale.fill_(2.0)
        head.svm_weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        head.svm_bias.copy_(torch.tensor([-1.0, -2.0]))
    if head.config.box_regression:
        head.pool5_scale.fill_(0.5)
        head.box_weight[0, 0, 0] = 1.0  # a cat's dx is half the first feature
        head.box_bias[1, 3] = math.log(2)  # a dog is twice as high
    return head


FEATURES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, :, None, None]  # the softmax says cat, dog


def test_the_softmax_scores_while_there_are_no_svms() -> None:
    head = make_head()
    outputs = head(FEATURES, REGIONS)
    assert outputs.margins is None
    assert outputs.deltas is None
    boxes, scores, labels = detections(head.detect(outputs, WINDOWS))
    assert labels.tolist() == [0, 1]
    assert boxes.tolist() == BOXES.tolist()
    assert scores.tolist() == pytest.approx([math.exp(5) / (math.exp(5) + 2)] * 2)


def test_svms_score_and_regressors_move() -> None:
    head = finish(make_head())
    outputs = head(FEATURES, REGIONS)
    assert outputs.margins is not None
    assert outputs.margins.tolist() == [[-1.0, 0.0], [1.0, -2.0]]
    boxes, scores, labels = detections(head.detect(outputs, WINDOWS))
    assert labels.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 0.5])
    assert boxes[0].tolist() == [50, 50, 90, 70], "the cat's first feature is 0: not moved"
    torch.testing.assert_close(boxes[1], torch.tensor([10.0, 0.0, 30.0, 40.0]))
    head.svm_bias[0] = 3.0
    boxes, _, _ = detections(head.detect(head(FEATURES, REGIONS), WINDOWS))
    assert [20.0, 10.0, 40.0, 30.0] in boxes.tolist(), "dx 0.5 of a width of 20"


def test_each_stage_can_be_left_out() -> None:
    outputs = finish(make_head(svm=None))(FEATURES, REGIONS)
    assert outputs.margins is None
    assert outputs.deltas is not None
    outputs = finish(make_head(box_regression=None))(FEATURES, REGIONS)
    assert outputs.margins is not None
    assert outputs.deltas is None
    assert "box_weight" not in make_head(box_regression=None).state_dict()
    assert "svm_weight" not in make_head(svm=None).state_dict()


def test_learning_on_makes_svms_stale() -> None:
    head = finish(make_head())
    head.train()(FEATURES, REGIONS)
    assert not head.finished
    assert head.eval()(FEATURES, REGIONS).margins is None


def test_they_travel_in_the_checkpoint() -> None:
    head, other = finish(make_head()), make_head()
    other.load_state_dict(head.state_dict())
    one, two = head(FEATURES, REGIONS), other(FEATURES, REGIONS)
    assert one.margins is not None
    assert torch.equal(one.margins, two.margins)
    assert torch.equal(one.deltas, two.deltas)


def test_they_are_no_parameters() -> None:
    assert {name.split(".")[0] for name, _ in make_head().named_parameters()} == {"hidden", "classifier"}


def test_the_loss_is_the_cross_entropy_of_the_sampled_regions() -> None:
    head = make_head()
    targets = RegionTargets(torch.tensor([1, 0]), BOXES)
    losses = head.criterion(head(FEATURES, REGIONS, targets))
    right, background = math.exp(5) / (math.exp(5) + 2), 1 / (math.exp(5) + 2)
    assert losses.keys() == {"roi_class"}
    assert losses["roi_class"].item() == pytest.approx(-(math.log(right) + math.log(background)) / 2, rel=1e-5)
