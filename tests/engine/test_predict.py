"""Pictures and videos in, detections in their own pixels out."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.detector import Detector
from detkit.engine.predict import Video, as_dicts, draw, find_media, predict, predict_files, read_image
from detkit.nn.input import ImageInput, InputConfig, ShortSideConfig
from detkit.nn.selection import DetectionRows
from detkit.structures import Categories, Detections, Objects, Target


class BrightSpot(Detector[Tensor]):
    """Finds the bounds of the bright pixels of its input: as simple as a detector can be."""

    def __init__(self, size: int, max_size: int) -> None:
        rule = ShortSideConfig(size=size, max_size=max_size)
        image_input = ImageInput(InputConfig(resize=rule, mean=(0, 0, 0), std=(1, 1, 1)), 32)
        super().__init__(image_input, Categories.of_names(["spot"]))

    def network(self, images: Tensor, sizes: Tensor) -> Tensor:
        return images.amin(dim=1) > 127

    def criterion(self, outputs: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def detect(self, outputs: Tensor, sizes: Tensor) -> DetectionRows:
        boxes = []
        for bright in outputs:
            y, x = torch.nonzero(bright).unbind(dim=1)
            boxes.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float())
        ones = torch.ones(len(boxes), 1)
        return DetectionRows(torch.stack(boxes)[:, None], ones, ones.long() - 1, ones[:, 0].long())


def spot_picture(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


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


def test_names_of_drawings(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/er/b.PNG", "deep/clip.avi", "notes.txt", "single.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_media([tmp_path]) == {
        "a.jpg": tmp_path / "a.jpg",
        "deep/clip.mp4": tmp_path / "deep/clip.avi",
        "deep/er/b.PNG": tmp_path / "deep/er/b.PNG",
        "single.bmp": tmp_path / "single.bmp",
    }
    assert find_media([tmp_path / "deep/er/b.PNG", tmp_path / "a.jpg"]).keys() == {"b.PNG", "a.jpg"}


def test_two_files_under_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one/a.jpg", "two/a.jpg", "clips/c.avi", "clips/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"two/a.jpg and .*one/a.jpg would both be drawn as a.jpg"):
        find_media([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(UserError, match=r"c.mp4 and .*c.avi would both be drawn as c.mp4"):
        find_media([tmp_path / "clips"])
    assert len(find_media([tmp_path / "one", tmp_path / "one"])) == 1


def test_no_picture_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no picture or video here; known: .jpg, "):
        find_media([tmp_path])
    with pytest.raises(UserError, match=r"notes.txt: no picture or video here"):
        find_media([tmp_path / "notes.txt"])
    with pytest.raises(UserError, match=r"missing: no such file or folder"):
        find_media([tmp_path / "missing"])


def test_folders_are_no_pictures_and_drawings_are_of_a_kind_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg/a.GIF", "b.avif", "c.jfif", "d.mkv"):
        (tmp_path / name).touch()
    assert find_media([tmp_path]) == {
        "b.png": tmp_path / "b.avif",
        "c.jfif": tmp_path / "c.jfif",
        "d.mp4": tmp_path / "d.mkv",
        "folder.jpg/a.png": tmp_path / "folder.jpg/a.GIF",
    }


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """OpenCV ended the process over one of these."""
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    try:
        Image.new("RGB", (30, 20), (9, 9, 9)).save(path)
    except OSError:
        pytest.skip("this file system refuses such a name")
    assert read_image(path).shape == (20, 30, 3)
    with pytest.raises(UserError, match=r"the name of a video must be UTF-8 text; rename it"):
        Video(path.with_suffix(".mp4"))


def test_a_picture_is_read_upright_and_in_rgb(tmp_path: Path) -> None:
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20] = (255, 0, 0)  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show it
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), upright)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("hello")
    with pytest.raises(UserError, match=f"{path} cannot be decoded: it is no picture"):
        read_image(path)
    with pytest.raises(UserError, match=r"missing\.jpg does not exist"):
        read_image(tmp_path / "missing.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_broken_pictures_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{path} cannot be decoded"):
        read_image(path)
    for _ in range(300):
        garbled = bytearray(content)
        for place in rng.integers(0, len(content), 4).tolist():
            garbled[place] = int(rng.integers(256))
        path.write_bytes(garbled)
        with contextlib.suppress(UserError):
            assert read_image(path).ndim == 3


def make_detections(boxes: Tensor, scores: list[float], labels: list[int]) -> Detections:
    objects = Objects(boxes, torch.tensor(labels), scores=torch.tensor(scores))
    return Detections(objects, Categories.of_names(["cat", "dog"]))


def test_drawing_shows_what_is_sure_and_leaves_the_picture_alone() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    boxes = torch.tensor([(10.0, 40.0, 60.0, 90.0), (120.0, 40.0, 180.0, 90.0)])
    found = make_detections(boxes, [0.9, 0.3], [0, 1])
    drawn = draw(image, found, 0.5)
    assert drawn[40:91, 10:61].any()
    assert not drawn[:, 115:].any()
    assert draw(image, found, 0.2)[:, 115:].any()
    assert not image.any()


def test_detections_as_plain_values() -> None:
    found = make_detections(torch.tensor([(1.0, 2.0, 3.0, 4.5)]), [0.5], [1])
    assert as_dicts(found) == [{"class": "dog", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.5]}]


def test_files_are_drawn_under_their_names(trained_run: Path, tmp_path: Path) -> None:
    for name, size in (("in/a.jpg", (80, 60)), ("in/sub/b.png", (60, 90))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 30)).save(tmp_path / name)
    results = predict_files(trained_run, [tmp_path / "in"], tmp_path / "out", score_threshold=0.0, device="cpu")
    assert [result["file"] for result in results] == [str(tmp_path / "in/a.jpg"), str(tmp_path / "in/sub/b.png")]
    for result, (width, height) in zip(results, [(80, 60), (60, 90)], strict=True):
        assert Path(result["drawing"]).relative_to(tmp_path / "out") == Path(result["file"]).relative_to(
            tmp_path / "in"
        )
        assert read_image(Path(result["drawing"])).shape == (height, width, 3)
        for detection in result["detections"]:
            x1, y1, x2, y2 = detection["box"]
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert detection["class"] in ("cat", "dog")
    assert sum(len(result["detections"]) for result in results) > 0


def test_a_picture_is_never_drawn_over(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    for output in (tmp_path, Path()):
        with pytest.raises(UserError, match=r"a.png: its drawing would overwrite it; choose another --output"):
            predict_files(trained_run, [tmp_path / "a.png"], output, score_threshold=0.5, device="cpu")
    assert (tmp_path / "a.png").read_bytes() == before


def write_video(path: Path, frames: int = 5, size: tuple[int, int] = (96, 64)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size)
    if not writer.isOpened():
        pytest.skip("this cv2 has no mp4v encoder")
    for index in range(frames):
        frame = np.zeros((size[1], size[0], 3), np.uint8)
        frame[..., 2] = 40 * index + 40  # BGR: more and more red
        writer.write(frame)
    writer.release()


def test_frames_come_in_order_and_in_rgb(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    video = Video(tmp_path / "a.mp4")
    assert (video.num_frames, video.fps) == (5, 10)
    red = [frame[..., 0].mean() for frame in video]
    assert red == pytest.approx([40, 80, 120, 160, 200], abs=12)


def test_a_video_becomes_a_drawn_video_and_an_entry_for_each_frame(trained_run: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    results = predict_files(trained_run, [tmp_path / "clip.mp4"], tmp_path / "out", score_threshold=0.9, device="cpu")
    assert [result["frame"] for result in results] == [0, 1, 2, 3, 4]
    assert {result["drawing"] for result in results} == {str(tmp_path / "out/clip.mp4")}
    drawn = list(Video(tmp_path / "out/clip.mp4"))
    assert [frame.shape for frame in drawn] == [(64, 96, 3)] * 5
    assert [frame[..., 0].mean() for frame in drawn] == pytest.approx([40, 80, 120, 160, 200], abs=40)


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(UserError, match=r"a.mp4: cannot open this video"):
        Video(tmp_path / "a.mp4")
