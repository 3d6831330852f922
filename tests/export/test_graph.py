"""The module that is exported, run by PyTorch as it is, against the verbs of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.data.collate import collate
from detkit.data.transforms import resize_sample
from detkit.detectors.detector import Detector
from detkit.export.graph import DETECTIONS, Whole, named_tensors
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows
from detkit.structures import Batch, Detections, ImageInfo, Objects, Sample
from tests.export.detectors import RULES, CellOutputs, Cells, Parts, Proposed, assert_same, random_pictures

SIZES = ((50, 70), (90, 40), (64, 64), (33, 97))
rules = pytest.mark.parametrize("rule", RULES)


def batch_of(detector: Detector[Any], pictures: Sequence[np.ndarray]) -> Batch:
    items = []
    for index, picture in enumerate(pictures):
        info = detector.input.place(index, picture.shape[:2])
        items.append((resize_sample(Sample(picture, Objects.empty(), index), info.input_size), info))
    return collate(items, detector.input.stride, with_targets=False)


def detections_of(rows: dict[str, Tensor], detector: Detector[Any]) -> list[Detections]:
    """The rows as they are: a scale of one."""
    infos = [ImageInfo(index, (999, 999), (999, 999), (1.0, 1.0)) for index in range(len(rows["counts"]))]
    return DetectionRows(*(rows[name] for name in DETECTIONS)).to_detections(infos, detector.categories)


@rules
@torch.inference_mode()
def test_boxes_are_in_original_pixels_as_those_of_postprocess(rule: str) -> None:
    detector = Cells(rule)
    batch = batch_of(detector, random_pictures(*SIZES))
    expected = detector.postprocess(detector(batch), batch.infos)
    original_sizes = torch.tensor([info.orig_size for info in batch.infos])
    rows = Whole(detector)(batch.images, batch.sizes(), original_sizes)
    assert list(rows) == list(DETECTIONS)
    for one, other in zip(detections_of(rows, detector), expected, strict=True):
        assert len(other) > 5
        assert_same(one, other)


@rules
@torch.inference_mode()
def test_without_original_sizes_boxes_stay_in_pixels_of_the_resized_picture(rule: str) -> None:
    detector = Cells(rule)
    batch = batch_of(detector, random_pictures(*SIZES))
    resized = [ImageInfo(i.image_id, i.input_size, i.input_size, (1.0, 1.0), i.offset) for i in batch.infos]
    expected = detector.postprocess(detector(batch), resized)
    for one, other in zip(detections_of(Whole(detector)(batch.images, batch.sizes()), detector), expected, strict=True):
        assert_same(one, other)


@rules
@torch.inference_mode()
def test_pixels_beside_the_picture_are_not_read(rule: str) -> None:
    detector = Cells(rule)
    batch = batch_of(detector, random_pictures(*SIZES))
    x1, y1, x2, y2 = detector.input.windows(batch.sizes()).long()[:, :, None, None, None].unbind(dim=1)
    y, x = torch.meshgrid(*map(torch.arange, batch.images.shape[2:]), indexing="ij")
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    noise = torch.where(inside, batch.images, 201)
    assert (noise != batch.images).any() == (rule != "stretch")
    for one, other in zip(
        Whole(detector)(noise, batch.sizes()).values(),
        Whole(detector)(batch.images, batch.sizes()).values(),
        strict=True,
    ):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_rows_beyond_the_count_are_zero() -> None:
    detector = Cells("keep")
    rows = Whole(detector)(torch.zeros(2, 3, 16, 24, dtype=torch.uint8), torch.tensor([[16, 24], [8, 8]]))
    assert rows["boxes"].shape == (2, 20, 4)
    assert rows["scores"].shape == rows["labels"].shape == (2, 20)
    assert 0 < rows["counts"][1] < rows["counts"][0] < 20
    for index, count in enumerate(rows["counts"].tolist()):
        assert not any(rows[name][index, count:].any() for name in ("boxes", "scores", "labels"))
        assert rows["scores"][index, :count].all()


@torch.inference_mode()
def test_masks_and_heat_maps_follow_the_detections() -> None:
    detector = Parts("keep")
    images, sizes = torch.zeros(2, 3, 16, 24, dtype=torch.uint8), torch.tensor([[16, 24], [8, 8]])
    whole = Whole(detector, raw=True)(images, sizes)
    assert list(whole) == [*DETECTIONS, "masks", "keypoint_heatmaps", "raw.logits"]
    rows = detector.detect(detector.network(detector.input(images, sizes), sizes), sizes)
    for name, values in (("masks", rows.masks), ("keypoint_heatmaps", rows.heatmaps)):
        assert values is not None
        assert whole[name].shape == values.shape
        for index, count in enumerate(rows.counts.tolist()):
            assert 0 < count < 20
            assert torch.equal(whole[name][index, :count], values[index, :count])
            assert not whole[name][index, count:].any()
    assert list(Whole(detector, raw=True, detections=False)(images, sizes)) == ["raw.logits"]


@rules
@torch.inference_mode()
def test_a_picture_of_the_size_of_the_input_is_not_resized(rule: str) -> None:
    detector, size = Cells(rule), (48, 72) if rule == "short_side" else (64, 64)
    batch = batch_of(detector, random_pictures(size))
    exact, resized = Whole(detector)(batch.images, batch.sizes()), Whole(detector, "resize")(batch.images)
    assert exact["counts"] > 5
    for name in DETECTIONS:
        torch.testing.assert_close(resized[name], exact[name])


BOXES = torch.tensor([[[4.0, 8.0, 20.0, 30.0], [32.0, 20.0, 60.0, 38.0]]])
WITHOUT_AREA = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 40.0]]])


@rules
@torch.inference_mode()
def test_proposals_of_a_file_that_resizes_are_in_pixels_of_the_picture(rule: str) -> None:
    """`Proposed` detects nothing but its proposals, so the way there and back ends where it began."""
    images = torch.from_numpy(np.stack(random_pictures((40, 64)))).permute(0, 3, 1, 2)
    rows = Whole(Proposed(rule), "resize")(images, proposals=BOXES)
    boxes = rows["boxes"][0, : int(rows["counts"])].round(decimals=3).tolist()
    assert {tuple(box) for box in boxes} == {tuple(box) for box in BOXES[0].tolist()}


@torch.inference_mode()
def test_proposals_without_area_do_nothing() -> None:
    module, sizes = Whole(Proposed("stretch"), raw=True), torch.tensor([[64, 64]])
    images = torch.from_numpy(np.stack(random_pictures((64, 64)))).permute(0, 3, 1, 2)
    filled = torch.cat([BOXES[:, :1], WITHOUT_AREA, BOXES[:, 1:]], dim=1)
    rows, expected = (module(images, sizes, proposals=boxes) for boxes in (filled, BOXES))
    assert rows["raw.regions.valid"].tolist() == [True, False, False, True]
    assert expected["counts"] > 0
    for name in DETECTIONS:
        torch.testing.assert_close(rows[name], expected[name])


def test_outputs_are_named_by_their_path() -> None:
    one, two, three, rows = (torch.full((), value) for value in range(4))
    regions = Regions(one, two, three)
    outputs = (CellOutputs(one), [two, None], regions, DetectionRows(rows, rows, rows, rows))
    assert named_tensors(outputs) == {
        "0.logits": one,
        "1.0": two,
        "2.boxes": one,
        "2.images": two,
        "2.valid": three,
    }
    assert named_tensors(CellOutputs(one), "raw") == {"raw.logits": one}
    assert named_tensors({"mask": CellOutputs(one), "other": {}}, "raw") == {"raw.mask.logits": one}


@torch.inference_mode()
def test_raw_outputs_follow_the_detections_or_stand_alone() -> None:
    detector, images, sizes = Cells(), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    assert list(Whole(detector, raw=True)(images, sizes)) == [*DETECTIONS, "raw.logits"]
    alone = Whole(detector, raw=True, detections=False)(images, sizes)
    assert list(alone) == ["raw.logits"]
    expected = detector.network(detector.input(images, sizes), sizes).logits
    assert torch.equal(alone["raw.logits"], expected)
