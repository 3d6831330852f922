"""The head of FCOS and ATSS on losses that are sums by hand; tests/parity has those of torchvision."""

import math

import pytest
import torch
from pydantic import ValidationError

from detkit.nn.assign.atss import ATSSAssigner, ATSSAssignerConfig
from detkit.nn.heads.fcos import FCOSHead, FCOSHeadConfig, FCOSOutputs, FCOSTowerConfig
from detkit.structures import ImageInfo
from tests.nn.heads.support import detect, make_target

POSITIVE, BACKGROUND = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)  # focal loss of a logit of 0
CELLS = torch.tensor([[8.0 * i, 0.0, 8.0 * i + 8, 8.0] for i in range(4)])  # centres at 4, 12, 20 and 28
CANVAS = ImageInfo(0, (8, 32), (8, 32), (1.0, 1.0))


def make_head(**fields: object) -> FCOSHead:
    return FCOSHead(FCOSHeadConfig(tower=FCOSTowerConfig(convs=1, groups=4), **fields), [8, 8], [8, 16], 3)


def outputs(sides: float = 0.5) -> FCOSOutputs:
    """Four cells of 8 px in a row, all of one level; logits of 0, and distances of `sides` cells."""
    boxes = torch.full((1, 4, 4), sides)
    return FCOSOutputs((torch.zeros(1, 4, 3),), boxes, (torch.zeros(1, 4, 1),), CELLS)


def test_losses_by_hand() -> None:
    """The centre of the object is at (13, 4): 12 px along x reach the cells at 4, 12 and 20.

    Predicted are the cells themselves. Centre-ness: distances (2, 22), (10, 14), (18, 6) along x, and 1 along y.
    """
    losses = make_head().criterion(outputs(), [make_target([(2, 0, 26, 8)], [1])])
    centers = [math.sqrt(2 / 22), math.sqrt(10 / 14), math.sqrt(6 / 18)]
    # two cells lie inside, an IoU and GIoU of 8 / 24, and the first from 0 to 8: 6 / 26
    giou = [6 / 26, 8 / 24, 8 / 24]
    assert losses["fcos_class"].item() == pytest.approx((3 * POSITIVE + 9 * BACKGROUND) / 3)
    assert losses["fcos_box"].item() == pytest.approx(sum(1 - value for value in giou) / 3, rel=1e-5)
    assert losses["fcos_centerness"].item() == pytest.approx(math.log(2))
    weighted = make_head(box_by_centerness=True, box_scale=2.0).criterion(
        outputs(), [make_target([(2, 0, 26, 8)], [1])]
    )
    expected = 2 * sum((1 - value) * center for value, center in zip(giou, centers, strict=True)) / sum(centers)
    assert weighted["fcos_box"].item() == pytest.approx(expected, rel=1e-5)


def test_centre_ness_is_learned_from_its_target() -> None:
    """Cross-entropy has no gradient where the score is the target."""
    given = outputs()
    (logits,) = given.centerness
    logits[0, 1, 0] = torch.tensor(10 / 14).sqrt().logit()
    logits.requires_grad_()
    make_head().criterion(given, [make_target([(2, 0, 26, 8)])])["fcos_centerness"].backward()
    first, middle, last, outside = logits.grad.flatten().tolist()
    assert first == pytest.approx((0.5 - math.sqrt(2 / 22)) / 3)
    assert middle == pytest.approx(0, abs=1e-6)
    assert last == pytest.approx((0.5 - math.sqrt(6 / 18)) / 3)
    assert outside == 0


@pytest.mark.parametrize("by_centerness", [False, True])
def test_without_objects_there_is_background_alone(by_centerness: bool) -> None:
    losses = make_head(box_by_centerness=by_centerness).criterion(outputs(), [make_target([])])
    assert losses["fcos_class"].item() == pytest.approx(12 * BACKGROUND)
    assert losses["fcos_box"].item() == losses["fcos_centerness"].item() == 0


def test_ignored_objects_and_class_weights() -> None:
    ignored = make_target([(16, 0, 32, 8)], ignore=[True])
    losses = make_head(ignored_iof=0.9).criterion(outputs(), [ignored])
    assert losses["fcos_class"].item() == pytest.approx(6 * BACKGROUND)
    head = make_head()
    head.class_weights = torch.tensor([1.0, 4.0, 1.0])
    losses = head.criterion(outputs(), [make_target([(20, 0, 32, 8)], [1])])  # the cells at 20 (on its border) and 28
    assert losses["fcos_class"].item() == pytest.approx(4 * (POSITIVE + 2 * BACKGROUND) + 9 * BACKGROUND)


def test_a_score_is_the_root_of_class_times_centre_ness() -> None:
    """Class scores .8 and .1 on centre-ness .5: .632 and .224."""
    given = outputs()
    given.logits[0].fill_(-20)
    given.logits[0][0, 1, 2], given.logits[0][0, 3, 0] = torch.tensor([0.8, 0.1]).logit()
    (found,) = detect(make_head(), given, CANVAS)
    assert found.labels.tolist() == [2, 0]
    assert found.scores.tolist() == pytest.approx([0.4**0.5, 0.05**0.5])
    assert found.boxes.tolist() == [[8, 0, 16, 8], [24, 0, 32, 8]]
    (found,) = detect(make_head(class_threshold=0.1001), given, CANVAS)
    assert found.labels.tolist() == [2]


def test_boxes_are_distances_in_cells_that_are_not_negative_or_deltas() -> None:
    features = [torch.randn(1, 8, 2, 2), torch.randn(1, 8, 1, 1)]
    sizes = torch.tensor([[16, 16]])
    torch.manual_seed(0)
    sides = make_head()(features, sizes, (16, 16))
    assert sides.boxes.min() >= 0
    assert sides.cells.tolist() == [[-4, -4, 4, 4], [4, -4, 12, 4], [-4, 4, 4, 12], [4, 4, 12, 12], [-8, -8, 8, 8]]
    torch.manual_seed(0)
    deltas = make_head(boxes="deltas", side=8.0, assigner=ATSSAssignerConfig())(features, sizes, (16, 16))
    torch.testing.assert_close(deltas.boxes.relu(), sides.boxes)
    assert deltas.boxes.min() < 0
    assert deltas.cells[-1].tolist() == [-64, -64, 64, 64]
    half = make_head(offset=0.5, spacing="stride")(features, sizes, (16, 16)).cells
    assert half[0].tolist() == [0, 0, 8, 8]


def test_each_level_has_a_factor_where_asked() -> None:
    head = make_head(level_scales=True, boxes="deltas", side=8.0, assigner=ATSSAssignerConfig())
    features, sizes = [torch.randn(1, 8, 2, 2), torch.randn(1, 8, 1, 1)], torch.tensor([[16, 16]])
    before = head(features, sizes, (16, 16)).boxes
    head.level_scales.data = torch.tensor([1.0, 3.0])
    after = head(features, sizes, (16, 16)).boxes
    torch.testing.assert_close(after, torch.cat([before[:, :4], 3 * before[:, 4:]], dim=1))


def test_the_assigner_is_a_choice() -> None:
    """ATSS on points, as the paper's table 3 has it, with boxes of eight strides."""
    head = make_head(assigner=ATSSAssignerConfig(enlarge=8.0))
    assert isinstance(head.assigner(outputs()), ATSSAssigner)
    losses = head.criterion(outputs(), [make_target([(2, 0, 26, 8)], [1])])
    assert all(torch.isfinite(loss) for loss in losses.values())
    with pytest.raises(ValidationError, match="side: the assigner `points` measures in strides and needs 1, found 8"):
        FCOSHeadConfig(side=8.0)


def test_rows_of_a_class() -> None:
    assert make_head().class_rows(2)["classifier"].tolist() == [0, 1]
