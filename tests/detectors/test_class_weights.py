"""`train.class_weights` reaches the loss of every detector, by the name of the class."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector, Detector
from detkit.engine.checks import class_weights
from detkit.structures import Batch, Categories, KeypointCategories
from tests.detectors.batches import CONFIGS, ROOT, cheap_config, make_batch

CATEGORIES = replace(Categories.of_names(["cat", "dog", "cow"]), keypoints=KeypointCategories(("head", "tail")))


def losses_of(detector: AnyDetector, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return detector.criterion(detector(batch), batch.targets or ())


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.parent == ROOT / "configs"], ids=lambda path: path.stem
)
def test_every_detector_weighs_its_classes(path: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector(cheap_config(path).model, CATEGORIES).train()
    batch = make_batch(detector, [3, 2])
    plain = losses_of(detector, batch)
    detector.set_class_weights(class_weights({"dog": 4.0, "cat": 4.0, "cow": 4.0}, CATEGORIES))
    weighted = losses_of(detector, batch)
    changed = {name for name in plain if not torch.equal(plain[name], weighted[name])}
    assert changed == {name for name in plain if "class" in name}
    assert all(weighted[name] > plain[name] for name in changed)


def test_factors_by_name() -> None:
    assert class_weights({"cow": 3, "cat": 0.5}, CATEGORIES).tolist() == [0.5, 1.0, 3.0]
    with pytest.raises(UserError, match=r"train.class_weights: the data have no class 'dgo'; did you mean 'dog'\?"):
        class_weights({"cat": 2.0, "dgo": 1.0}, CATEGORIES)


def test_a_detector_that_cannot_says_so() -> None:
    with pytest.raises(UserError, match=r"train.class_weights: object has no loss that can weigh its 3 classes"):
        Detector.set_class_weights(object(), torch.ones(3))  # type: ignore[arg-type]
