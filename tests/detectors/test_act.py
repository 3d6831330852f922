"""ACT's published size, the frames that it sees, what is refused, and tubelets learned by heart."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detkit.data.collate import collate
from detkit.data.transforms import resize_sample
from detkit.detectors.act import ACT, ACTConfig
from detkit.detectors.build import build_detector, clip_of
from detkit.nn.backbones.c3d import C3DConfig
from detkit.nn.necks.fpn import FPNConfig
from detkit.ops.iou import box_iou
from detkit.structures import Batch, Categories, Clip, Objects, Sample

LEFT_RIGHT = Categories.of_names(["left", "right"])
FRAMES = 4
TINY: dict[str, object] = {
    "backbone": {"name": "csp_darknet", "width": 0.25, "strides": [4, 8]},
    "neck": None,
    "head": {"priors": {"min_sizes": [14, 20], "max_sizes": [20, 28], "ratios": [[], []], "steps": None}},
    "input": {"resize": {"name": "stretch", "size": 64}, "std": [58, 57, 57]},
    "frames": FRAMES,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_published_stream() -> None:
    """UCF101-24. SSD300's trunk as it is; the heads by arithmetic: the products of the channels of a level and its
    priors add up to 14,848, times six frames, nine weights, and 24 classes, background and six boxes; 30 priors."""
    with torch.device("meta"):
        detector = build_detector(ACTConfig(), Categories.of_names([str(i) for i in range(24)]))
    assert isinstance(detector, ACT)
    assert detector.neck is not None
    assert count(detector.backbone) + count(detector.neck) == 22_943_936
    levels = zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)
    outputs = 24 + 1 + 6 * 4
    expected = sum(6 * channels * 9 * priors * outputs + priors * outputs for channels, priors in levels)
    assert count(detector.head) == expected == 39_289_278
    assert count(detector) == 62_233_214


@torch.no_grad()
def test_maps_and_priors_of_the_published_stream() -> None:
    with torch.device("meta"):
        detector = build_detector(ACTConfig(), LEFT_RIGHT).eval()
    assert isinstance(detector, ACT)
    levels = detector.features(torch.empty(2, 3, 6, 300, 300, device="meta"))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (6 * channels, side, side)
        for channels, side in zip((512, 1024, 512, 256, 256, 256), (38, 19, 10, 5, 3, 1), strict=True)
    ]
    outputs = detector.network(torch.empty(2, 3, 6, 300, 300, device="meta"), torch.empty(2, 2, device="meta"))
    assert outputs.logits.shape == (2, 8732, 3)
    assert outputs.deltas.shape == (2, 8732, 24)


def tiny() -> ACT:
    torch.manual_seed(0)
    detector = build_detector(ACTConfig.model_validate(TINY, strict=False), LEFT_RIGHT)
    assert isinstance(detector, ACT)
    return detector


def moving_squares(detector: ACT, num_clips: int = 4) -> Batch:
    """A bright square that goes left in every other clip, else right, 3 px a frame. Clips 0 and 1, 2 and 3, ... have
    the same background and the same boxes, in opposite orders, so that no single frame tells the class."""
    items = []
    for index in range(num_clips):
        rng = np.random.default_rng(index // 2)
        image = np.repeat(rng.integers(0, 100, (1, 64, 64, 3)), FRAMES, axis=0).astype(np.uint8)
        x, y = rng.integers(12, 34, 2)
        step = 3 if index % 2 else -3
        tube = np.array(
            [[x + step * (t - 1.5), y, x + step * (t - 1.5) + 18, y + 18] for t in range(FRAMES)], np.float32
        )
        tube = tube.round()
        for frame, (x1, y1, x2, y2) in zip(image, tube.astype(int), strict=True):
            frame[y1:y2, x1:x2] = rng.integers(200, 256, 3)
        objects = Objects(tube[:1], np.array([index % 2]), tubes=tube[None])
        info = detector.input.place(index, (64, 64))
        items.append((resize_sample(Sample(image, objects, index), info.input_size), info))
    return collate(items, detector.input.stride, with_targets=True)


@torch.no_grad()
def test_each_frame_passes_the_same_trunk_by_itself() -> None:
    """The channels of frame t are those of that frame alone."""
    detector = tiny().eval()
    clips = torch.randn(2, 3, FRAMES, 64, 64)
    levels = detector.features(clips)
    for frame in range(FRAMES):
        for level, alone in zip(levels, detector.backbone(clips[:, :, frame]), strict=True):
            channels = alone.shape[1]
            part = level[:, frame * channels : (frame + 1) * channels]
            torch.testing.assert_close(part, alone)


def test_every_weight_has_a_gradient() -> None:
    detector = tiny().train()
    batch = moving_squares(detector)
    assert batch.targets is not None
    losses = detector.criterion(detector(batch), batch.targets)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_moving_squares_are_learned_by_heart() -> None:
    """Their motions, and their boxes in every frame."""
    detector = tiny().train()
    batch = moving_squares(detector)
    assert batch.targets is not None
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3, fused=True)
    for _ in range(80):
        loss = torch.stack(list(detector.criterion(detector(batch), batch.targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        detected = detector.eval().postprocess(detector(batch), batch.infos)
    for index, (detections, target) in enumerate(zip(detected, batch.targets, strict=True)):
        assert detections.labels[0] == index % 2
        assert detections.scores[0] > 0.5
        tubes, expected = detections.objects.tubes, target.objects.tubes
        assert tubes is not None
        assert expected is not None
        overlaps = box_iou(tubes[0], expected[0], paired=True)
        assert (overlaps > 0.75).all(), overlaps
        assert box_iou(expected[0, :1], expected[0, -1:]).item() < 0.4  # they move far


def test_a_clip_begins_with_its_frame() -> None:
    config = ACTConfig()
    assert clip_of(config) == Clip(frames=6, step=1, before=0, tubes=True)
    assert tiny().input.clip == Clip(frames=FRAMES, step=1, before=0, tubes=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": C3DConfig(strides=(8, 16))}, "backbone: c3d takes clips; expected one of pictures"),
        ({"neck": FPNConfig()}, "head.priors.min_sizes: expected 3 entries, one for each feature level, found 6"),
        ({"frames": 0}, "greater than or equal to 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ACTConfig(**fields)  # type: ignore[arg-type]
