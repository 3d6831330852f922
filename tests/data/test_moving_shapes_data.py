"""The built-in videos as a data set: drawn once, the same from the same seed, and read as their drawing says."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.moving_shapes import MovingShapesConfig, read_moving_shapes
from detkit.data.moving_shapes_drawing import CLASS_NAMES, draw_clip
from detkit.structures import Clip


def config(root: Path, **changes: Any) -> MovingShapesConfig:
    return MovingShapesConfig(**{"root": str(root / "moving"), "num_train": 3, "num_val": 2, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moving_shapes")


def test_it_is_what_was_drawn(root: Path) -> None:
    """The first video of the validation: its own generator of the seed, the split and its place."""
    dataset, clip = read_moving_shapes(config(root), "val"), draw_clip(np.random.default_rng([0, 1, 0]))
    count = len(clip.frames)
    assert dataset.categories.names == CLASS_NAMES
    assert dataset.lengths().shape == (2,)
    assert dataset.lengths()[0] == count
    assert dataset.image_id(count - 1) == f"val_00000/{count - 1:06d}"
    for number in (0, count - 1):
        objects = dataset.ground_truth(number).objects
        np.testing.assert_allclose(objects.boxes, [item.boxes[number] for item in clip.objects], atol=1e-3)
        assert objects.labels.tolist() == [item.label for item in clip.objects]
        assert objects.track_ids is not None
        assert objects.track_ids.tolist() == [item.track_id for item in clip.objects]
        difference = np.abs(dataset.load(number).image.astype(int) - clip.frames[number])
        assert difference.mean() < 12  # a JPEG of noisy pictures


def test_tubes_follow_the_shapes(root: Path) -> None:
    dataset = read_moving_shapes(config(root), "val")
    objects = dataset.load(4, clip=Clip(5, tubes=True)).objects
    assert objects.tubes is not None
    assert not objects.ignore.any()
    for frame in range(5):
        assert objects.tubes[:, frame].tolist() == dataset.ground_truth(4 + frame).objects.boxes.tolist()


def test_training_passes_frames_over_and_validation_does_not(root: Path) -> None:
    train, val = read_moving_shapes(config(root), "train"), read_moving_shapes(config(root), "val")
    numbers = [str(train.image_id(index)).rpartition("/")[2] for index in range(3)]
    assert numbers == ["000000", "000004", "000008"]
    assert len(val) == int(val.lengths().sum())
    every = read_moving_shapes(config(root, train_every=1), "train")
    assert len(every) == int(every.lengths().sum())


def test_it_is_drawn_once_and_again_for_other_settings(tmp_path: Path) -> None:
    read_moving_shapes(config(tmp_path, num_train=1, num_val=1), "train")
    picture = tmp_path / "moving" / "frames" / "train_00000" / "000000.jpg"
    first, time = picture.read_bytes(), os.stat(picture).st_mtime_ns
    read_moving_shapes(config(tmp_path, num_train=1, num_val=1, train_every=2), "val")
    assert os.stat(picture).st_mtime_ns == time
    read_moving_shapes(config(tmp_path, num_train=1, num_val=1, seed=1), "train")
    assert picture.read_bytes() != first
    read_moving_shapes(config(tmp_path, num_train=1, num_val=2), "train")
    assert picture.read_bytes() == first
    assert os.listdir(tmp_path) == ["moving"]


def test_a_folder_of_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "moving").mkdir()
    (tmp_path / "moving" / "about.json").write_text(json.dumps({"generator": "detkit.data.shapes"}))
    with pytest.raises(DataError, match=r"exists and was not drawn by detkit .* nothing was changed"):
        read_moving_shapes(config(tmp_path), "train")
    assert os.listdir(tmp_path / "moving") == ["about.json"]
