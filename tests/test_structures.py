"""The structures refuse wrong shapes and dtypes when they are made, and every column of `Objects` travels by itself."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from detkit.structures import (
    Batch,
    Categories,
    Detections,
    EncodedMasks,
    GroundTruth,
    ImageInfo,
    KeypointCategories,
    MaskCrops,
    Objects,
    Sample,
    Target,
)

INFO = ImageInfo("a", (40, 60), (80, 120), (2.0, 2.0))
PERSON = Categories(
    ("person", "dog"),
    (1, 18),
    KeypointCategories(("nose", "left_eye", "right_eye"), ((1, 2),), ((0, 1), (0, 2)), (0.026, 0.025, 0.025)),
)


def make_objects(count: int = 2, **changes: Any) -> Objects[np.ndarray]:
    columns: dict[str, Any] = {"boxes": np.zeros((count, 4), np.float32), "labels": np.zeros(count, np.int64)}
    return Objects(**{**columns, **changes})


def numbered(first: int, count: int) -> Objects[np.ndarray]:
    """Objects with every column; all values of an object are its number, or whether that is odd."""
    numbers = np.arange(first, first + count)

    def column(dtype: Any, *shape: int) -> np.ndarray:
        return np.broadcast_to(numbers.reshape(-1, *(1 for _ in shape)), (count, *shape)).astype(dtype)

    return Objects(
        boxes=column(np.float32, 4),
        labels=column(np.int64),
        ignore=numbers % 2 == 1,
        area=column(np.float32),
        scores=column(np.float32),
        masks=MaskCrops.of([np.full((1 + n, 2), n % 2) for n in numbers], [(n, 0, n + 2, 1 + n) for n in numbers]),
        keypoints=column(np.float32, 3, 3),
        track_ids=column(np.int64),
        extra={"occlusion": column(np.float64), "corners": column(np.int16, 2, 2)},
    )


def arrays_of(objects: Objects[Any]) -> dict[str, Any]:
    """Every column as an array; of the masks their pixels."""
    columns = objects.columns()
    return columns | {"masks": columns["masks"].pixels}


def numbers_of(objects: Objects[Any]) -> list[int]:
    """The numbers of `numbered`, after a check that they are the same in every column."""
    numbers = [int(label) for label in objects.labels]
    columns = objects.columns()
    assert set(columns) == set(numbered(0, 1).columns())
    masks = columns.pop("masks")
    assert masks.windows.tolist() == [[n, 0, n + 2, 1 + n] for n in numbers]
    assert [np.asarray(crop).tolist() for crop in masks.crops()] == [[[n % 2] * 2] * (1 + n) for n in numbers]
    for name, column in columns.items():
        for number, value in zip(numbers, column, strict=True):
            expected = number % 2 if name == "ignore" else number
            assert set(np.asarray(value).ravel().tolist()) == {expected}, name
    return numbers


def test_taking_rows_takes_them_of_every_column() -> None:
    for objects in (numbered(3, 4), numbered(3, 4).to_tensors()):
        array = np.array if isinstance(objects.boxes, np.ndarray) else torch.tensor
        assert numbers_of(objects) == [3, 4, 5, 6]
        assert numbers_of(objects.take(slice(1, 3))) == [4, 5]
        assert numbers_of(objects.take(array([2, 0, 2]))) == [5, 3, 5]
        assert numbers_of(objects.take(array([True, False, False, True]))) == [3, 6]
        assert len(objects.take(array([False] * 4))) == 0


def test_cat_joins_every_column() -> None:
    parts = [numbered(0, 2), numbered(7, 0), numbered(3, 1)]
    assert numbers_of(Objects.cat(parts)) == [0, 1, 3]
    joined = Objects.cat([part.to_tensors() for part in parts])
    assert isinstance(joined.masks, MaskCrops)
    assert isinstance(joined.masks.pixels, torch.Tensor)
    assert numbers_of(joined) == [0, 1, 3]


def test_cat_of_different_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the same columns in every part"):
        Objects.cat([make_objects(), make_objects(area=np.zeros(2, np.float32))])


def test_map_changes_every_column() -> None:
    counted = numbered(1, 2).map(lambda column: column + column.astype(column.dtype))
    assert counted.labels.tolist() == [2, 4]
    assert counted.keypoints is not None
    assert np.unique(counted.keypoints).tolist() == [2, 4]


def test_objects_become_tensors_and_arrays_of_the_same_memory() -> None:
    objects = numbered(0, 3)
    tensors = objects.to_tensors()
    assert all(isinstance(array, torch.Tensor) for array in arrays_of(tensors).values())
    assert tensors.columns().keys() == objects.columns().keys()
    back = tensors.to_arrays()
    for name, array in arrays_of(objects).items():
        assert np.shares_memory(array, arrays_of(back)[name])
        assert array.dtype == arrays_of(back)[name].dtype


def test_objects_move_with_every_column() -> None:
    objects = numbered(0, 3)
    for moved in (objects.to("meta"), objects.to_tensors().to("meta")):
        assert {column.device.type for column in arrays_of(moved).values()} == {"meta"}
    here = objects.to_tensors()
    assert here.to("cpu").boxes is here.boxes, "no copy where the tensors are there already"


def test_columns_are_read_back() -> None:
    objects = numbered(2, 2)
    assert numbers_of(Objects.from_columns(objects.columns())) == [2, 3]
    assert make_objects().columns().keys() == {"boxes", "labels", "ignore"}


def test_no_objects_are_ordinary() -> None:
    empty = Objects.empty()
    assert len(empty) == 0
    assert empty.ignore.dtype == np.bool_
    Sample(np.zeros((4, 5, 3), np.uint8), empty, 1)
    target = Target(empty.to_tensors())
    assert len(target.not_ignored()) == len(target.ignored()) == 0
    no_scores = dataclasses.replace(empty.to_tensors(), scores=torch.zeros(0))
    assert len(Detections(no_scores, PERSON)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((2, 5), np.float32)}, r"Objects.boxes: expected float32 \[\?, 4\], got float32 \[2, 5\]"),
        ({"boxes": np.zeros((2, 4))}, "Objects.boxes: expected float32 .*, got float64"),
        ({"boxes": [[0, 0, 1, 1]]}, "Objects.boxes: expected a numpy array float32 .*, got list"),
        ({"labels": np.zeros(3, np.int64)}, r"Objects.labels: expected int64 \[2\], got int64 \[3\]"),
        ({"labels": np.zeros(2, np.int32)}, "Objects.labels: expected int64 .*, got int32"),
        ({"labels": torch.zeros(2).long()}, "Objects.labels: expected a numpy array int64 .*, got Tensor"),
        ({"ignore": np.zeros(2, np.uint8)}, "Objects.ignore: expected bool .*, got uint8"),
        ({"area": np.zeros(1, np.float32)}, r"Objects.area: expected float32 \[2\], got float32 \[1\]"),
        ({"masks": np.zeros((2, 8, 8), np.bool_)}, r"Objects.masks: expected EncodedMasks or MaskCrops of 2 objects"),
        ({"masks": MaskCrops.of([], [])}, r"Objects.masks: expected EncodedMasks or MaskCrops of 2 objects, got 0"),
        ({"keypoints": np.zeros((2, 17, 2), np.float32)}, r"Objects.keypoints: expected float32 \[2, \?, 3\]"),
        ({"extra": {"pose": np.zeros(3)}}, r"Objects.extra\['pose'\]: expected ndarray with 2 rows"),
        ({"extra": {"pose": torch.zeros(2)}}, r"Objects.extra\['pose'\]: expected ndarray with 2 rows"),
    ],
)
def test_a_wrong_column_is_named(changes: dict[str, Any], message: str) -> None:
    make_objects()
    with pytest.raises(ValueError, match=message):
        make_objects(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(2, 4).double()}, r"Objects.boxes: expected float32 \[\?, 4\], got float64"),
        ({"labels": torch.zeros(2)}, r"Objects.labels: expected int64 \[2\], got float32 \[2\]"),
        ({"labels": torch.zeros(2, 1).long()}, r"Objects.labels: expected int64 \[2\], got int64 \[2, 1\]"),
        ({"ignore": np.zeros(2, np.bool_)}, "Objects.ignore: expected a tensor bool .*, got ndarray"),
    ],
)
def test_a_wrong_column_of_tensors_is_named(changes: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = {"boxes": torch.zeros(2, 4), "labels": torch.zeros(2).long()}
    Objects(**columns)
    with pytest.raises(ValueError, match=message):
        Objects(**{**columns, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 5), np.uint8)}, r"Sample.image: expected uint8 \[\?, \?, 3\], got uint8 \[4, 5\]"),
        ({"image": np.zeros((4, 5, 3))}, r"Sample.image: expected uint8 .*, got float64 \[4, 5, 3\]"),
        ({"image": torch.zeros(4, 5, 3)}, "Sample.image: expected a numpy array uint8 .*, got Tensor"),
        ({"image": "a.jpg"}, "Sample.image: expected a numpy array uint8 .*, got str"),
        ({"proposals": np.zeros((2, 5), np.float32)}, r"Sample.proposals: expected float32 \[\?, 4\]"),
    ],
)
def test_sample_names_a_wrong_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(**{"image": np.zeros((4, 5, 3), np.uint8), "objects": make_objects(), "image_id": 1, **changes})


def test_target_separates_the_ignored_objects() -> None:
    target = Target(numbered(4, 3).to_tensors())
    assert numbers_of(target.not_ignored()) == [4, 6]
    assert numbers_of(target.ignored()) == [5]


def make_batch(**changes: Any) -> Batch:
    fields: dict[str, Any] = {
        "images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        "infos": (INFO,),
        "targets": (Target(numbered(0, 2).to_tensors()),),
        "proposals": (torch.zeros(5, 4),),
    }
    return Batch(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(1, 3, 8, 8)}, "Batch.images: expected uint8 .*, got float32"),
        ({"images": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}, r"Batch.images: .*, got uint8 \[1, 8, 8, 3\]"),
        ({"infos": (INFO, INFO)}, "Batch.infos: expected 1 entries, one an image, got 2"),
        ({"targets": ()}, "Batch.targets: expected 1 entries, one an image, got 0"),
        ({"proposals": ()}, "Batch.proposals: expected 1 entries, one an image, got 0"),
    ],
)
def test_batch_names_a_wrong_field(changes: dict[str, Any], message: str) -> None:
    batch = make_batch()
    assert len(batch) == 1
    assert batch.sizes().tolist() == [[80, 120]]
    assert batch.sizes().dtype == torch.int64
    with pytest.raises(ValueError, match=message):
        make_batch(**changes)


def test_batch_moves_with_all_its_tensors() -> None:
    batch = make_batch().to("meta")
    assert batch.targets
    assert batch.proposals
    tensors = [batch.images, batch.proposals[0], *arrays_of(batch.targets[0].objects).values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert make_batch(targets=None, proposals=None).to("meta").targets is None


def make_detections(**changes: Any) -> Detections:
    columns: dict[str, Any] = {
        "boxes": torch.zeros(3, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
        "scores": torch.tensor([0.9, 0.9, 0.1]),
    }
    return Detections(Objects(**{**columns, **changes}), PERSON)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.tensor([0.1, 0.9, 0.9])}, "Detections.scores: expected descending order, got an increase"),
        ({"scores": None}, "Detections.objects: expected scores, got none"),
        (
            {"masks": MaskCrops(torch.zeros(0, dtype=torch.bool), np.zeros((3, 4), np.int64))},
            "Detections.masks: expected EncodedMasks, got MaskCrops",
        ),
    ],
)
def test_detections_name_a_wrong_field(changes: dict[str, Any], message: str) -> None:
    assert len(make_detections()) == 3
    with pytest.raises(ValueError, match=message):
        make_detections(**changes)


def test_detections_have_masks_and_keypoints_or_none() -> None:
    assert make_detections().masks is None
    assert make_detections().keypoints is None
    triangles = [[np.array([(x, 0.0), (x + 9.0, 0.0), (x, 9.0)])] for x in (0.0, 10.0, 20.0)]
    masks, points = EncodedMasks.of(triangles, [(10, 40)] * 3), torch.arange(18.0).view(3, 2, 3)
    full = make_detections(masks=masks, keypoints=points)
    assert full.masks is masks
    assert full.keypoints is points
    last = full[[0, 2]]
    assert last.masks is not None
    assert last.keypoints is not None
    assert np.array_equal(last.masks.dense(), masks.dense()[[0, 2]])
    assert torch.equal(last.keypoints, points[[0, 2]])
    assert repr(last) == repr(make_detections()[[0, 2]])


ROWS = make_detections(
    boxes=torch.arange(12, dtype=torch.float32).view(3, 4),
    labels=torch.tensor([1, 0, 1]),
    scores=torch.tensor([0.9, 0.5, 0.1]),
    track_ids=torch.tensor([7, 8, 9]),
)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ROWS.scores > 0.3, [7, 8]),
        (np.array([True, False, True]), [7, 9]),
        ([True, False, False], [7]),
        (torch.tensor([2, 0]), [7, 9]),  # best first, whatever the order of the indices
        ([1], [8]),
        (np.array([-1]), [9]),
        (slice(1, None), [8, 9]),
        (slice(None, None, -1), [7, 8, 9]),
        (0, [7]),
        (-1, [9]),
        (np.int64(1), [8]),
        (torch.tensor(1), [8]),
        ([], []),
        (slice(3, 9), []),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_detections_are_indexed_with_all_their_columns(rows: Any, expected: list[int]) -> None:
    chosen = ROWS[rows]
    tracks = chosen.objects.track_ids
    assert tracks is not None
    assert tracks.tolist() == expected
    assert chosen.boxes.tolist() == [ROWS.boxes[track - 7].tolist() for track in expected]
    assert chosen.class_names == [["dog", "person", "dog"][track - 7] for track in expected]
    assert chosen.categories is PERSON


@pytest.mark.parametrize("rows", [3, -4, [3], [True, False], torch.ones(4, dtype=torch.bool)])
def test_rows_that_there_are_not_are_an_index_error(rows: Any) -> None:
    with pytest.raises(IndexError):
        ROWS[rows]


def test_iterating_gives_detections_of_one() -> None:
    assert [(len(one), one.scores.item(), one.class_names) for one in ROWS] == [
        (1, ROWS.scores[0].item(), ["dog"]),
        (1, ROWS.scores[1].item(), ["person"]),
        (1, ROWS.scores[2].item(), ["dog"]),
    ]
    assert list(ROWS[[]]) == []


def test_the_repr_is_one_line_with_the_best() -> None:
    assert repr(ROWS) == "Detections(3: dog 0.90, person 0.50, dog 0.10)"
    assert repr(ROWS[[]]) == "Detections(0)"
    many = make_detections(boxes=torch.zeros(7, 4), labels=torch.zeros(7).long(), scores=torch.ones(7))
    assert repr(many) == f"Detections(7: {', '.join(['person 1.00'] * 5)}, ...)"


def test_categories_become_plain_values_and_are_read_back() -> None:
    """Through what a checkpoint or JSON makes of tuples: lists."""
    for categories in (PERSON, Categories.of_names(["cat", "dog"])):
        plain = categories.to_plain()
        assert Categories.from_plain(plain) == categories
        leaves = [plain]
        while leaves:
            leaf = leaves.pop()
            assert isinstance(leaf, (dict, list, str, int, float))
            leaves += list(leaf.values()) if isinstance(leaf, dict) else leaf if isinstance(leaf, list) else []


def test_categories_of_names_count_from_one() -> None:
    categories = Categories.of_names(["cat", "dog"])
    assert (categories.names, categories.ids, len(categories)) == (("cat", "dog"), (1, 2), 2)


def test_wrong_categories_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Categories.names: expected at least one class"):
        Categories((), ())
    with pytest.raises(ValueError, match=r"Categories.ids: expected 2, one a name, got 1"):
        Categories(("cat", "dog"), (1,))


@pytest.mark.parametrize(
    "structure",
    [
        make_objects(),
        GroundTruth(1, (4, 5), make_objects()),
        Sample(np.zeros((4, 5, 3), np.uint8), make_objects(), 1),
        make_batch(),
        make_detections(),
        PERSON,
        INFO,
    ],
    ids=lambda structure: type(structure).__name__,
)
def test_structures_are_frozen(structure: Any) -> None:
    name = dataclasses.fields(structure)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(structure, name, None)
