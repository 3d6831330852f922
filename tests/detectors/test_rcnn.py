"""R-CNN: its published size, what a region's features are, and its three stages on a handful of pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from detkit.detectors.build import build_detector
from detkit.detectors.rcnn import RCNN, RCNNConfig, maximum_of_cells
from detkit.export.program import Form, complete_form, export_program
from detkit.nn.backbones import BackboneConfig
from detkit.nn.backbones.lenet import LeNetConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.rcnn import RCNNHeadConfig
from detkit.nn.heads.rcnn_stages import SVMConfig
from detkit.nn.proposals.regions import Regions
from detkit.ops.roi import roi_warp
from detkit.structures import Categories, Objects, Target
from tests.detectors.batches import ROOT, enliven, images_of, make_batch
from tests.detectors.overfit import overfit

ANIMALS = Categories.of_names(["cat", "dog", "cow"])


def test_parameters_as_published() -> None:
    """The CaffeNet of R-CNN's fine-tuning with 20 classes; 20 SVMs on fc7; 20 times 4 regressors on pool5."""
    with torch.device("meta"):
        detector = build_detector(RCNNConfig(), Categories.of_names([str(i) for i in range(20)]))
    assert sum(parameter.numel() for parameter in detector.parameters()) == 56_954_261
    sizes = {name.removeprefix("roi."): buffer.numel() for name, buffer in detector.named_buffers()}
    assert sizes["svm_weight"] + sizes["svm_bias"] == 20 * 4_097
    assert sizes["box_weight"] + sizes["box_bias"] == 20 * 4 * 9_217


RESNET = ResNetConfig(name="resnet18", norm="bn", frozen_stages=0, strides=(8,))


def small(backbone: BackboneConfig = RESNET, **fields: Any) -> RCNN:
    torch.manual_seed(0)
    roi = RCNNHeadConfig(crop_size=32, context=3, output_size=2, hidden=(16,), dropout=0.0, **fields)
    detector = build_detector(RCNNConfig(backbone=backbone, roi=roi), ANIMALS)
    assert isinstance(detector, RCNN)
    enliven(detector)
    return detector.eval()


@torch.inference_mode()
def test_a_region_is_its_crop_through_the_network() -> None:
    """One crop at a time: warped from the image alone, the trunk, the maximum over each quarter of its map."""
    detector = small()
    batch = make_batch(detector, [2, 1], [(120, 160), (90, 100)])
    assert batch.proposals
    pixels = detector.input(batch.images, batch.sizes())
    pool5 = detector.pool5(pixels, Regions.from_list(batch.proposals))
    expected = []
    for image, info, proposals in zip(pixels, batch.infos, batch.proposals, strict=True):
        height, width = info.input_size
        for box in proposals:
            crop = roi_warp(image[None, :, :height, :width], [box[None]], 32, context=3)
            (level,) = detector.backbone(crop)
            expected.append(F.max_pool2d(level, 2)[0])
    torch.testing.assert_close(pool5, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("cells", "kernel", "size"), [(13, 3, 6), (14, 2, 7)])
def test_pool5_is_the_pooling_of_the_published_networks(cells: int, kernel: int, size: int) -> None:
    """CaffeNet's 3 x 3 over 13 cells and VGG16's 2 x 2 over 14, both with stride 2."""
    level = torch.randn(2, 4, cells, cells)
    assert torch.equal(F.adaptive_max_pool2d(level, size), F.max_pool2d(level, kernel, 2))


# ---- the exported program


@pytest.mark.parametrize(("cells", "size"), [(13, 6), (14, 7), (3, 3), (7, 2), (11, 4), (1, 6), (2, 3)])
def test_an_exported_program_pools_the_same_cells(cells: int, size: int) -> None:
    level = torch.randn(2, 4, cells, cells)
    assert torch.equal(maximum_of_cells(level, size), F.adaptive_max_pool2d(level, size))


@pytest.mark.long
@torch.no_grad()
def test_a_program_has_the_way_that_holds_when_it_is_exported() -> None:
    """The softmax before the last stages, SVMs and regressors after them; with other numbers of images and regions."""
    detector = small(LeNetConfig(), svm=SVMConfig(easy_margin=-100.0))
    batch = make_batch(detector, [3, 1], [(90, 120), (60, 100)])
    for finished in (False, True):
        if finished:
            detector.finish_training([batch])
        program = export_program(detector, complete_form(Form(), detector), raw_too=True).module()
        for images in (batch, images_of(batch, 1)):
            assert images.proposals is not None
            proposals = torch.stack([boxes[:20] for boxes in images.proposals])
            regions = Regions.from_list(list(proposals))
            sizes = images.sizes()
            expected = detector.network(detector.input(images.images, sizes), sizes, regions)
            outputs = program(images=images.images, sizes=sizes, original_sizes=sizes, proposals=proposals)
            assert ("raw.roi.margins" in outputs, "raw.roi.deltas" in outputs) == (finished, finished)
            assert_close(outputs["raw.roi.logits"], expected.roi.logits, atol=1e-4, rtol=1e-4)
            assert expected.detections is not None
            assert expected.detections.counts.min() > 0
            assert torch.equal(outputs["counts"], expected.detections.counts)
            assert_close(outputs["scores"], expected.detections.scores, atol=1e-4, rtol=1e-4)


# ---- the stages after gradient descent


def boxes_of(rows: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def test_the_labels_of_each_stage() -> None:
    """SVMs: objects against regions that overlap their class by less than .3; regressors: regions above .6."""
    detector = small(svm=SVMConfig(easy_margin=-100.0))
    batch = make_batch(detector, [0], [(120, 160)])
    objects = boxes_of([(10, 10, 50, 50), (80, 20, 120, 60), (60, 80, 100, 110)])
    target = Target(
        Objects(objects, torch.tensor([0, 1, 0]), torch.tensor([False, False, True]))
    )  # the second cat is difficult
    proposals = boxes_of(
        [
            (14, 10, 54, 50),  # cat, IoU .82: a regressor's example, no negative of cats, one of dogs
            (30, 10, 70, 50),  # cat, IoU .33: neither, but a negative of dogs
            (38, 10, 78, 50),  # cat, IoU .18: a negative of both
            (62, 80, 102, 110),  # the difficult cat, .9: no example, no negative of cats
        ]
    )
    batch = replace(batch, targets=(target,), proposals=(proposals,))
    # regressors: the cat, the dog and the first proposal; negatives of cats: the dog and the third proposal; of dogs:
    # the cat and all four proposals; of cows none stay, as there is nothing to tell them from
    assert detector.finish_training([batch]) == (
        "box regressors on 3 regions; SVMs on 2 objects and 7 hard negatives; "
        "too few of cow, which will never be detected"
    )


def test_stages_without_any_proposal() -> None:
    """The objects are each other's negatives."""
    detector = small(svm=SVMConfig(easy_margin=-100.0))
    batch = make_batch(detector, [0], [(120, 160)])
    objects = boxes_of([(10, 10, 50, 50), (80, 20, 120, 60)])
    target = Target(Objects(objects, torch.tensor([0, 1])))
    batch = replace(batch, targets=(target,), proposals=(torch.zeros(0, 4),))
    assert "SVMs on 2 objects and 2 hard negatives; too few of cow" in detector.finish_training([batch])
    assert all(buffer.isfinite().all() for buffer in detector.buffers())


def test_images_without_proposals() -> None:
    detector = small()
    batch = make_batch(detector, [2, 0])
    none = replace(batch, proposals=(torch.zeros(0, 4), torch.zeros(0, 4)))
    assert [len(detections) for detections in detector.postprocess(detector(none), none.infos)] == [0, 0]
    losses = detector.train().criterion(detector(none), none.targets or ())
    assert losses["roi_class"] > 0, "the objects themselves are proposals in training"


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"backbone.strides: expected one level, found"):
        RCNNConfig(backbone=ResNetConfig())


def test_proposals_are_asked_for() -> None:
    detector = small()
    with pytest.raises(ValueError, match="expected proposals in the batch: RCNN has no network that proposes"):
        detector(replace(make_batch(detector, [1]), proposals=None))


@pytest.mark.slow
def test_it_overfits_four_pictures(tmp_path: Path) -> None:
    assert overfit(ROOT / "configs/rcnn.yaml", tmp_path, [], pictures=4, steps=60) > 0.85
