"""The sliding window: dense is crop by crop, what it learns from, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._pytree import tree_map

from detkit.detectors.build import build_detector
from detkit.detectors.sliding_window import SlidingWindow, SlidingWindowConfig
from detkit.nn.backbones.lenet import LeNetConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.heads.sliding_window import WindowHeadConfig, WindowSelectionConfig
from detkit.nn.proposals.regions import Regions
from detkit.nn.proposals.windows import PyramidConfig, cut_windows
from detkit.structures import Categories, Objects, Target
from tests.detectors.batches import ROOT, enliven, make_batch
from tests.detectors.overfit import overfit


def build(**fields: Any) -> SlidingWindow:
    torch.manual_seed(0)
    detector = build_detector(SlidingWindowConfig(**fields), Categories.of_names(["cat", "dog"]))
    assert isinstance(detector, SlidingWindow)
    enliven(detector)
    return detector.eval()


@torch.inference_mode()
def dense_and_cropped(detector: SlidingWindow, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and deltas of all windows of the pyramid, in passes over whole levels, and window by window."""
    levels = detector.pyramid(image)
    logits, deltas = detector.dense(levels)
    boxes = torch.cat([level.boxes() for level in levels])
    crops = cut_windows(levels, torch.arange(len(boxes)))
    maps = torch.cat([detector.backbone(part)[-1] for part in crops.split(64)])
    alone = detector.roi(maps, Regions.from_list([boxes]))
    return logits, deltas, alone.logits, alone.deltas


@pytest.mark.long
@pytest.mark.parametrize("size", [(32, 32), (35, 61), (90, 77)])
@pytest.mark.parametrize(
    "backbone",
    [
        LeNetConfig(widths=(32, 64), activation="relu", pool="max"),
        LeNetConfig(connections="sparse"),
        LeNetConfig(strides=(2,)),
    ],
    ids=["wide", "1998", "stride 2"],
)
def test_dense_equals_crop_by_crop(backbone: LeNetConfig, size: tuple[int, int]) -> None:
    """At every window of every level: LeNet pads nothing."""
    detector = build(backbone=backbone, roi=WindowHeadConfig(hidden=(24, 16)))
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    logits, deltas, alone_logits, alone_deltas = dense_and_cropped(detector, image)
    assert logits.std() > 0.05
    torch.testing.assert_close(logits, alone_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, alone_deltas, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_padding_breaks_the_equality() -> None:
    """A padded trunk sees zeros around a crop, and the neighbourhood in the level."""
    detector = build(backbone=ResNetConfig(name="resnet18", norm="bn", frozen_stages=0, strides=(4,)))
    logits, _, alone, _ = dense_and_cropped(detector, torch.randn(3, 64, 64))
    assert (logits - alone).abs().max() > 0.01


def test_images_smaller_than_the_window_are_looked_at() -> None:
    detector = build()
    batch = make_batch(detector, [1, 1], [(12, 90), (20, 15)])
    outputs = detector(batch)
    assert all(len(boxes) for boxes in outputs.roi.regions.to_list(2))
    detector.train().criterion(detector(batch), batch.targets)


def test_a_training_batch_has_objects_background_and_the_hardest_of_it() -> None:
    detector = build(
        windows=PyramidConfig(window=32, largest_scale=1.0, levels_per_octave=1),
        roi=WindowHeadConfig(batch_size_per_image=40, hard_fraction=0.25, mined=100_000),
    )
    levels = detector.pyramid(torch.randn(3, 96, 96))
    target = Target(Objects(torch.tensor([[20.0, 20.0, 52.0, 52.0]]), torch.tensor([1])))
    crops, boxes, labels, target_boxes = detector.sample(levels, target)
    assert crops.shape == (40, 3, 32, 32)
    assert set(labels.tolist()) == {0, 2}
    positive = int((labels == 2).sum())
    assert 5 < positive <= 20
    object_box = target.objects.boxes
    assert (target_boxes[labels == 2] == object_box).all()
    assert (target_boxes[labels == 0] == boxes[labels == 0]).all()

    # by hand: all background windows, the surest of an object first
    with torch.no_grad():
        logits, _ = detector.dense(levels)
    windows = torch.cat([level.boxes() for level in levels])
    inside = (
        torch.minimum(windows[:, 2:], object_box[:, 2:]) - torch.maximum(windows[:, :2], object_box[:, :2])
    ).clamp(min=0)
    shared = inside.prod(dim=1)
    areas = (windows[:, 2:] - windows[:, :2]).prod(dim=1)
    background = shared / (areas + 32 * 32 - shared) < 0.5
    order = logits.softmax(dim=1)[:, 0].masked_fill(~background, 2).argsort()
    count = round(0.25 * (40 - positive))
    hardest = windows[order[:count]]
    assert {tuple(box) for box in hardest.tolist()} <= {tuple(box) for box in boxes[labels == 0].tolist()}


@pytest.mark.long
def test_mining_leaves_the_network_in_its_mode() -> None:
    """A mode that changed inside a training step would make another network of one with batch norm."""
    detector = build(backbone=ResNetConfig(name="resnet18", norm="bn", frozen_stages=0, strides=(4,))).train()
    modes = []
    detector.backbone.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    levels = detector.pyramid(torch.randn(3, 64, 64))
    detector.sample(levels, Target(Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))))
    assert modes == [True]
    assert all(module.training for module in detector.modules())


# ---- the exported program


@torch.inference_mode()
def on_canvas_and_alone(detector: SlidingWindow, sizes: list[tuple[int, int]]) -> list[tuple[RoIOutputs, RoIOutputs]]:
    """Of the valid windows of each picture on a canvas of 70 x 90 px, and of the picture alone."""
    canvas = torch.randint(256, (len(sizes), 3, 70, 90), generator=torch.Generator().manual_seed(1))
    every_size = torch.tensor(sizes)
    outputs = detector.windows_of_canvas(detector.input(canvas, every_size), every_size)
    results = []
    for number, (height, width) in enumerate(sizes):
        rows = outputs.regions.valid & (outputs.regions.images == number)
        size = torch.tensor([[height, width]])
        picture = detector.input(canvas[number : number + 1, :, :height, :width], size)
        results.append((tree_map(lambda value, rows=rows: value[rows], outputs), detector.network(picture, size).roi))
    return results


@pytest.mark.parametrize(
    "backbone",
    [LeNetConfig(widths=(32, 64), activation="relu", pool="max"), LeNetConfig(connections="sparse")],
    ids=["wide", "1998"],
)
def test_a_program_computes_what_each_picture_alone_gives(backbone: LeNetConfig) -> None:
    """At every window, also of pictures that are enlarged: LeNet pads nothing."""
    detector = build(backbone=backbone, roi=WindowHeadConfig(hidden=(24, 16)))
    for actual, expected in on_canvas_and_alone(detector, [(70, 90), (50, 41), (33, 90), (12, 30)]):
        assert torch.equal(actual.regions.boxes, expected.regions.boxes)
        assert expected.logits.std() > 0.05
        torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(actual.deltas, expected.deltas, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_a_padded_trunk_sees_what_lies_beside_a_smaller_picture() -> None:
    """Then windows at the right and the lower border differ; in a picture as large as the canvas none does."""
    detector = build(backbone=ResNetConfig(name="resnet18", norm="bn", frozen_stages=0, strides=(4,)))
    (full, full_alone), (small, small_alone) = on_canvas_and_alone(detector, [(70, 90), (60, 64)])
    torch.testing.assert_close(full.logits, full_alone.logits, atol=1e-4, rtol=1e-4)
    differs = ((small.logits - small_alone.logits).abs() > 1e-4).any(dim=1)
    x2, y2 = small.regions.boxes[:, 2:].unbind(dim=1)
    assert (differs & (x2 > 60)).any()
    assert (differs & (y2 > 56)).any()
    assert not differs[(x2 < 20) & (y2 < 20)].any()


# ---- training


def test_mining_can_be_left_out() -> None:
    detector = build(roi=WindowHeadConfig(mined=0))
    levels = detector.pyramid(torch.randn(3, 64, 64))
    target = Target(Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    _, _, labels, _ = detector.sample(levels, target)
    assert labels.tolist() == [0] * 64


@pytest.mark.long
@torch.inference_mode()
def test_merging_joins_what_suppression_drops() -> None:
    fields = {"score_threshold": 0.0, "nms_threshold": 0.3, "top_k_per_class": 30}
    suppressing = build(roi=WindowHeadConfig(selection=WindowSelectionConfig(**fields)))
    merging = build(roi=WindowHeadConfig(selection=WindowSelectionConfig(**fields, suppression="merge")))
    merging.load_state_dict(suppressing.state_dict())
    batch = make_batch(suppressing, [2], targets=False)
    (suppressed,), (merged,) = (d.postprocess(d(batch), batch.infos) for d in (suppressing, merging))
    assert merged.scores[0] > suppressed.scores[0], "windows that agree are surer together"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": LeNetConfig(strides=(2, 4))}, r"backbone.strides: expected one level, found \[2, 4\]"),
        ({"roi": {"hidden": ()}}, "at least 1 item"),
        ({"roi": {"hidden": (8,), "ranks": (2,)}}, "at most 0 items"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SlidingWindowConfig(**fields)


def test_targets_are_asked_for() -> None:
    detector = build()
    batch = make_batch(detector, [1], targets=False)
    with pytest.raises(ValueError, match=r"without targets in training mode; call detector.eval\(\)"):
        detector.train()(batch)


@pytest.mark.slow
def test_it_overfits_four_pictures(tmp_path: Path) -> None:
    changes = ["model.windows.levels_per_octave=3"]
    assert overfit(ROOT / "configs/sliding_window.yaml", tmp_path, changes, pictures=4, steps=300, lr=2e-3) > 0.8
