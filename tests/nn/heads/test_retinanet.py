"""RetinaNet's head on losses that are sums by hand; tests/parity has those of torchvision."""

import math

import pytest
import torch
from pydantic import ValidationError

from detkit.nn.assign.atss import ATSSAssigner, ATSSAssignerConfig
from detkit.nn.assign.iou import IoUAssigner, IoUAssignerConfig
from detkit.nn.heads.dense import FIRST_SCORE, TowerConfig, build_tower
from detkit.nn.heads.retinanet import RetinaNetAnchorConfig, RetinaNetHead, RetinaNetHeadConfig, RetinaNetOutputs
from detkit.structures import ImageInfo
from tests.nn.heads.support import detect, make_target

ROW = torch.tensor([[10.0 * i, 0.0, 10.0 * i + 10, 10.0] for i in range(4)])
POSITIVE, BACKGROUND = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)  # focal loss of a logit of 0


def make_head(num_classes: int = 3, **fields: object) -> RetinaNetHead:
    anchors = RetinaNetAnchorConfig(sizes=((8,), (16,)))
    return RetinaNetHead(RetinaNetHeadConfig(anchors=anchors, **fields), [8, 8], [8, 16], num_classes)


def outputs(images: int = 1, deltas: float = 0.0) -> RetinaNetOutputs:
    """Four anchors of 10 px in a row, two of either level, whose logits are all 0."""
    logits = (torch.zeros(images, 2, 3), torch.zeros(images, 2, 3))
    return RetinaNetOutputs(logits, torch.full((images, 4, 4), deltas), ROW)


def test_losses_of_an_image_are_divided_by_its_positives() -> None:
    """The first image has two positives, the second none, and 12 logits each: 2 of 12 are of the right class."""
    targets = [make_target([(0, 0, 10, 10), (30, 0, 40, 10)], [1, 2]), make_target([])]
    losses = make_head().criterion(outputs(2, deltas=0.5), targets)
    first, second = (2 * POSITIVE + 10 * BACKGROUND) / 2, 12 * BACKGROUND
    assert losses["retinanet_class"].item() == pytest.approx((first + second) / 2)
    assert losses["retinanet_box"].item() == pytest.approx(4 * 0.5 / 2)  # four deltas that should be 0; no box in one


def test_anchors_between_the_thresholds_take_no_part() -> None:
    """Of IoU 9 / 15 and 5 / 19 = .26 the second is below .3, but not below .2."""
    config = IoUAssignerConfig(fg_threshold=0.5, bg_threshold=0.3)
    losses = make_head(assigner=config).criterion(outputs(), [make_target([(1, 0, 15, 10)], [0])])
    assert losses["retinanet_class"].item() == pytest.approx(POSITIVE + 11 * BACKGROUND)
    between = IoUAssignerConfig(fg_threshold=0.5, bg_threshold=0.2)
    losses = make_head(assigner=between).criterion(outputs(), [make_target([(1, 0, 15, 10)], [0])])
    assert losses["retinanet_class"].item() == pytest.approx(POSITIVE + 8 * BACKGROUND)


def test_the_giou_loss_is_of_the_boxes() -> None:
    """An anchor of 10 px for an object of 10 x 5 px: IoU and GIoU are 1 / 2."""
    config = IoUAssignerConfig(fg_threshold=0.5, bg_threshold=0.4)
    head = make_head(box_loss="giou", assigner=config)
    losses = head.criterion(outputs(), [make_target([(0, 0, 10, 5)])])
    assert losses["retinanet_box"].item() == pytest.approx(0.5)


def test_ignored_objects_make_anchors_neutral_where_asked() -> None:
    target = make_target([(20, 0, 40, 10)], ignore=[True])
    for ignored_iof, logits in ((None, 12), (0.9, 6)):
        losses = make_head(ignored_iof=ignored_iof).criterion(outputs(), [target])
        assert losses["retinanet_class"].item() == pytest.approx(logits * BACKGROUND)


def test_a_class_weight_is_on_all_logits_of_its_positives() -> None:
    head = make_head()
    head.class_weights = torch.tensor([1.0, 4.0, 1.0])
    losses = head.criterion(outputs(), [make_target([(0, 0, 10, 10)], [1])])
    assert losses["retinanet_class"].item() == pytest.approx(4 * (POSITIVE + 2 * BACKGROUND) + 9 * BACKGROUND)


def test_the_likeliest_pairs_of_each_level_become_detections() -> None:
    """One of each level, by `top_k_per_level`; the second anchor is of two classes, of which one is above .3."""
    selection = {"top_k_per_level": 1, "score_threshold": 0.3}
    head = make_head(selection=RetinaNetHeadConfig().selection.model_copy(update=selection))
    given = outputs()
    given.logits[0].fill_(-9), given.logits[1].fill_(-9)
    given.logits[0][0, 1] = torch.tensor([0.5, -9, 0.25])
    given.logits[1][0, 0, 2] = 1.0
    given.deltas[0, 1] = torch.tensor([0.5, 0, 0, 0])
    (found,) = detect(head, given, ImageInfo(0, (10, 40), (10, 40), (1.0, 1.0)))
    assert found.labels.tolist() == [2, 0]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.5))])
    assert found.boxes.tolist() == [[20, 0, 30, 10], [15, 0, 25, 10]]


@pytest.mark.parametrize(("threshold", "logit", "count"), [(0.0, 0, 12), (0.5, 0, 0), (0.5, 1e-4, 12), (1.0, 99, 0)])
def test_scores_must_be_above_the_threshold(threshold: float, logit: float, count: int) -> None:
    """A score of exactly one half is not above one half, and what is little above it is."""
    selection = RetinaNetHeadConfig().selection.model_copy(update={"score_threshold": threshold})
    given = outputs()
    given.logits[0].fill_(logit), given.logits[1].fill_(logit)
    (found,) = detect(make_head(selection=selection), given, ImageInfo(0, (10, 40), (10, 40), (1.0, 1.0)))
    assert len(found) == count


def test_a_fresh_head_scores_one_in_a_hundred() -> None:
    """Section 4.1: b = -log((1 - pi) / pi)."""
    head = make_head()
    features = [torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 1, 1)]
    logits = torch.cat(head(features, torch.tensor([[16, 16]]), (16, 16)).logits, dim=1)
    assert logits.shape == (1, (4 + 1) * 9, 3)
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, FIRST_SCORE))


def test_towers() -> None:
    """Convolution, norm if there is one, ReLU; as many as asked."""
    tower = build_tower(8, TowerConfig(convs=2, groups=4, bias=False))
    assert [type(layer).__name__ for layer in tower[1]] == ["Conv2d", "GroupNorm", "ReLU"]
    assert {name for name, _ in tower.named_parameters()} == {
        f"{i}.{p}" for i in (0, 1) for p in ("0.weight", "1.weight", "1.bias")
    }
    assert [type(layer).__name__ for layer in build_tower(8, TowerConfig(convs=1))[0]] == ["Conv2d", "ReLU"]


def test_the_assigner_is_a_choice() -> None:
    assert isinstance(make_head().assigner(outputs()), IoUAssigner)
    assigner = make_head(assigner=ATSSAssignerConfig()).assigner(outputs())
    assert isinstance(assigner, ATSSAssigner)
    assert list(assigner.counts) == [2, 2]
    with pytest.raises(ValidationError, match=r"bg_threshold 0.6 is above fg_threshold 0.5"):
        IoUAssignerConfig(bg_threshold=0.6)


def test_rows_of_a_class_are_those_of_every_anchor() -> None:
    assert make_head().class_rows(2)["classifier"].tolist() == [0, 1] * 9
