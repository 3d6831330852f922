"""Pictures in, detections in their own pixels out."""

import pytest
import torch

from detkit.engine.predict import predict
from detkit.engine.prediction.records import picture_record
from detkit.structures import Categories, Detections, Objects
from tests.engine.prediction.detectors import BrightSpot, spot_picture


@pytest.mark.parametrize(("size", "max_size"), [(50, 1000), (200, 1000), (200, 150)])
def test_detections_are_in_the_pixels_of_the_picture(size: int, max_size: int) -> None:
    boxes = [(40, 20, 100, 60), (8, 30, 44, 160)]
    pictures = [spot_picture(100, 150, boxes[0]), spot_picture(200, 90, boxes[1])]
    found = predict(BrightSpot(size, max_size), pictures)
    for detections, box in zip(found, boxes, strict=True):
        assert detections.boxes[0].tolist() == pytest.approx(box, abs=200 / min(size, max_size))  # one input pixel


def test_prediction_does_not_keep_the_training_mode() -> None:
    detector = BrightSpot(50, 100).train()
    predict(detector, [spot_picture(40, 40, (0, 0, 9, 9))])
    assert not detector.training


def test_detections_as_plain_values() -> None:
    objects = Objects(torch.tensor([(1.0, 2.0, 3.0, 4.5)]), torch.tensor([1]), scores=torch.tensor([0.5]))
    detections = Detections(objects, Categories.of_names(["cat", "dog"]))
    expected = {"class": "dog", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.5]}
    assert picture_record((60, 80), detections) == {"width": 80, "height": 60, "detections": [expected]}
    for number, written in ((7, 7), (-1, None)):
        tracked = Detections(
            objects.from_columns({**objects.columns(), "track_ids": torch.tensor([number])}), detections.categories
        )
        assert picture_record((60, 80), tracked)["detections"] == [{**expected, "track": written}]
