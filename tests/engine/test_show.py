"""`detkit show`: the picture in its file beside what the network gets, with the objects where they are."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit import cli
from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.data.pictures import read_picture
from detkit.engine.drawing import colour_of, draw_box
from detkit.engine.show import GAP, MIN_HEIGHT, TITLE, show
from tests.cli_support import FAST, write_config
from tests.engine.masked_pictures import POINTS, write_masked_pictures
from tests.engine.settings import make_config, write_pictures

NAMES = ("cat", "dog")
RED, BLUE, WIDTH = (255, 0, 0), (0, 0, 255), 720  # the colours of cats and dogs; 96 x 64 enlarged to 480 px


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six pictures of 96 x 64, each with a red rectangle, a cat, on the left and a blue one, a dog, on the right."""
    return write_pictures(tmp_path_factory.mktemp("rectangles"), 6)


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("weights are not needed"))


def drawings(folder: Path) -> list[np.ndarray]:
    paths = sorted(path for path in folder.iterdir() if path.name != "sheet.jpg")
    return [read_picture(path) for path in paths]


def panels(drawing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the network's input, without their titles."""
    return drawing[TITLE:, :WIDTH], drawing[TITLE:, WIDTH + GAP :]


def middles(panel: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """float64 `[2]`: (x, y) of the mean of the pixels of a colour, in parts of the panel."""
    near = np.abs(panel.astype(int) - colour).max(axis=2) < 60
    return np.asarray(np.argwhere(near).mean(axis=0)[::-1] / panel.shape[1::-1])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_network_sees_the_picture_mirrored(data: dict[str, Any], tmp_path: Path, order: str) -> None:
    config = make_config(
        data, "augment=[{name: horizontal_flip, probability: 1}]", f"model.input.channel_order={order}"
    )
    summary, *lines = show(config, "train", tmp_path / "out", count=3)
    assert "6 images, 12 objects" in summary
    assert lines[0].endswith(".jpg: 96 x 64, 2 objects -> 96 x 64, 2 objects")
    assert lines[-1] == f"{tmp_path}/out/sheet.jpg: all of them"
    assert len(drawings(tmp_path / "out")) == 3
    for drawing in drawings(tmp_path / "out"):
        left, right = panels(drawing)
        assert left.shape == right.shape == (MIN_HEIGHT, WIDTH, 3)
        for colour in (RED, BLUE):
            (x, y), (mirrored, same) = middles(left, colour), middles(right, colour)
            assert (mirrored, same) == pytest.approx((1 - x, y), abs=0.03)


def test_each_object_is_named_on_either_side(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[int], str]] = []
    monkeypatch.setattr(
        "detkit.engine.show.draw_box",
        lambda canvas, box, text, colour, dashed: drawn.append(([round(side) for side in box], text)),
    )
    config = make_config(data, "augment=[]")
    list(show(config, "val", tmp_path / "out", count=1))
    objects = build_dataset(config.data, "val").ground_truth(0).objects
    expected = [
        (np.round(box * 7.5).astype(int).tolist(), name) for box, name in zip(objects.boxes, NAMES, strict=True)
    ]
    assert drawn == expected + expected


def test_validation_comes_in_its_order_and_as_it_is(data: dict[str, Any], tmp_path: Path) -> None:
    list(show(make_config(data), "val", tmp_path / "out", count=4))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["01_000.jpg", "02_001.jpg", "03_002.jpg", "04_003.jpg", "sheet.jpg"]
    for drawing in drawings(tmp_path / "out"):
        left, right = panels(drawing)
        assert np.abs(left.astype(int) - right).mean() < 3


def test_the_padding_is_drawn_as_the_network_gets_it(data: dict[str, Any], tmp_path: Path) -> None:
    """A letterbox of 64 x 64 for 96 x 64 has grey of 127.5 above and below, 11 and 10 px of 64."""
    config = make_config(data, "model.input.resize={name: letterbox, size: 64}")
    list(show(config, "val", tmp_path / "out", count=1))
    right = drawings(tmp_path / "out")[0][TITLE:, WIDTH + GAP :]
    assert right.shape == (MIN_HEIGHT, MIN_HEIGHT, 3)
    assert np.abs(right[:70].astype(int) - 127).max() < 12
    assert np.abs(right[-70:].astype(int) - 127).max() < 12
    assert np.abs(right[100:380].astype(int) - 127).max() > 100


def test_another_epoch_has_other_pictures_and_its_own_augmentation(data: dict[str, Any], tmp_path: Path) -> None:
    """The flip is off from the second epoch on."""
    config = make_config(data, "augment=[{name: horizontal_flip, probability: 1, until_epoch: 1}]")
    names = []
    for epoch in (0, 1):
        list(show(config, "train", tmp_path / str(epoch), epoch=epoch))
        names.append(sorted(path.name for path in (tmp_path / str(epoch)).iterdir()))
        for drawing in drawings(tmp_path / str(epoch)):
            left, right = panels(drawing)
            assert middles(left, RED)[0] < 0.5
            assert (middles(right, RED)[0] > 0.5) == (epoch == 0)
    assert names[0] != names[1]


def test_only_the_proposals_that_are_shown_are_searched(data: dict[str, Any], tmp_path: Path) -> None:
    """Those of the first batch, of three."""
    path = write_config(tmp_path / "fast.yaml", data, model=FAST)
    proposals = tmp_path / "proposals"
    arguments = ["show", str(path), "--count", "2", "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--set", f"loader.proposals={proposals}"]) == 0
    assert len(list(proposals.rglob("*.npy"))) == 3
    assert len(drawings(tmp_path / "out")) == 2


def test_ignored_objects_are_dashed_and_counted(data: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "devkit"
    shutil.copytree(data["root"], root)
    for xml in (root / "VOC2007" / "Annotations").iterdir():
        xml.write_text(xml.read_text().replace("<name>dog</name>", "<name>dog</name><difficult>1</difficult>"))
    config = make_config({**data, "root": str(root)}, "augment=[]")
    line = list(show(config, "val", tmp_path / "out", count=1))[1]
    assert line.endswith(": 96 x 64, 1 object, 1 ignored -> 96 x 64, 1 object, 1 ignored")
    inked = []
    for dashed in (False, True):
        canvas = np.zeros((200, 200, 3), np.uint8)
        draw_box(canvas, (20, 20, 180, 180), "", RED, dashed=dashed)
        inked.append(int((canvas[100:] > 0).any(axis=2).sum()))
    assert 0.3 < inked[1] / inked[0] < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count: expected at least 1, found 0"),
        (["--epoch", "2"], "--epoch: expected 1 to 1, the train.epochs, found 2"),
        (["--set", "augment=[{name: flap}]"], "'flap' is not known"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = write_config(tmp_path / "tiny.yaml", data)
    assert cli.main(["show", str(path), "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def colour_at(panel: np.ndarray, x: float, y: float) -> np.ndarray:
    """int `[3]`: the colour at a place of a picture of 96 x 64."""
    scale = panel.shape[1] / 96
    return np.asarray(panel[int(y * scale), int(x * scale)], int)


def test_masks_are_drawn_in_the_colour_of_their_class(tmp_path: Path) -> None:
    """The mask is one half of the box; the other half stays grey. Mirrored on the side of the network."""
    config = make_config(
        write_masked_pictures(tmp_path / "data", 2),
        "model.name=mask_rcnn",
        "augment=[{name: horizontal_flip, probability: 1}]",
    )
    list(show(config, "train", tmp_path / "out", count=1))
    left, right = panels(drawings(tmp_path / "out")[0])
    for panel, places in ((left, (20, 80)), (right, (96 - 20, 96 - 80))):
        inside, outside = (colour_at(panel, x, y) for x, y in zip(places, (30, 50), strict=True))
        assert np.abs(outside - 120).max() < 8
        tint = np.array(colour_of(0)) - 120
        assert np.abs(inside - 120 - tint * 0.45).max() < 12, "translucent"


def test_keypoints_are_drawn_with_their_skeleton(tmp_path: Path) -> None:
    config = make_config(
        write_masked_pictures(tmp_path / "data", 2),
        "model.name=keypoint_rcnn",
        "augment=[{name: horizontal_flip, probability: 1}]",
    )
    list(show(config, "train", tmp_path / "out", count=1))
    left, right = panels(drawings(tmp_path / "out")[0])
    (x1, y1), (x2, y2) = POINTS
    for x, y in ((x1, y1), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2)):
        assert np.abs(colour_at(left, x + 0.5, y + 0.5) - colour_of(0)).max() < 60
        assert np.abs(colour_at(right, 96 - x - 0.5, y + 0.5) - colour_of(0)).max() < 60
    assert np.abs(colour_at(left, 20, 45) - 120).max() < 8, "no mask, which this detector does not learn"


def test_data_without_what_the_detector_learns_are_refused(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mask_rcnn learns masks, but no object of"):
        list(show(make_config(data, "model.name=mask_rcnn"), "train", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
