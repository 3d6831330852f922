"""What is written of each frame."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.engine.prediction.frames import Frame, Medium
from detkit.engine.prediction.saving import Crops, Table, write_picture
from detkit.structures import Categories, Detections, Objects


def detections(boxes: list[tuple[float, ...]], names: tuple[str, ...], tracks: list[int] | None = None) -> Detections:
    count = len(boxes)
    objects = Objects(
        torch.tensor(boxes).view(-1, 4),
        torch.arange(count) % len(names),
        scores=torch.linspace(0.9, 0.5, count),
        track_ids=None if tracks is None else torch.tensor(tracks),
    )
    return Detections(objects, Categories.of_names(names))


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.webp", "d.tif", "e.bmp", "deep/f.jfif", "g.jpe"])
def test_pictures_of_every_kind_that_a_drawing_may_have(tmp_path: Path, name: str) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = (200, 40, 90)
    write_picture(tmp_path / name, image)
    with Image.open(tmp_path / name) as picture:
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - image).mean() < 6


@pytest.mark.parametrize("box", [(0.0, 0.0, 30.0, 20.0), (29.6, 19.5, 30.0, 20.0), (3.2, 4.9, 3.4, 5.1)])
def test_a_crop_covers_its_box_and_has_a_pixel_at_least(tmp_path: Path, box: tuple[float, ...]) -> None:
    frame = Frame(Medium("a.png", "a.png", "picture"), np.zeros((20, 30, 3), np.uint8))
    Crops(tmp_path).write(frame, detections([box], ("cat",)))
    with Image.open(tmp_path / "crops/cat/a.png_0.jpg") as crop:
        width, height = crop.size
    assert width == max(1, round(box[2]) - int(box[0]))
    assert height == max(1, round(box[3]) - int(box[1]))


@pytest.mark.parametrize(
    ("name", "folder"), [("../up", "_up"), ("a/b", "a_b"), (" . ", "_"), ("猫", "猫"), ("x\n", "x_")]
)
def test_a_class_is_a_folder_below_the_output_whatever_it_is_called(tmp_path: Path, name: str, folder: str) -> None:
    frame = Frame(Medium("a.png", "a.png", "picture"), np.zeros((20, 30, 3), np.uint8))
    Crops(tmp_path / "out").write(frame, detections([(1.0, 1.0, 9.0, 9.0)], (name,)))
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")]
    assert files == [f"out/crops/{folder}/a.png_0.jpg"]


def test_the_table_has_a_row_for_each_detection(tmp_path: Path) -> None:
    table = Table(tmp_path)
    frame = Frame(Medium("my, film.mp4", "film.mp4", "video"), np.zeros((20, 30, 3), np.uint8), 7, 0.28)
    boxes = [(1.0, 2.0, 3.5, 4.0), (5.0, 6.0, 7.0, 8.0)]
    table.write(frame, detections(boxes, ("cat", 'a "dog"'), [3, -1]))
    table.close()
    lines = (tmp_path / "detections.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "file,frame,seconds,class,score,x1,y1,x2,y2,track"
    assert lines[1].startswith('"my, film.mp4",7,0.28,cat,0.8999')
    assert lines[1].endswith(",1.0,2.0,3.5,4.0,3")
    assert lines[2] == '"my, film.mp4",7,0.28,"a ""dog""",0.5,5.0,6.0,7.0,8.0,'
