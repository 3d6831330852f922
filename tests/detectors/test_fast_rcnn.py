"""Fast R-CNN: its published size, that it is Faster R-CNN with proposals from elsewhere, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from detkit.detectors.build import build_detector
from detkit.detectors.fast_rcnn import FastRCNN, FastRCNNConfig, FastRoIConfig
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.detectors.region_based import RegionBasedOutputs
from detkit.engine.predict import predict
from detkit.engine.proposal_search import SelectiveSearchProposals
from detkit.nn.backbones.c3d import C3DConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.vgg import VGGConfig
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.nn.selection import images_of_rows
from detkit.structures import Categories
from tests.detectors.batches import ROOT, cheap_config, enliven, make_batch
from tests.detectors.overfit import overfit, small_backbone

ANIMALS = Categories.of_names(["cat", "dog"])


def test_parameters_as_published() -> None:
    """fast-rcnn's VGG16 prototxt with the 20 classes of VOC."""
    with torch.device("meta"):
        detector = build_detector(FastRCNNConfig(), Categories.of_names([str(i) for i in range(20)]))
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in detector.named_modules()}
    assert [parts["backbone"], parts["roi.hidden.0"], parts["roi.hidden.1"]] == [14_714_688, 102_764_544, 16_781_312]
    assert [parts["roi.classifier"], parts["roi.regressor"]] == [86_037, 344_148]
    assert parts[""] == 134_690_729


@torch.inference_mode()
def test_with_the_proposals_of_a_faster_rcnn_it_is_that_faster_rcnn() -> None:
    config = cheap_config(ROOT / "configs/faster_rcnn.yaml").model
    torch.manual_seed(0)
    faster = build_detector(config, ANIMALS)
    assert isinstance(faster, FasterRCNN)
    enliven(faster)
    faster.eval()
    fast_config = FastRCNNConfig(
        backbone=config.backbone,
        neck=config.neck,
        roi=FastRoIConfig(**config.roi.model_dump()),
        input=config.input,
    )
    fast = build_detector(fast_config, ANIMALS).eval()
    fast.load_state_dict({key: value for key, value in faster.state_dict().items() if not key.startswith("rpn.")})

    batch = make_batch(faster, [3, 2], [(240, 320), (211, 173)], targets=False)
    expected = faster(batch)
    proposals = tuple(faster.rpn.propose(expected.rpn).to_list(2))
    actual = fast.postprocess(fast(replace(batch, proposals=proposals)), batch.infos)
    for detections, reference in zip(actual, faster.postprocess(expected, batch.infos), strict=True):
        assert len(detections) > 5
        assert torch.equal(detections.boxes, reference.boxes)
        assert torch.equal(detections.scores, reference.scores)
        assert torch.equal(detections.labels, reference.labels)


def small(**fields: object) -> FastRCNN:
    torch.manual_seed(0)
    config = cheap_config(ROOT / "configs/fast_rcnn.yaml", 96).model.model_copy(update=fields)
    detector = build_detector(config, ANIMALS)
    assert isinstance(detector, FastRCNN)
    return detector


@pytest.mark.long
@torch.inference_mode()
def test_each_region_is_pooled_in_the_scale_nearest_to_224_pixels() -> None:
    """Below 224 x 224 in the largest scale all go there; enlarged 8 times, only 8 x 8 does, and others fit 2 better."""
    detector = small(test_sizes=(48, 96)).eval()
    assert detector.test_scales == (0.5, 1.0)
    batch = make_batch(detector, [1, 1], [(96, 400), (96, 400)], targets=False)
    boxes = torch.tensor([[0.0, 0, 96, 96], [0, 0, 8, 8], [0, 0, 400, 96], [10, 10, 390, 90]])
    regions = Regions.from_list([boxes[:3], boxes[3:] + 1])
    pixels = detector.input(batch.images, batch.sizes())
    pooled = detector.pool_at_best_scale(pixels, regions)
    assert torch.equal(pooled, detector.roi.pool(detector.features(pixels), regions))

    detector.test_scales = (2.0, 8.0)
    pixels = pixels[:, :, :96]
    pooled = detector.pool_at_best_scale(pixels, Regions.from_list([boxes[:3], boxes[3:]]))
    for scale, rows in ((2.0, [0, 2, 3]), (8.0, [1])):
        height, width = (round(side * scale) for side in pixels.shape[2:])
        resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        scaled = Regions.from_list([boxes[:3] * scale, boxes[3:] * scale])
        expected = detector.roi.pool(detector.features(resized), scaled)
        torch.testing.assert_close(pooled[rows], expected[rows], atol=1e-5, rtol=1e-5)


class OfCorner(SelectiveSearchProposals):
    """Two boxes; remembers the pictures that it was asked for."""

    def __init__(self) -> None:
        super().__init__(SelectiveSearchConfig())
        self.pictures: list[np.ndarray] = []

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        self.pictures.append(picture)
        return np.array([[0, 0, 40, 30], [5, 10, 80, 60]], np.float32)


def test_on_a_clip_the_proposals_are_those_of_its_frame() -> None:
    """And an input that is resized to its own size gives the same; one of half the size may differ."""
    backbone = C3DConfig(width=0.125, strides=(8,), frames=5, norm="bn")
    detector, source = small(backbone=backbone, neck=None), OfCorner()
    enliven(detector)
    clip = np.random.default_rng(0).integers(0, 256, (5, 96, 120, 3)).astype(np.uint8)
    (expected,) = predict(detector, [clip], source)
    assert len(expected)
    assert len(source.pictures) == 1
    np.testing.assert_array_equal(source.pictures[0], clip[2])
    for scales, same in (((1.0,), True), ((0.5, 1.0), True), ((0.5,), False)):
        detector.test_scales = scales
        (found,) = predict(detector, [clip], source)
        one, other = (torch.cat([it.boxes, it.scores[:, None]], dim=1) for it in (found, expected))
        assert (one.shape == other.shape and torch.allclose(one, other, atol=1e-3)) == same


def test_test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"test_sizes: expected at most input.resize.size, found 700"):
        FastRCNNConfig(test_sizes=(480, 700))
    with pytest.raises(ValidationError, match=r"under input.resize {name: short_side}"):
        FastRCNNConfig(test_sizes=(480,), input={"resize": {"name": "keep"}})  # type: ignore[arg-type]


def test_images_without_proposals() -> None:
    detector = small()
    batch = make_batch(detector, [2, 0])
    none = replace(batch, proposals=(torch.zeros(0, 4), torch.zeros(0, 4)))
    losses = detector.train().criterion(detector(none), none.targets or ())
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["roi_class"] > 0, "the objects themselves are proposals in training"
    detector.eval()
    assert [len(detections) for detections in detector.postprocess(detector(none), none.infos)] == [0, 0]


class Core(nn.Module):
    """Images, sizes, boxes `[B, P, 4]` and bool `[B, P]`, which of them are proposals -> the outputs of the network."""

    def __init__(self, detector: FastRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor, boxes: Tensor, valid: Tensor) -> RegionBasedOutputs[RoIOutputs]:
        torch._check(boxes.shape[0] == images.shape[0])
        image = images_of_rows(boxes.shape[0], boxes.shape[1], boxes.device)
        regions = Regions(boxes.flatten(0, 1), image, valid.flatten())
        return self.detector.network(self.detector.input(images, sizes), sizes, regions)


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("test_sizes", [(), (48, 96)])
def test_its_core_is_exported_with_proposals_as_input(
    test_sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Regions, "compact", lambda self: self)  # as the exported program, so that outputs compare
    detector = small(test_sizes=test_sizes)
    enliven(detector)
    core = Core(detector.eval())
    batch = make_batch(detector, [2, 1], [(120, 160), (96, 100)], targets=False)
    assert batch.proposals
    images, rows = torch.export.Dim("images"), torch.export.Dim("rows")
    shapes = ({0: images}, {0: images}, {0: images, 1: rows}, {0: images, 1: rows})
    boxes = torch.nn.utils.rnn.pad_sequence(list(batch.proposals), batch_first=True)
    valid = torch.arange(boxes.shape[1]) < torch.tensor([[len(part)] for part in batch.proposals])
    inputs = (batch.images, batch.sizes(), boxes, valid)
    program = torch.export.export(core, inputs, dynamic_shapes=shapes, strict=False).module()
    one = (batch.images[:1], batch.sizes()[:1], boxes[:1, :-1], valid[:1, :-1])
    none = (batch.images, batch.sizes(), boxes, torch.zeros_like(valid))
    for example in (inputs, one, none):
        actual, expected = program(*example), core(*example)
        assert actual.detections.counts.tolist() == expected.detections.counts.tolist()
        assert bool(expected.detections.counts.all()) == (example is not none)
        pairs = zip(torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True)
        for leaf, expected_leaf in pairs:
            torch.testing.assert_close(leaf, expected_leaf, rtol=1e-5, atol=1e-4)


def test_proposals_and_targets_are_asked_for() -> None:
    detector = small()
    batch = make_batch(detector, [1])
    with pytest.raises(ValueError, match="expected proposals in the batch: FastRCNN has no network that proposes"):
        detector(replace(batch, proposals=None))
    with pytest.raises(ValueError, match=r"without targets in training mode; call detector.eval\(\)"):
        detector.train()(replace(batch, targets=None))


def test_background_overlaps_an_object_a_little() -> None:
    """Section 2.3: background has an IoU of [.1, .5) with an object, which leaves the easy negatives out."""
    detector = small()
    batch = make_batch(detector, [1], [(120, 160)])
    assert batch.targets
    x1, y1, x2, y2 = batch.targets[0].objects.boxes[0].tolist()
    width = x2 - x1
    shifted = [[x1 + part * width, y1, x2 + part * width, y2] for part in (0.0, 0.2, 0.5, 0.95, 2.0)]
    _, targets = detector.roi.sample(Regions.from_list([torch.tensor(shifted)]), batch.targets)
    assert (targets.labels > 0).sum() == 3  # IoU 1, .67, and the object itself
    assert (targets.labels == 0).sum() == 1  # IoU .33; those of .03 and 0 are left out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": ResNetConfig()}, "backbone.strides: 4 levels of different widths need a neck, found neck: null"),
        (
            {"backbone": VGGConfig(strides=(8, 16)), "neck": {"name": "fpn"}},
            "roi.pool: RoIPool reads one level, found 2",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FastRCNNConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.long
def test_it_overfits_three_pictures(tmp_path: Path) -> None:
    changes = ["model.input.resize={name: short_side, size: 96, max_size: 160}", "model.neck.out_channels=64"]
    changes += ["model.roi.hidden=[256]", "model.proposals.max_boxes=150", small_backbone((4, 8, 16))]
    assert overfit(ROOT / "configs/fast_rcnn.yaml", tmp_path, changes, pictures=3, steps=80, lr=2e-3) > 0.9
