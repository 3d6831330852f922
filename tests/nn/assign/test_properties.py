"""What holds for all assignments, whatever the boxes are: who can answer for whom, and how often."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.nn.assign.assignment import BACKGROUND, Assigner
from detkit.nn.assign.dynamic_k import match_every_object
from detkit.nn.assign.hungarian import solve
from detkit.nn.assign.iou import IoUAssigner, match_bipartite
from detkit.ops.iou import box_iou
from detkit.structures import Objects, Target

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)
ROWS = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 30)] * 2)


def boxes_of(rows: list[tuple[int, ...]]) -> Tensor:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return torch.cat((values[:, :2], values[:, :2] + values[:, 2:]), dim=1)


BOXES = st.lists(ROWS, max_size=12).map(boxes_of)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    boxes = draw(st.lists(ROWS, max_size=5).map(boxes_of))
    ignore = draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    return Target(Objects(boxes, torch.zeros(len(boxes), dtype=torch.int64), torch.tensor(ignore, dtype=torch.bool)))


@few
@given(anchors=BOXES, target=targets(), best=st.booleans())
def test_by_overlap(anchors: Tensor, target: Target, best: bool) -> None:
    """A prediction answers for the object that it overlaps most, if for any."""
    assigner = IoUAssigner(0.5, (0.0, 0.4), best_for_each_object=best)
    assignment = assigner.assign(anchors, target)
    check_form(assigner, anchors, target)
    overlaps = box_iou(anchors, target.not_ignored().boxes)
    for row in torch.nonzero(assignment.positive).flatten().tolist():
        assert overlaps[row, assignment.index[row]] == overlaps[row].max() > 0
        assert best or overlaps[row].max() >= 0.5
    for row in torch.nonzero(assignment.background).flatten().tolist():
        assert not len(overlaps[row]) or overlaps[row].max() < 0.4
    if best:  # each object that any prediction overlaps has one that overlaps no other object more
        for column in overlaps.T[: len(target.not_ignored())]:
            ties = torch.nonzero(column == column.max()).flatten() if column.numel() else []
            assert column.numel() == 0 or column.max() == 0 or bool(assignment.positive[ties].all())


@few
@given(anchors=BOXES, objects=BOXES, threshold=st.sampled_from([0.3, 0.5, 1.0]))
def test_one_box_for_each_object(anchors: Tensor, objects: Tensor, threshold: float) -> None:
    """Of each object that overlaps a box, unless others have all of these, one box answers for it."""
    overlaps = box_iou(objects, anchors)
    matches = match_bipartite(overlaps, threshold)
    assert matches.shape == (len(anchors),)
    for row, match in enumerate(matches.tolist()):
        assert BACKGROUND <= match < max(len(objects), 1)
        assert match == BACKGROUND or overlaps[match, row] > 0
    for number, row in enumerate(overlaps):
        candidates = torch.nonzero(row > 0).flatten()
        assert number in matches.tolist() or bool((matches[candidates] != BACKGROUND).all())


@few
@given(data=st.data(), queries=st.integers(1, 9), objects=st.integers(0, 9))
def test_least_cost(data: st.DataObject, queries: int, objects: int) -> None:
    """Every query at most one object, every object at most one query, as many pairs as there can be; no exchange of
    two objects, and no free query, is cheaper."""
    values = data.draw(st.lists(st.integers(-20, 20), min_size=queries * objects, max_size=queries * objects))
    cost = torch.tensor(values, dtype=torch.float32).view(1, queries, objects)
    pairs = solve([cost])
    rows, columns = pairs.predictions.flatten().tolist(), pairs.objects.flatten().tolist()
    assert len(rows) == len(columns) == min(queries, objects)
    assert len(set(rows)) == len(rows)
    assert len(set(columns)) == len(columns)
    table = cost[0]
    for row, column in zip(rows, columns, strict=True):
        assert all(table[row, column] <= table[free, column] for free in set(range(queries)) - set(rows))
        for other, its in zip(rows, columns, strict=True):
            assert table[row, column] + table[other, its] <= table[row, its] + table[other, column]


@few
@given(data=st.data(), queries=st.integers(1, 9), objects=st.integers(1, 9), top_k=st.integers(1, 5))
def test_no_object_is_alone(data: st.DataObject, queries: int, objects: int, top_k: int) -> None:
    numbers = st.lists(st.integers(0, 20), min_size=queries * objects, max_size=queries * objects)
    cost = torch.tensor(data.draw(numbers), dtype=torch.float32).view(objects, queries)
    iou = torch.tensor(data.draw(numbers), dtype=torch.float32).view(objects, queries) / 20
    match, positive = match_every_object(cost, iou, top_k)
    assert match.shape == positive.shape == (queries,)
    answered = set(match[positive].tolist())
    assert answered <= set(range(objects))
    assert len(answered) == objects or bool(positive.all())


def check_form(assigner: Assigner, anchors: Tensor, target: Target) -> None:
    """Indices of objects that are not ignored; where all objects are to be ignored nothing is positive."""
    assignment = assigner.assign(anchors, target)
    assert assignment.index.shape == assignment.weight.shape == (len(anchors),)
    assert bool((assignment.index < max(1, len(target.not_ignored()))).all())
    assert bool((assignment.weight >= 0).all())
    assert len(target.not_ignored()) or not bool(assignment.positive.any())
