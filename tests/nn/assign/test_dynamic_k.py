"""DiffusionDet's matching by hand, and against the slow reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.dynamic_k import DynamicKAssigner, DynamicKConfig, match_every_object
from detkit.nn.assign.hungarian import Pairs, SetTargets
from detkit.nn.heads.set_head import SigmoidClasses
from detkit.nn.losses import FocalLossConfig
from tests.reference import dynamic_k as reference

OBJECT = (0.5, 0.5, 0.4, 0.4)
FAR_AWAY = (0.05, 0.05, 0.02, 0.02)


def assign(boxes: Any, objects: SetTargets, logits: Any = None, **fields: Any) -> Pairs:
    """boxes `[B, Q, 4]`; with logits that say nothing unless given."""
    boxes = torch.as_tensor(boxes)
    logits = torch.zeros(*boxes.shape[:2], 3) if logits is None else torch.as_tensor(logits)
    cost = SigmoidClasses(3, FocalLossConfig()).cost
    return DynamicKAssigner(DynamicKConfig(**fields), cost, 2.0, 5.0, 2.0).assign(logits[None], boxes[None], objects)


def objects_of(*images: list[tuple[float, float, float, float]]) -> SetTargets:
    boxes = torch.tensor([box for image in images for box in image]).view(-1, 4)
    return SetTargets(boxes, torch.zeros(len(boxes), dtype=torch.int64), [len(image) for image in images])


def as_lists(pairs: Pairs) -> list[list[int]]:
    return [pairs.images.tolist(), pairs.predictions[0].tolist(), pairs.objects[0].tolist()]


def test_as_many_answer_as_the_best_overlaps_add_up_to() -> None:
    """Three predictions are the object, each of IoU 1; a fourth lies elsewhere."""
    boxes = [[OBJECT, FAR_AWAY, OBJECT, OBJECT]]
    assert as_lists(assign(boxes, objects_of([OBJECT]))) == [[0, 0, 0], [0, 2, 3], [0, 0, 0]]
    assert len(assign(boxes, objects_of([OBJECT]), top_k=2).images) == 2


def test_one_answers_even_if_none_overlaps() -> None:
    """Both centres are far from the object, and the second is nearer."""
    object_box = (0.1, 0.1, 0.02, 0.02)
    assert as_lists(assign([[(0.9, 0.9, 0.1, 0.1), (0.8, 0.8, 0.1, 0.1)]], objects_of([object_box])))[1] == [1]


def test_a_centre_in_the_object_comes_before_a_nearer_box() -> None:
    """The first box overlaps more (IoU 2/7 beside 1/240), but its centre lies beside the object."""
    boxes = torch.tensor([[(0.52, 0.5, 0.2, 0.6), (0.62, 0.5, 0.02, 0.02)]])
    assert as_lists(assign(boxes, objects_of([(0.62, 0.5, 0.16, 0.6)])))[1] == [1]


def test_a_prediction_far_from_every_object_comes_last() -> None:
    """The first object has no prediction near. The third one is the nearest, but far from both objects; the second
    is at 1.5 sides from the other object, which has the first."""
    boxes = torch.tensor([[(0.8, 0.8, 0.1, 0.1), (0.95, 0.8, 0.1, 0.1), (0.4, 0.4, 0.1, 0.1)]])
    pairs = assign(boxes, objects_of([(0.1, 0.1, 0.02, 0.02), (0.8, 0.8, 0.1, 0.1)]))
    assert as_lists(pairs) == [[0, 0], [0, 1], [1, 0]]


def test_images_are_matched_by_themselves() -> None:
    objects = objects_of([OBJECT], [], [FAR_AWAY, OBJECT])
    pairs = assign([[FAR_AWAY, OBJECT]] * 3, objects)
    assert as_lists(pairs) == [[0, 2, 2], [1, 0, 1], [0, 1, 2]]
    assert assign([[OBJECT]], objects_of([])).rows()[2].shape == (1, 0)


def test_objects_that_are_alone_take_what_is_free() -> None:
    """Prediction 0 is the cheapest for all objects, and object 2 has it. Then 0 and 1 both take prediction 1, where 1
    is cheaper; 0 is left with 2."""
    cost = torch.tensor([[3.0, 5.0, 9.0], [2.0, 4.0, 6.0], [1.0, 7.0, 8.0]])
    match, positive = match_every_object(cost, torch.zeros(3, 3), 5)
    assert positive.all()
    assert match.tolist() == [2, 1, 0]


def test_more_objects_than_predictions() -> None:
    cost = torch.tensor([[3.0], [2.0]])
    match, positive = match_every_object(cost, torch.zeros(2, 1), 5)
    assert (match.tolist(), positive.tolist()) == ([1], [True])


def test_a_cost_that_is_not_finite_is_the_last_choice() -> None:
    logits = torch.tensor([[[torch.nan] * 3, [0.0] * 3]])
    assert as_lists(assign([[OBJECT, FAR_AWAY]], objects_of([OBJECT]), logits, top_k=1))[1] == [1]


@pytest.mark.parametrize(("seed", "count", "queries"), [(0, 1, 30), (1, 5, 30), (2, 12, 40), (3, 9, 10), (4, 8, 5)])
def test_against_the_slow_reference(seed: int, count: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    objects = random_boxes(count, generator)
    near = objects[torch.randint(count, (queries // 2,), generator=generator)]
    near = near + torch.randn(near.shape, generator=generator) * 0.02
    boxes = torch.cat([near, random_boxes(queries - len(near), generator)])
    logits = torch.randn(queries, 3, generator=generator) * 2
    pairs = assign(boxes[None], SetTargets(objects, labels, [count]), logits[None])
    expected = reference.assign(
        logits.tolist(), boxes.tolist(), list(zip(objects.tolist(), labels.tolist(), strict=True))
    )
    result = [-1] * queries
    for row, number in zip(pairs.predictions[0].tolist(), pairs.objects[0].tolist(), strict=True):
        result[row] = number
    assert result == expected


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Small ones in the middle of the picture, so that they overlap, and cxcywh."""
    center = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
    return torch.cat([center, 0.05 + 0.2 * torch.rand(count, 2, generator=generator)], dim=1)
