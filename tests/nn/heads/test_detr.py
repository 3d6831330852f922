"""DETR's matching, losses and detections by hand, and what padding may not change."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.heads.detr import DETRHead, DETRHeadConfig
from detkit.nn.heads.set_head import DETROutputs, Matching, PredictionGroup
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Objects, Target

SMALL = TransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)


def make_head(**changes: Any) -> DETRHead:
    torch.manual_seed(0)
    return DETRHead(DETRHeadConfig(transformer=SMALL, num_queries=5, **changes), in_channels=8, num_classes=2)


def make_target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> Target:
    return Target(
        Objects(
            torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(ignore or [False] * len(labels), dtype=torch.bool),
        )
    )


def make_outputs(probabilities: list[list[list[float]]], boxes: list[list[list[float]]]) -> DETROutputs:
    """One image of 200 x 100 px (w x h): layers of queries of probabilities and cxcywh."""
    logits = torch.tensor(probabilities).log()[:, None]
    return DETROutputs(logits, torch.tensor(boxes)[:, None], torch.tensor([[200.0, 100.0, 200.0, 100.0]]))


# Class 1 from (20, 10) to (60, 50), in parts of the picture (.2, .3, .2, .4).
OBJECT = make_target([[20, 10, 60, 50]], [1])
EXACT, SHIFTED, FAR = [0.2, 0.3, 0.2, 0.4], [0.25, 0.3, 0.2, 0.4], [0.8, 0.7, 0.2, 0.4]


def test_losses_by_hand() -> None:
    """Query 1 is nearest. Its box lies .05 beside: IoU .15 x .4 / (.25 x .4), and the union fills the enclosing box."""
    outputs = make_outputs([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]], [[FAR, SHIFTED, FAR]])
    losses = make_head().criterion(outputs, [OBJECT])
    weights = 1 + 2 * 0.1
    assert losses["detr_class"].item() == pytest.approx(
        -(math.log(0.6) + 0.1 * (math.log(0.1) + math.log(0.5))) / weights, abs=1e-5
    )
    assert losses["detr_l1"].item() == pytest.approx(5 * 0.05, abs=1e-5)
    assert losses["detr_giou"].item() == pytest.approx(2 * (1 - 0.15 / 0.25), abs=1e-5)
    assert set(losses) == {"detr_class", "detr_l1", "detr_giou"}, "one layer has no auxiliary losses"


def test_each_layer_is_matched_by_itself_and_those_before_the_last_are_summed() -> None:
    probabilities = [[[0.3, 0.6, 0.1], [0.2, 0.3, 0.5]], [[0.2, 0.3, 0.5], [0.3, 0.6, 0.1]]]
    first, last = (make_outputs([probabilities[i]], [[EXACT, FAR][:: 1 - 2 * i]]) for i in (0, 1))
    both = replace(last, logits=torch.cat([first.logits, last.logits]), boxes=torch.cat([first.boxes, last.boxes]))
    losses = make_head().criterion(both, [OBJECT])
    for name in ("class", "l1", "giou"):
        assert losses[f"detr_{name}"] == make_head().criterion(last, [OBJECT])[f"detr_{name}"]
        assert losses[f"detr_aux_{name}"] == make_head().criterion(first, [OBJECT])[f"detr_{name}"]
    assert losses["detr_l1"] == 0


def match(detr: DETRHead, outputs: DETROutputs) -> list[list[int]]:
    objects = SetTargets.of([OBJECT], outputs.sides)
    return detr.assigner.assign(outputs.logits, outputs.boxes, objects).predictions.tolist()


def test_the_matching_weighs_class_distance_and_overlap() -> None:
    """Two equal boxes: the probability decides, and it counts less than a better box."""
    alike = make_outputs([[[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]]], [[SHIFTED, SHIFTED]])
    assert match(make_head(), alike) == [[1]]
    better = make_outputs([[[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]]], [[EXACT, SHIFTED]])
    assert match(make_head(), better) == [[0]]  # .05 x 5 + 2 x .4 against .5
    assert match(make_head(class_cost=3.0), better) == [[1]]


def test_box_losses_are_divided_by_the_objects_of_the_batch() -> None:
    outputs = make_outputs([[[0.1, 0.6, 0.3], [0.6, 0.3, 0.1]]], [[SHIFTED, FAR]])
    one = make_head().criterion(outputs, [OBJECT])
    two = make_head().criterion(
        outputs, [make_target([[20, 10, 60, 50], [140, 50, 180, 90]], [1, 0])]
    )  # the second is exact
    torch.testing.assert_close(two["detr_l1"], one["detr_l1"] / 2, atol=1e-6, rtol=0)
    empty = make_head().criterion(outputs, [make_target([], [])])
    assert empty["detr_l1"] == empty["detr_giou"] == 0
    assert empty["detr_class"].item() == pytest.approx(-(math.log(0.3) + math.log(0.1)) / 2, abs=1e-5)


def save_l1_of_rank(rank: int, counts: list[tuple[int, int]], folder: str) -> None:
    """The L1 loss of one of two processes in several cases: `counts` objects of each rank, all .05 from a query."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outputs = make_outputs([[[0.1, 0.6, 0.3]] * 4], [[SHIFTED] * 4])
    targets = [make_target([[20, 10, 60, 50]] * case[rank], [1] * case[rank]) for case in counts]
    torch.save([make_head().criterion(outputs, [target])["detr_l1"] for target in targets], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_processes_divide_by_the_mean_of_their_objects(tmp_path: Path) -> None:
    """So that the mean of their gradients is that of one process with all images."""
    torch.multiprocessing.spawn(save_l1_of_rank, ([(1, 3), (4, 0), (0, 0)], str(tmp_path)), nprocs=2)
    for rank, expected in enumerate([[1 / 2, 4 / 2, 0], [3 / 2, 0, 0]]):
        actual = torch.stack(torch.load(tmp_path / f"{rank}.pt"))
        torch.testing.assert_close(actual, 5 * 0.05 * torch.tensor(expected), atol=1e-5, rtol=0)


def test_predictions_on_ignored_objects_are_no_object_as_published() -> None:
    outputs = make_outputs([[[0.1, 0.6, 0.3]]], [[FAR]])
    ignored = make_head().criterion(outputs, [make_target([[20, 10, 60, 50]], [1], [True])])
    assert ignored == make_head().criterion(outputs, [make_target([], [])])


@pytest.mark.parametrize(("ignored_iof", "spared"), [(0.7, True), (0.8, False)])
def test_predictions_inside_ignored_objects_may_be_neutral(ignored_iof: float, spared: bool) -> None:
    """Query 0 is matched and inside too, query 1 lies .75 inside, and query 2 is far away."""
    outputs = make_outputs([[[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.3, 0.2, 0.5]]], [[EXACT, SHIFTED, FAR]])
    crowd = make_target([[20, 10, 60, 50], [0, 0, 60, 100]], [1, 1], [False, True])
    loss = make_head(ignored_iof=ignored_iof).criterion(outputs, [crowd])["detr_class"]
    expected = -math.log(0.6) - 0.1 * (0 if spared else math.log(0.4)) - 0.1 * math.log(0.5)
    assert loss.item() == pytest.approx(expected / (1.1 if spared else 1.2), abs=1e-5)


def test_a_batch_of_neutral_predictions_has_no_class_loss() -> None:
    outputs = make_outputs([[[0.1, 0.6, 0.3]]], [[EXACT]])
    crowd = make_target([[0, 0, 200, 100]], [1], [True])
    assert make_head(ignored_iof=0.5).criterion(outputs, [crowd])["detr_class"] == 0


def test_more_objects_than_queries() -> None:
    outputs = make_outputs([[[0.1, 0.6, 0.3]]], [[EXACT]])
    crowded = make_target([[140, 50, 180, 90], [20, 10, 60, 50], [100, 50, 180, 90]], [0, 1, 0])
    losses = make_head().criterion(outputs, [crowded])
    assert losses["detr_l1"].item() == pytest.approx(0, abs=1e-6)
    assert losses["detr_class"].item() == pytest.approx(-math.log(0.6), abs=1e-5)


def test_gradients_by_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    detr = make_head()
    targets = [OBJECT, make_target([[5, 5, 50, 60], [100, 20, 190, 90]], [0, 1])]
    objects = SetTargets.of(targets, torch.tensor([[200.0, 100.0] * 2] * 2, dtype=torch.float64))
    pairs = detr.assigner.assign(logits, raw.sigmoid(), objects)
    neutral = torch.zeros(2, 2, 5, dtype=torch.bool)

    def losses(logits: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
        group = PredictionGroup("detr", logits, raw.sigmoid())
        matching = Matching(pairs, pairs, torch.tensor(3.0), torch.tensor(3.0))
        return tuple(detr.group_losses(group, objects, matching, neutral).values())

    assert torch.autograd.gradcheck(losses, (logits, raw))


def test_predictions_that_are_not_finite_make_the_loss_so() -> None:
    """The loop then names the images; the matching must not fail before."""
    outputs = make_outputs([[[0.1, 0.6, 0.3], [0.6, 0.3, 0.1]]], [[[math.nan] * 4, FAR]])
    outputs = replace(outputs, logits=outputs.logits * math.nan)
    assert make_head().criterion(outputs, [OBJECT])["detr_class"].isnan()


WINDOW = torch.tensor([[0.0, 0, 200, 100]])


def test_every_query_is_a_detection_of_its_best_class() -> None:
    outputs = make_outputs([[[0.1, 0.6, 0.3], [0.25, 0.05, 0.7]]], [[EXACT, [0.95, 0.5, 0.2, 0.2]]])
    rows = make_head().detect(outputs, WINDOW)
    assert rows.counts.tolist() == [2]
    assert rows.labels[0, :2].tolist() == [1, 0]
    torch.testing.assert_close(rows.scores[0, :2], torch.tensor([0.6, 0.25]))
    expected = torch.tensor([[20.0, 10, 60, 50], [170, 40, 200, 60]])  # the second is clipped at the border
    torch.testing.assert_close(rows.boxes[0, :2], expected, atol=1e-4, rtol=0)


def test_the_selection_is_a_setting() -> None:
    outputs = make_outputs([[[0.1, 0.6, 0.3], [0.25, 0.05, 0.7], [0.1, 0.5, 0.4]]], [[EXACT, FAR, EXACT]])

    def scores(**settings: float) -> list[float]:
        rows = make_head(selection=settings).detect(outputs, WINDOW)
        return rows.scores[0, : rows.counts[0]].tolist()

    assert scores() == pytest.approx([0.6, 0.5, 0.25])
    assert scores(score_threshold=0.3) == pytest.approx([0.6, 0.5])
    assert scores(nms_threshold=0.5) == pytest.approx([0.6, 0.25])
    assert scores(max_detections=1) == pytest.approx([0.6])


def test_each_image_in_a_padded_batch_is_as_alone() -> None:
    """From the features on: cells of the padding are neither attended to nor counted."""
    detr = make_head().eval()
    torch.manual_seed(1)
    features = torch.randn(2, 8, 4, 6)
    sizes = torch.tensor([[128, 192], [90, 120]])
    together = detr([features], sizes, (128, 192))
    for index, (rows, columns) in enumerate([(4, 6), (3, 4)]):
        one = slice(index, index + 1)
        canvas = (int(sizes[index, 0]), int(sizes[index, 1]))
        alone = detr([features[one, :, :rows, :columns]], sizes[one], canvas)
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], atol=1e-5, rtol=0)
