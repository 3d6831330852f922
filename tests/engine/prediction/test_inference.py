"""From pictures to what was asked for: scales, tiles, flips and choice together, on a detector of bright spots."""

from typing import Any

import numpy as np
import pytest
import torch

from detkit.config import UserError
from detkit.engine.predict import predict
from detkit.engine.prediction.inference import build_predict
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.proposal_search import ProposalSource
from detkit.export.metadata import Metadata
from detkit.export.runtime import ExportedDetector, Runner
from detkit.nn.input import ImageInput, InputConfig, KeepConfig, LetterboxConfig, StretchConfig
from detkit.structures import Batch, Categories
from tests.engine.prediction.detectors import BrightSpot, spot_picture

SPOT = (40, 20, 100, 60)


class Watched(BrightSpot):
    """Remembers the sizes of its inputs, and is given proposals if it is asked to."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.inputs: list[tuple[int, int]] = []
        self.given: list[int] = []

    def forward(self, batch: Batch) -> torch.Tensor:
        self.inputs += [info.input_size for info in batch.infos]
        if batch.proposals:
            self.given += [len(boxes) for boxes in batch.proposals]
        return super().forward(batch)


def test_plain_prediction_is_that_of_the_detector() -> None:
    detector, images = BrightSpot(), [spot_picture(100, 150, SPOT), spot_picture(90, 200, None)]
    plain = build_predict(detector, None, PredictionConfig())(images)
    for one, other in zip(plain, predict(detector, images), strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert not one.boxes.is_inference()


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_the_choice_comes_last(threshold: float) -> None:
    """The spot scores 0.75."""
    for settings in ({}, {"tile": 64}, {"tta": ("flip",)}):
        config = PredictionConfig.model_validate({"score_threshold": threshold, **settings})
        detected = build_predict(BrightSpot(), None, config)([spot_picture(100, 150, SPOT)])[0]
        assert len(detected) == (threshold == 0.7)


def test_no_more_pictures_at_once_than_the_limit() -> None:
    detector = BrightSpot()
    images = [spot_picture(60, 60, (5, 5, 20, 20))] * 7
    assert len(build_predict(detector, None, PredictionConfig(batch_size=3))(images)) == 7
    assert detector.batches == [3, 3, 1]
    detector.batches.clear()
    build_predict(detector, None, PredictionConfig(tile=50, overlap=0.0, tta=("flip",), batch_size=4))(
        [spot_picture(100, 150, SPOT)]
    )
    assert detector.batches == [1, 1, 4, 4, 2, 2]  # the picture and its mirror image; then six tiles and theirs


def test_scales_change_the_size_of_the_input_and_not_the_boxes() -> None:
    detector = Watched(size=60)
    config = PredictionConfig(tta=("scales", "flip"))
    run = build_predict(detector, None, config)
    detector.inputs.clear()
    detected = run([spot_picture(100, 150, SPOT)])[0]
    assert sorted(detector.inputs) == [(45, 68)] * 2 + [(60, 90)] * 2 + [(75, 113)] * 2
    assert len(detected) == 1
    assert detected.boxes[0].tolist() == pytest.approx(SPOT, abs=100 / 45)  # one pixel of the smallest input


@pytest.mark.parametrize(
    ("rule", "expected"), [(StretchConfig(size=64), (48, 48)), (LetterboxConfig(size=64), (32, 48))]
)
def test_squares_stay_multiples_of_the_stride(rule: StretchConfig | LetterboxConfig, expected: tuple[int, int]) -> None:
    """0.7 * 64 = 44.8, nearest 48 of 16; the letterbox has as much above as below, (48 - 32) / 2."""
    info = ImageInput(InputConfig(resize=rule), 16).place(0, (100, 150), scale=0.7)
    assert info.input_size == expected
    assert info.offset == ((48 - expected[1]) // 2, (48 - expected[0]) // 2)
    assert info.scale == (expected[1] / 150, expected[0] / 100)


class Squares(ProposalSource):
    """As many proposals as the picture is wide."""

    def settings(self) -> dict[str, Any]:
        return {}

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        return np.tile(np.array([[0, 0, 5, 5]], np.float32), (picture.shape[1], 1))


def test_proposals_are_those_of_each_tile() -> None:
    detector = Watched()
    config = PredictionConfig(tile=80, overlap=0.0, tta=("flip",))
    build_predict(detector, Squares(), config)([spot_picture(60, 150, SPOT)])
    assert detector.given == [150, 150, 80, 80, 80, 80]


def test_a_detector_without_an_input_size_takes_no_scales() -> None:
    detector = BrightSpot()
    detector.input.resize = KeepConfig()
    with pytest.raises(UserError, match="pictures as large as they are, which scales cannot change; use flip"):
        build_predict(detector, None, PredictionConfig(tta=("scales",)))
    build_predict(detector, None, PredictionConfig(tta=("flip",)))


class OneSize(BrightSpot):
    def network(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return super().network(images, sizes) & torch.ones(60, 60, dtype=torch.bool)


def test_a_detector_of_one_size_takes_no_scales() -> None:
    with pytest.raises(UserError, match="images of one size, which scales would change; use flip"):
        build_predict(OneSize(), None, PredictionConfig(tta=("flip", "scales")))


@pytest.mark.parametrize("canvas", [(64, 64), None])
def test_an_exported_file_of_one_size_takes_no_scales(
    canvas: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = Metadata(
        version="0",
        detector="SSD",
        classes=Categories.of_names(["a"]).to_plain(),
        input=InputConfig(),
        stride=32,
        pictures="exact",
        raw=False,
        batch=None,
        canvas=canvas,
        proposals=None,
        outputs=(),
        configuration=None,
        licence="",
    )
    detector = ExportedDetector(Runner.__new__(OnlyNames), metadata)
    monkeypatch.setattr("detkit.engine.prediction.inference.predict", lambda *_, **__: [])
    config = PredictionConfig(tta=("scales",))
    if canvas is None:
        build_predict(detector, None, config)
    else:
        with pytest.raises(UserError, match="images of one size"):
            build_predict(detector, None, config)


class OnlyNames(Runner):
    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        raise NotImplementedError
