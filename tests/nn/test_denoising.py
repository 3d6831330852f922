"""Denoising queries: their slots, their noise, whom they see, and images without objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.denoising import DenoisingConfig, NoisedQueries, noised_queries
from tests.reference.denoising import may_attend, move_center, move_corners

NUM_CLASSES = 5
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.8, 0.2, 0.4], [0.3, 0.3, 0.4, 0.1]])
OBJECTS = SetTargets(BOXES, torch.tensor([4, 0, 2]), [2, 0, 1])  # of three images
WITHOUT_NOISE: Any = {"label_noise": 0.0, "box_noise": 0.0}
NONE = SetTargets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [0, 0])


def make(objects: SetTargets = OBJECTS, **fields: Any) -> NoisedQueries:
    torch.manual_seed(0)
    return noised_queries(DenoisingConfig(**fields), objects, NUM_CLASSES)


def many(count: int) -> SetTargets:
    """One image with `count` objects away from its border."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(count, 4, generator=generator) * 0.2 + torch.tensor([0.4, 0.4, 0.1, 0.1])
    return SetTargets(boxes, torch.randint(NUM_CLASSES, (count,), generator=generator), [count])


def test_slots_by_hand() -> None:
    """Two groups of two slots for objects and two for negatives; 9: the label of an empty slot, here 5."""
    noised = make(groups=2, empty=0.25, **WITHOUT_NOISE)
    assert noised.labels.tolist() == [[4, 0, 4, 0, 4, 0, 4, 0], [5] * 8, [2, 5, 2, 5, 2, 5, 2, 5]]
    assert noised.images.tolist() == [0, 0, 2, 0, 0, 2]
    assert noised.predictions.tolist() == [0, 1, 0, 4, 5, 4]
    assert noised.objects.tolist() == [0, 1, 2, 0, 1, 2]
    torch.testing.assert_close(noised.boxes[0], BOXES[:2].repeat(4, 1))
    torch.testing.assert_close(noised.boxes[2, ::2], BOXES[2].expand(4, 4))
    assert (noised.boxes[1] == 0.25).all()
    assert (noised.boxes[2, 1::2] == 0.25).all()


def test_without_negatives_every_slot_is_for_an_object() -> None:
    noised = make(groups=2, negatives=False, **WITHOUT_NOISE)
    assert noised.labels.tolist() == [[4, 0, 4, 0], [5] * 4, [2, 5, 2, 5]]
    assert noised.predictions.tolist() == [0, 1, 0, 2, 3, 2]


def test_pairs_are_the_same_in_every_layer() -> None:
    noised = make(groups=2)
    pairs = noised.pairs(3)
    assert pairs.images is noised.images
    assert pairs.predictions.tolist() == [noised.predictions.tolist()] * 3
    assert pairs.objects.tolist() == [noised.objects.tolist()] * 3


@pytest.mark.parametrize(("queries", "most", "groups"), [(100, 7, 14), (100, 1, 100), (10, 6, 1), (3, 20, 1)])
def test_as_many_groups_as_the_queries_allow(queries: int, most: int, groups: int) -> None:
    noised = make(many(most), queries=queries)
    assert noised.groups == groups
    assert noised.labels.shape == (1, 2 * groups * most)


def test_the_number_of_groups_may_be_fixed() -> None:
    assert make(many(20), groups=5, queries=1, negatives=False).labels.shape == (1, 100)


def test_mask_by_hand() -> None:
    """Two groups of two queries, then two matching ones."""
    noised = make(SetTargets(BOXES[:1], torch.tensor([1]), [1]), groups=2)
    assert noised.mask_with(2).int().tolist() == [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize(("groups", "queries"), [(1, 3), (3, 4), (5, 1)])
def test_mask_is_the_reference(groups: int, queries: int, negatives: bool) -> None:
    noised = make(groups=groups, negatives=negatives)
    count = noised.labels.shape[1]
    expected = [[may_attend(i, j, count, groups) for j in range(count + queries)] for i in range(count + queries)]
    assert noised.mask_with(queries).tolist() == expected


Draws = dict[tuple[str, int], Tensor]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """The random numbers that were drawn, by function and number of dimensions: 2 of labels, 3 of boxes."""
    drawn: Draws = {}

    def record(name: str) -> Callable[..., Tensor]:
        draw = getattr(torch, name)

        def drawing(like: Tensor, *limits: int) -> Tensor:
            drawn[name, like.ndim] = draw(like, *limits)
            return drawn[name, like.ndim]

        return drawing

    for name in ("rand_like", "randint_like"):
        monkeypatch.setattr(torch, name, record(name))
    return drawn


@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize(("box_noise", "swap"), [(0.4, False), (1.0, False), (1.0, True)])
def test_moved_corners_are_the_reference(draws: Draws, box_noise: float, swap: bool, negatives: bool) -> None:
    """The second object lies at the border, where corners are kept in the picture."""
    noised = make(groups=3, box_noise=box_noise, negatives=negatives, swap_corners=swap, empty=0.5)
    size = noised.labels.shape[1] // 3
    for image, rows in ((0, [0, 1]), (2, [2])):
        for group in range(3):
            for half in range(1 + negatives):
                for slot, row in enumerate(rows):
                    query = group * size + half * 2 + slot
                    parts = draws["rand_like", 3][image, query].tolist()
                    signs = [int(2 * draw - 1) for draw in draws["randint_like", 3][image, query].tolist()]
                    expected = move_corners(BOXES[row].tolist(), parts, signs, box_noise, half == 1, swap)
                    assert noised.boxes[image, query].tolist() == pytest.approx(expected, abs=1e-6)
    assert (noised.boxes[1] == 0.5).all()
    if negatives and box_noise == 1.0:
        assert bool((noised.boxes[..., 2:] < 0).any()) != swap, "some corners should pass each other"


def test_moved_centers_are_the_reference(draws: Draws) -> None:
    noised = make(groups=4, box_noise=0.4, negatives=False, moved="center")
    for image, rows in ((0, [0, 1]), (2, [2])):
        for group in range(4):
            for slot, row in enumerate(rows):
                query = 2 * group + slot
                expected = move_center(BOXES[row].tolist(), draws["rand_like", 3][image, query].tolist(), 0.4)
                assert noised.boxes[image, query].tolist() == pytest.approx(expected, abs=1e-6)


def test_noise_stays_in_its_bounds() -> None:
    """Of 4000 objects: corners of positives by up to 0.4 halves of the sides, of negatives by 0.4 to 0.8."""
    objects = many(4000)
    boxes = make(objects, groups=1, box_noise=0.4).boxes[0].view(2, 4000, 4)
    halves = objects.boxes[:, 2:] / 2
    first = (boxes[..., :2] - boxes[..., 2:] / 2 - objects.boxes[:, :2] + halves) / halves
    second = (boxes[..., :2] + boxes[..., 2:] / 2 - objects.boxes[:, :2] - halves) / halves
    for part in (first, second):
        assert part[0].abs().max() == pytest.approx(0.4, abs=0.01)
        assert part[0].abs().min() < 0.01
        assert part[1].abs().max() == pytest.approx(0.8, abs=0.01)
        assert part[1].abs().min() == pytest.approx(0.4, abs=0.01)
        assert part.mean(dim=(1, 2)).abs().max() < 0.03  # both ways


@pytest.mark.parametrize("label_noise", [0.0, 0.25, 1.0])
def test_the_expected_share_of_labels_changes(label_noise: float) -> None:
    """A random class is the right one in one of five times."""
    objects = many(2000)
    labels = make(objects, groups=5, label_noise=label_noise).labels[0].view(10, 2000)
    changed = (labels != objects.labels).float().mean().item()
    assert changed == pytest.approx(label_noise * 0.8, abs=0.02)  # five standard deviations of 20,000
    assert labels.unique().tolist() == list(range(NUM_CLASSES))


def test_empty_slots_stay_empty() -> None:
    noised = make(groups=50, label_noise=1.0, box_noise=1.0, empty=0.5)
    empty = noised.labels == NUM_CLASSES
    assert empty.sum(dim=1).tolist() == [0, 200, 100]
    assert (noised.boxes[empty] == 0.5).all()
    assert not empty[noised.images, noised.predictions].any()


def test_a_batch_without_objects_has_empty_queries_and_no_pairs() -> None:
    noised = make(NONE, queries=10)
    assert noised.labels.tolist() == [[NUM_CLASSES] * 20] * 2
    assert len(noised.images) == len(noised.predictions) == len(noised.objects) == 0
    assert noised.mask_with(3).shape == (23, 23)


def test_the_noise_differs_from_group_to_group_and_call_to_call() -> None:
    torch.manual_seed(0)
    first, second = (noised_queries(DenoisingConfig(groups=2), OBJECTS, NUM_CLASSES) for _ in range(2))
    assert not first.boxes[0].equal(second.boxes[0])
    assert not first.boxes[0, :4].equal(first.boxes[0, 4:])
