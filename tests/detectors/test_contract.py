"""What every detector owes to the loop, the evaluator and the user, for every YAML file in configs/.

A new configuration is tested by lying there.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.engine.amp import autocast
from detkit.engine.settings import RunConfig
from detkit.structures import Batch, Categories, Detections, EncodedMasks, KeypointCategories, Size
from tests.detectors.batches import (
    CONFIGS,
    ROOT,
    cheap_config,
    enliven,
    images_of,
    learned_by,
    make_batch,
    tensors_of,
)
from tests.detectors.export import check_export

NUM_CLASSES = {"voc": 20, "coco": 80, "shapes": 6, "moving_shapes": 8}
POINTS = KeypointCategories(("head", "left foot", "right foot"), ((1, 2),))
NAMES = [f"class {i}" for i in range(80)]
BUILT_IN = [path for path in CONFIGS if path.parent == ROOT / "configs"]  # the published ones take minutes to export
QUICK = [ROOT / "configs" / name for name in ("faster_rcnn.yaml", "ssd.yaml", "yolov3.yaml")]  # in `make quick`
NAMES_OF_CONFIGS = [str(path.relative_to(ROOT / "configs")) for path in CONFIGS]


@pytest.fixture(
    scope="module",
    params=[pytest.param(path, marks=() if path in QUICK else pytest.mark.long) for path in CONFIGS],
    ids=NAMES_OF_CONFIGS,
)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[RunConfig, Detector]]:
    """A configuration and its detector, built once; every test leaves the weights as they are."""
    config = cheap_config(request.param)
    torch.manual_seed(0)
    categories = replace(Categories.of_names(NAMES[: NUM_CLASSES[config.data.name]]), keypoints=POINTS)
    detector = build_detector(config.model, categories)
    enliven(detector)
    yield config, detector
    detector.zero_grad(set_to_none=True)


def train_once(detector: Detector, batch: Batch) -> dict[str, Tensor]:
    """The losses, after one backward pass and without touching the batch statistics."""
    assert batch.targets is not None
    buffers = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    torch.manual_seed(0)
    detector.train()
    detector.zero_grad(set_to_none=True)
    losses = detector.criterion(detector(batch), batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    for name, buffer in detector.named_buffers():
        buffer.copy_(buffers[name])
    return losses


def check_training(detector: Detector, losses: dict[str, Tensor]) -> None:
    assert losses
    for name, loss in losses.items():
        assert loss.ndim == 0, name
        assert torch.isfinite(loss), f"{name}: {loss}"
        assert loss >= 0, name
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name}: no gradient"
            assert parameter.grad.norm().isfinite(), f"{name}: gradient is not finite"
        else:
            assert parameter.grad is None, f"{name}: frozen, but has a gradient"


def test_it_trains_on_images_with_and_without_objects(case: tuple[RunConfig, Detector]) -> None:
    _, detector = case
    losses = train_once(detector, make_batch(detector, [3, 0]))
    check_training(detector, losses)
    assert sum(losses.values()) > 0
    moved = [p.grad.norm() > 0 for p in detector.parameters() if p.grad is not None]
    assert sum(moved) / len(moved) > 0.5, "most weights should feel the objects"  # SSD's free levels have none to feel


def test_it_trains_on_images_without_any_object(case: tuple[RunConfig, Detector]) -> None:
    _, detector = case
    check_training(detector, train_once(detector, make_batch(detector, [0, 0])))


@torch.inference_mode()
def test_detections_are_sorted_inside_the_image_and_labelled(case: tuple[RunConfig, Detector]) -> None:
    _, detector = case
    batch = make_batch(detector, [3, 2], [(240, 320), (211, 173)], targets=False)
    found = detector.eval().postprocess(detector(batch), batch.infos)
    assert len(found) == 2
    assert all(len(detections) for detections in found), "nothing was detected: nothing is tested"
    for detections, info in zip(found, batch.infos, strict=True):
        height, width = info.orig_size
        x1, y1, x2, y2 = detections.boxes.unbind(dim=1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= width).all()
        assert (y2 <= height).all()
        assert (x1 < x2).all()
        assert (y1 < y2).all()
        assert (detections.scores.diff() <= 0).all()
        assert ((detections.scores >= 0) & (detections.scores <= 1)).all()
        assert ((detections.labels >= 0) & (detections.labels < len(detector.categories))).all()
        assert detections.categories == detector.categories
        check_columns(detections, learned_by(detector), info.orig_size)
    assert found[0].boxes.max() > 160, "boxes should reach beyond the input's pixels into the original's"


def check_columns(detections: Detections, learned: tuple[str, ...], size: Size) -> None:
    """Masks of the picture's size beside their boxes, points in their boxes; neither where none are learned."""
    objects = detections.objects
    assert (objects.masks is not None) == ("masks" in learned)
    assert (objects.keypoints is not None) == ("keypoints" in learned)
    if isinstance(objects.masks, EncodedMasks):
        assert (objects.masks.sizes == size).all()
        for mask, box in zip(objects.masks.crops().windows, detections.boxes, strict=True):
            if mask[2] > mask[0]:  # rounding of boxes, and the ring around a mask, reach out a little
                margin = 2 + (box[2:] - box[:2]).max() / 14
                assert mask[0] >= box[0] - margin
                assert mask[3] <= box[3] + margin
    if objects.keypoints is not None:
        places, boxes = objects.keypoints[..., :2], detections.boxes[:, None]
        assert (places >= boxes[..., :2] - 1).all()
        assert (places <= boxes[..., 2:] + 1).all()


@torch.inference_mode()
def test_it_detects_in_bfloat16(case: tuple[RunConfig, Detector]) -> None:
    """As `eval.amp=bf16` does. A random network's detections need not stay: only their form is tested."""
    _, detector = case
    batch = make_batch(detector, [3], targets=False)
    with autocast(torch.device("cpu"), "bf16"):
        outputs = detector.eval()(batch)
    (found,) = detector.postprocess(outputs, batch.infos)
    assert len(found)
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@torch.no_grad()  # in inference mode the weights that change their dtype would never train again
def test_an_image_in_a_batch_equals_itself_alone(case: tuple[RunConfig, Detector]) -> None:
    """In float64, because a proposal of a random network on the verge of suppression may fall to either side."""
    _, detector = case
    batch = make_batch(detector, [3, 2], targets=False)
    try:
        detector.eval().double()
        together = detector.postprocess(detector(batch), batch.infos)
        second = images_of(batch, 1)
        (alone,) = detector.postprocess(detector(second), second.infos)
        assert len(alone) == len(together[1]) > 0
        torch.testing.assert_close(as_rows(together[1]), as_rows(alone), rtol=1e-4, atol=1e-4)
    finally:
        detector.float()


def as_rows(found: Detections) -> Tensor:
    return torch.cat([found.boxes, found.scores[:, None], found.labels[:, None]], dim=1)


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [pytest.param(path, marks=() if path in BUILT_IN else pytest.mark.slow) for path in CONFIGS],
    ids=NAMES_OF_CONFIGS,
    indirect=True,
)
def test_its_core_is_exported(case: tuple[RunConfig, Detector]) -> None:
    """With a dynamic batch, and the same results on batches of several sizes."""
    _, detector = case
    check_export(detector, make_batch(detector, [3, 2], [(120, 160), (96, 100)], targets=False))


@torch.inference_mode()
def test_state_dict_round_trip(case: tuple[RunConfig, Detector]) -> None:
    config, detector = case
    with pytest.MonkeyPatch.context() as patch:  # to draw numbers takes longer than all else here
        for draw in ("normal_", "uniform_"):
            patch.setattr(Tensor, draw, lambda tensor, *args, **options: tensor.fill_(0.01))
        other = build_detector(config.model, detector.categories).eval()
    batch = make_batch(detector, [3], targets=False)
    expected = tensors_of(detector.eval()(batch))
    assert any(
        not torch.equal(a, b) for a, b in zip(tensors_of(other(batch)), expected, strict=True) if a.shape == b.shape
    )
    other.load_state_dict(detector.state_dict())
    found = tensors_of(other(batch))
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
