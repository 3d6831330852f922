"""What travels between rooms refuses wrong shapes and dtypes where it is made, and says which."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from detkit.structures import Batch, Detections, GroundTruth, ImageInfo, Sample, Target

INFO = ImageInfo("a", (40, 60), (80, 120), (2.0, 2.0))


def numpy_objects(count: int = 2) -> dict[str, Any]:
    return {
        "boxes": np.zeros((count, 4), np.float32),
        "labels": np.zeros(count, np.int64),
        "ignore": np.zeros(count, np.bool_),
    }


def make_sample(**changes: Any) -> Sample:
    return Sample(**{"image": np.zeros((4, 5, 3), np.uint8), **numpy_objects(), "image_id": 1, **changes})


def make_target(**changes: Any) -> Target:
    fields: dict[str, Any] = {
        "boxes": torch.zeros(2, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
        "ignore": torch.zeros(2, dtype=torch.bool),
    }
    return Target(**{**fields, **changes})


def make_detections(**changes: Any) -> Detections:
    fields: dict[str, Any] = {
        "boxes": torch.zeros(3, 4),
        "scores": torch.tensor([0.9, 0.9, 0.1]),
        "labels": torch.zeros(3, dtype=torch.int64),
        "class_names": ("dog",),
    }
    return Detections(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 5), np.uint8)}, r"Sample.image: expected uint8 \[\?, \?, 3\], got uint8 \[4, 5\]"),
        ({"image": np.zeros((4, 5, 3))}, r"Sample.image: expected uint8 .*, got float64 \[4, 5, 3\]"),
        ({"image": torch.zeros(4, 5, 3)}, "Sample.image: expected a numpy array uint8 .*, got Tensor"),
        ({"boxes": np.zeros((2, 5), np.float32)}, r"Sample.boxes: expected float32 \[\?, 4\], got float32 \[2, 5\]"),
        ({"boxes": np.zeros((2, 4))}, "Sample.boxes: expected float32 .*, got float64"),
        ({"labels": np.zeros(3, np.int64)}, r"Sample.labels: expected int64 \[2\], got int64 \[3\]"),
        ({"labels": np.zeros(2, np.int32)}, "Sample.labels: expected int64 .*, got int32"),
        ({"ignore": np.zeros(2, np.uint8)}, "Sample.ignore: expected bool .*, got uint8"),
    ],
)
def test_sample_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    make_sample()
    with pytest.raises(ValueError, match=message):
        make_sample(**changes)


def test_ground_truth_has_one_area_for_each_box() -> None:
    GroundTruth(1, (4, 5), **numpy_objects(), area=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"GroundTruth.area: expected float32 \[2\], got float32 \[1\]"):
        GroundTruth(1, (4, 5), **numpy_objects(), area=np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(2, 4).double()}, r"Target.boxes: expected torch.float32 \[\?, 4\], got torch.float64"),
        ({"boxes": np.zeros((2, 4), np.float32)}, "Target.boxes: expected a tensor .*, got ndarray"),
        ({"labels": torch.zeros(2)}, r"Target.labels: expected torch.int64 \[2\], got torch.float32 \[2\]"),
        ({"labels": torch.zeros(2, 1).long()}, r"Target.labels: expected torch.int64 \[2\], got torch.int64 \[2, 1\]"),
        ({"ignore": torch.zeros(1).bool()}, r"Target.ignore: expected torch.bool \[2\], got torch.bool \[1\]"),
    ],
)
def test_target_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    make_target()
    with pytest.raises(ValueError, match=message):
        make_target(**changes)


def test_target_objects_are_those_not_ignored() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]])
    target = Target(boxes, torch.tensor([5, 6, 7]), torch.tensor([False, True, False]))
    kept, labels = target.objects()
    assert kept[:, 2].tolist() == [1, 3]
    assert labels.tolist() == [5, 7]


def test_an_image_without_objects_is_ordinary() -> None:
    make_sample(**numpy_objects(0))
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    assert target.objects()[0].shape == (0, 4)
    empty = torch.zeros(0, dtype=torch.int64)
    assert len(Detections(torch.zeros(0, 4), torch.zeros(0), empty, ("dog",))) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(1, 3, 8, 8)}, "Batch.images: expected torch.uint8 .*, got torch.float32"),
        ({"images": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}, r"Batch.images: .*, got torch.uint8 \[1, 8, 8, 3\]"),
        ({"infos": (INFO, INFO)}, "Batch.infos: expected 1 entries, one an image, got 2"),
        ({"targets": ()}, "Batch.targets: expected 1 entries, one an image, got 0"),
        ({"proposals": ()}, "Batch.proposals: expected 1 entries, one an image, got 0"),
    ],
)
def test_batch_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "infos": (INFO,)}
    batch = Batch(**fields, targets=(make_target(),), proposals=(torch.zeros(5, 4),))
    assert len(batch) == 1
    assert batch.input_sizes == [(80, 120)]
    with pytest.raises(ValueError, match=message):
        Batch(**{**fields, **changes})


def test_batch_moves_with_all_it_has() -> None:
    batch = Batch(
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (INFO,), targets=(make_target(),), proposals=(torch.zeros(5, 4),)
    ).to("meta")
    assert batch.targets
    assert batch.proposals
    target = batch.targets[0]
    moved = [batch.images, batch.proposals[0], target.boxes, target.labels, target.ignore]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert Batch(batch.images, (INFO,)).to("meta").targets is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.tensor([0.1, 0.9, 0.9])}, "Detections.scores: expected descending order, got an increase"),
        ({"scores": torch.tensor([0.9, 0.1])}, r"Detections.scores: expected torch.float32 \[3\]"),
        ({"boxes": torch.zeros(3, 4).half()}, "Detections.boxes: expected torch.float32 .*, got torch.float16"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "Detections.labels: expected torch.int64 .*, got torch.int32"),
    ],
)
def test_detections_say_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    assert len(make_detections()) == 3
    with pytest.raises(ValueError, match=message):
        make_detections(**changes)


@pytest.mark.parametrize("structure", [make_sample(), make_target(), make_detections(), INFO])
def test_structures_are_frozen(structure: Any) -> None:
    name = dataclasses.fields(structure)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(structure, name, None)
