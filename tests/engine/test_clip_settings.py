"""Configurations of detectors of clips: what does not fit is refused before anything is read."""

from pathlib import Path

import pytest

from detkit.config import ConfigError, load_config
from detkit.detectors.build import build_detector, clip_of
from detkit.engine.settings import RunConfig
from detkit.structures import Categories, Clip

ROOT = Path(__file__).resolve().parents[2]
C3D, ACT = (ROOT / "configs" / f"{name}.yaml" for name in ("c3d", "act"))
RCNN = "model={name: rcnn, backbone: {name: c3d}}"


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        (C3D, ["data={name: shapes}"], "data.name: the model takes clips of 16 frames; expected videos"),
        (ACT, ["data={name: coco, root: there}"], "data.name: the model takes clips of 6 frames; expected videos"),
        (C3D, ["augment=[mosaic]"], "augment: mosaic joins pictures"),
        (C3D, ["augment=yolox"], "augment: mosaic joins pictures"),
        (C3D, ["model.backbone.time_pooling=none"], "model.backbone.time_pooling: none leaves maps with a time axis"),
        (C3D, [RCNN], "model.backbone: c3d takes clips, of which rcnn cannot take crops"),
        (C3D, ["model.backbone.frames=0"], "model.backbone.frames"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, RunConfig, changes)
    assert message in str(caught.value)


def test_the_clip_of_a_detector_is_that_of_its_configuration() -> None:
    config = load_config(C3D, RunConfig, ["model.backbone.frames=12", "model.backbone.frame_step=2"])
    assert clip_of(config.model) == Clip(12, 2, before=6)
    detector = build_detector(config.model, Categories.of_names(["run"]))
    assert detector.input.clip == Clip(12, 2, before=6)
    assert clip_of(load_config(ACT, RunConfig).model) == Clip(6, 1, before=0, tubes=True)
    assert clip_of(load_config(ROOT / "configs" / "ssd.yaml", RunConfig).model) is None


def test_pictures_of_videos_are_pictures_to_other_detectors() -> None:
    config = load_config(ROOT / "configs" / "faster_rcnn.yaml", RunConfig, ["data={name: moving_shapes}"])
    assert clip_of(config.model) is None
