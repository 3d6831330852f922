"""DETR's matching and losses by hand, its way back to pixels, and what padding may not change."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from detkit.nn.heads.detr import DETRHead, DETRHeadConfig, DETROutputs, batch_objects
from detkit.nn.transformer import TransformerConfig
from detkit.structures import ImageInfo, Target

SMALL = TransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)
NAMES = ("cat", "dog")


def head(**changes: float) -> DETRHead:
    torch.manual_seed(0)
    return DETRHead(DETRHeadConfig(transformer=SMALL, num_queries=5, **changes), 8, NAMES)


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore or [False] * len(labels), dtype=torch.bool),
    )


def outputs(probabilities: list[list[list[float]]], boxes: list[list[list[float]]]) -> DETROutputs:
    """One image of 200 x 100 px (w x h): layers of queries of probabilities and cxcywh."""
    logits = torch.tensor(probabilities).log()[:, None]
    return DETROutputs(logits, torch.tensor(boxes)[:, None], torch.tensor([[200.0, 100.0, 200.0, 100.0]]))


# a dog from (20, 10) to (60, 50): as parts (.2, .3, .2, .4)
DOG = target([[20, 10, 60, 50]], [1])
EXACT, SHIFTED, FAR = [0.2, 0.3, 0.2, 0.4], [0.25, 0.3, 0.2, 0.4], [0.8, 0.7, 0.2, 0.4]


def test_losses_by_hand() -> None:
    """Query 1 is nearest. Its box lies .05 beside: IoU .15 x .4 to .25 x .4, which the enclosing box equals."""
    found = outputs([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]], [[FAR, SHIFTED, FAR]])
    losses = head().criterion(found, [DOG])
    weights = 1 + 2 * 0.1
    assert losses["detr_class"].item() == pytest.approx(
        -(math.log(0.6) + 0.1 * (math.log(0.1) + math.log(0.5))) / weights, abs=1e-5
    )
    assert losses["detr_l1"].item() == pytest.approx(5 * 0.05, abs=1e-5)
    assert losses["detr_giou"].item() == pytest.approx(2 * (1 - 0.15 / 0.25), abs=1e-5)
    assert all(losses[f"detr_aux_{name}"] == 0 for name in ("class", "l1", "giou"))


def test_layers_are_matched_apart_and_summed() -> None:
    probabilities = [[[0.3, 0.6, 0.1], [0.2, 0.3, 0.5]], [[0.2, 0.3, 0.5], [0.3, 0.6, 0.1]]]
    first, last = (outputs([probabilities[i]], [[EXACT, FAR][:: 1 - 2 * i]]) for i in (0, 1))
    both = replace(last, logits=torch.cat([first.logits, last.logits]), boxes=torch.cat([first.boxes, last.boxes]))
    losses = head().criterion(both, [DOG])
    for name in ("class", "l1", "giou"):
        assert losses[f"detr_{name}"] == head().criterion(last, [DOG])[f"detr_{name}"]
        assert losses[f"detr_aux_{name}"] == head().criterion(first, [DOG])[f"detr_{name}"]
    assert losses["detr_l1"] == 0


def test_the_matching_weighs_class_distance_and_overlap() -> None:
    """Both queries lie equally near; then only the probability speaks, and it is worth less than a better box."""
    alike = outputs([[[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]]], [[SHIFTED, SHIFTED]])
    objects = batch_objects(alike.sides, [DOG])
    assert head().match(alike, objects).queries.tolist() == [[1]]
    better = outputs([[[0.1, 0.2, 0.7], [0.1, 0.7, 0.2]]], [[EXACT, SHIFTED]])
    assert head().match(better, objects).queries.tolist() == [[0]]  # .05 x 5 + 2 x .4 against .5
    assert head(class_cost=3.0).match(better, objects).queries.tolist() == [[1]]


def test_box_losses_are_divided_by_the_objects_of_the_batch() -> None:
    found = outputs([[[0.1, 0.6, 0.3], [0.6, 0.3, 0.1]]], [[SHIFTED, FAR]])
    one = head().criterion(found, [DOG])
    two = head().criterion(found, [target([[20, 10, 60, 50], [140, 50, 180, 90]], [1, 0])])  # the second exactly found
    torch.testing.assert_close(two["detr_l1"], one["detr_l1"] / 2, atol=1e-6, rtol=0)
    empty = head().criterion(found, [target([], [])])
    assert empty["detr_l1"] == empty["detr_giou"] == 0
    assert empty["detr_class"].item() == pytest.approx(-(math.log(0.3) + math.log(0.1)) / 2, abs=1e-5)


def l1_of_rank(rank: int, counts: list[tuple[int, int]], folder: str) -> None:
    """The L1 loss of one of two processes, for its number of objects in each of the cases, all .05 from a query."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = outputs([[[0.1, 0.6, 0.3]] * 4], [[SHIFTED] * 4])
    dogs = [target([[20, 10, 60, 50]] * of_rank[rank], [1] * of_rank[rank]) for of_rank in counts]
    torch.save([head().criterion(found, [of_case])["detr_l1"] for of_case in dogs], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_divide_by_the_mean_of_their_objects(tmp_path: Path) -> None:
    """So that the mean of their gradients is that of one process with all images."""
    torch.multiprocessing.spawn(l1_of_rank, ([(1, 3), (4, 0), (0, 0)], str(tmp_path)), nprocs=2)
    for rank, expected in enumerate([[1 / 2, 4 / 2, 0], [3 / 2, 0, 0]]):
        found = torch.stack(torch.load(tmp_path / f"{rank}.pt"))
        torch.testing.assert_close(found, 5 * 0.05 * torch.tensor(expected), atol=1e-5, rtol=0)


def test_ignored_objects_are_not_looked_for() -> None:
    found = outputs([[[0.1, 0.6, 0.3]]], [[FAR]])
    ignored = head().criterion(found, [target([[20, 10, 60, 50]], [1], [True])])
    assert ignored == head().criterion(found, [target([], [])])


def test_more_objects_than_queries() -> None:
    found = outputs([[[0.1, 0.6, 0.3]]], [[EXACT]])
    crowded = target([[140, 50, 180, 90], [20, 10, 60, 50], [100, 50, 180, 90]], [0, 1, 0])
    losses = head().criterion(found, [crowded])
    assert losses["detr_l1"].item() == pytest.approx(0, abs=1e-6)
    assert losses["detr_class"].item() == pytest.approx(-math.log(0.6), abs=1e-5)


def test_gradients_by_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    detr = head()
    targets = [DOG, target([[5, 5, 50, 60], [100, 20, 190, 90]], [0, 1])]
    sides = torch.tensor([[200.0, 100.0] * 2] * 2, dtype=torch.float64)
    objects = batch_objects(sides, targets)
    pairs = detr.match(DETROutputs(logits, raw.sigmoid(), sides), objects)

    def losses(logits: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
        outputs = DETROutputs(logits, raw.sigmoid(), sides)
        return tuple(detr.layer_losses(outputs, objects, pairs, torch.tensor(3.0)).values())

    assert torch.autograd.gradcheck(losses, (logits, raw))


def test_a_prediction_that_is_no_number_makes_the_loss_so() -> None:
    """The loop then names the images; the matching must not stumble before."""
    found = outputs([[[0.1, 0.6, 0.3], [0.6, 0.3, 0.1]]], [[[math.nan] * 4, FAR]])
    found = replace(found, logits=found.logits * math.nan)
    assert head().criterion(found, [DOG])["detr_class"].isnan()


def test_every_query_is_a_detection_of_its_best_class() -> None:
    found = outputs([[[0.1, 0.6, 0.3], [0.25, 0.05, 0.7]]], [[EXACT, [0.95, 0.5, 0.2, 0.2]]])
    (detections,) = head().postprocess(found, [ImageInfo(0, (50, 50), (100, 200), (4.0, 2.0))])
    assert detections.labels.tolist() == [1, 0]
    torch.testing.assert_close(detections.scores, torch.tensor([0.6, 0.25]))
    expected = torch.tensor([[5.0, 5.0, 15.0, 25.0], [42.5, 20.0, 50.0, 30.0]])  # the second clipped at the border
    torch.testing.assert_close(detections.boxes, expected, atol=1e-4, rtol=0)


def test_each_image_in_a_padded_batch_is_as_alone() -> None:
    """From the features on: cells of the padding are not looked at, not counted and not seen."""
    detr = head().eval()
    torch.manual_seed(1)
    features = torch.randn(2, 8, 4, 6)
    sizes = [(128, 192), (90, 120)]
    together = detr(features, sizes, (128, 192))
    for index, (rows, columns) in enumerate([(4, 6), (3, 4)]):
        alone = detr(features[index : index + 1, :, :rows, :columns], sizes[index : index + 1], sizes[index])
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], atol=1e-5, rtol=0)
