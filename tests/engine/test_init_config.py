"""`detkit init`: the format of a folder is recognised, and the configuration it writes trains."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit import cli
from detkit.config import UserError, load_config
from detkit.data.coco import COCOConfig
from detkit.data.voc import VOCConfig
from detkit.data.yolo import YOLODataConfig
from detkit.engine.init_config import init_config
from detkit.engine.recognise import recognise
from detkit.engine.settings import RunConfig
from detkit.engine.train import train_config

SIDES = [(30, 20), (12, 18), (24, 40), (50, 44), (15, 15), (36, 22), (20, 33), (44, 28), (26, 26), (18, 12)]
Writer = Callable[[Path], Path]


def picture(path: Path, number: int) -> tuple[int, int, int, int]:
    """Writes a picture of 96 x 72 with a bright box, and returns the box, xyxy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIDES[number % len(SIDES)]
    image = np.full((72, 96, 3), 40, np.uint8)
    image[5 : 5 + height, 8 : 8 + width] = 220
    Image.fromarray(image).save(path)
    return 8, 5, 8 + width, 5 + height


def xml(box: tuple[int, int, int, int], name: str = "cell") -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<annotation><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"


def devkit(root: Path) -> Path:
    folder = root / "VOC2007"
    for number in range(10):
        box = picture(folder / f"JPEGImages/{number}.jpg", number)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / f"Annotations/{number}.xml").write_text(xml(box))
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/trainval.txt").write_text("\n".join(map(str, range(7))))
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(map(str, range(7, 10))))
    return root


def roboflow_voc(root: Path) -> Path:
    for number in range(10):
        split = "train" if number < 7 else "valid"
        box = picture(root / split / f"{number}.jpg", number)
        (root / split / f"{number}.xml").write_text(xml(box))
    return root


def coco(root: Path) -> Path:
    for split, numbers in (("train", range(7)), ("val", range(7, 10))):
        content: dict[str, list[dict[str, object]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "cell"}],
        }
        for number in numbers:
            x1, y1, x2, y2 = picture(root / "images" / split / f"{number}.jpg", number)
            content["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 72})
            content["annotations"].append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            )
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        (root / f"annotations/captions_{split}.json").write_text("{}")
    return root


def yolo(root: Path) -> Path:
    for number in range(10):
        split = "train" if number < 7 else "val"
        x1, y1, x2, y2 = picture(root / f"images/{split}/{number}.jpg", number)
        (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
        shares = ((x1 + x2) / 192, (y1 + y2) / 144, (x2 - x1) / 96, (y2 - y1) / 72)
        (root / f"labels/{split}/{number}.txt").write_text(f"0 {' '.join(map(str, shares))}\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cell]\n")
    return root


WRITERS: list[Writer] = [devkit, roboflow_voc, coco, yolo]


@pytest.mark.parametrize("write", WRITERS)
def test_formats_are_recognised(write: Writer, tmp_path: Path) -> None:
    root = str(write(tmp_path))
    expected = {
        devkit: VOCConfig(root=root, train=("2007_trainval",), val=("2007_test",), classes="auto"),
        roboflow_voc: VOCConfig(root=root, train=("train",), val=("valid",), classes="auto"),
        coco: COCOConfig(
            root=root,
            train_images="images/train",
            train_annotations="annotations/instances_train.json",
            val_images="images/val",
            val_annotations="annotations/instances_val.json",
        ),
        yolo: YOLODataConfig(root=f"{root}/data.yaml"),
    }
    assert recognise(tmp_path).data == expected[write]


def test_the_year_folder_itself_is_recognised(tmp_path: Path) -> None:
    assert recognise(devkit(tmp_path) / "VOC2007") == recognise(tmp_path)


def test_a_detector_of_masks_is_measured_by_its_masks(tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    data = coco_with(tmp_path / "data", segmentation=[[8, 5, 30, 5, 20, 20]])
    assert cli.main(["init", str(output), "--from", "mask_rcnn", "--data", str(data)]) == 0
    assert load_config(output, RunConfig).eval.protocol == "coco_segm"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("base", ["ssd", "yolov3"])
def test_what_is_written_loads_and_has_the_anchors_of_the_data(
    write: Writer, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my.yaml"
    data = write(tmp_path / "data")
    assert cli.main(["init", str(output), "--from", base, "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    config = load_config(output, RunConfig)
    assert config.eval.protocol == "coco"
    assert config.train.epochs == 100  # 7 pictures; the most that is written
    assert "10" not in printed.splitlines()[-1].replace(str(tmp_path), "")
    text = output.read_text()
    assert text.startswith(f"# Made from {base} by detkit init.")
    for sentence in printed.splitlines()[:-1]:
        assert sentence.split(":")[0][:60] in " ".join(line.removeprefix("#").strip() for line in text.splitlines())
    if base == "ssd":  # at 224 x 224: 224 / 96 and 224 / 72 times as large
        more = 1 if write in (devkit, roboflow_voc) else 0  # VOC's corners are inside the box
        roots = [((w + more) * 224 / 96 * (h + more) * 224 / 72) ** 0.5 for w, h in SIDES[:7]]
        priors = config.model.head.priors  # type: ignore[union-attr]
        assert priors.min_sizes[0] == round(float(np.quantile(roots, 0.05)))
        assert priors.max_sizes[-1] == round(float(np.quantile(roots, 0.95)))
    else:
        assert "anchors stay as they are: anchors: 9 need as many different box shapes, found 7" in printed


def test_boxes_that_are_wrong_are_dropped_and_reported(tmp_path: Path) -> None:
    data = devkit(tmp_path / "data")
    (data / "VOC2007/Annotations/3.xml").write_text(xml((8, 8, 8, 8)))
    assumed = init_config(tmp_path / "my.yaml", "ssd", data)
    (sentence,) = (line for line in assumed if "on_bad_label" in line)
    assert sentence.startswith("on_bad_label: drop_box, because")
    assert "3.xml: object 1 (cell" in sentence
    assert load_config(tmp_path / "my.yaml", RunConfig).data.on_bad_label == "drop_box"  # type: ignore[union-attr]


def test_an_image_that_cannot_be_read_does_not_keep_the_configuration_from_being_written(tmp_path: Path) -> None:
    """So that the doctor, which takes a configuration, can say what is wrong."""
    data = devkit(tmp_path / "data")
    (data / "VOC2007/JPEGImages/3.jpg").write_bytes(b"no picture")
    (data / "VOC2007/JPEGImages/4.jpg").unlink()
    assumed = init_config(tmp_path / "my.yaml", "ssd", data)
    assert load_config(tmp_path / "my.yaml", RunConfig).data.on_bad_label == "drop_image"  # type: ignore[union-attr]
    assert any(line.startswith("on_bad_label: drop_image, because some images cannot be used") for line in assumed)


def test_a_coco_file_whose_pictures_lie_elsewhere_is_called_so(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    shutil.move(data / "images", tmp_path / "elsewhere")
    for path in (data, data / "annotations/instances_train.json"):
        message = (
            r"instances_\w+.json: is in COCO's format, but its first picture, \d.jpg, is in none of .*data.train_images"
        )
        with pytest.raises(UserError, match=message):
            init_config(tmp_path / "my.yaml", "ssd", path)


def test_weights_keep_their_anchors(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"")  # `init` looks whether they are there; the training reads them
    init_config(tmp_path / "my.yaml", "ssd", devkit(tmp_path / "data"), init=str(weights))
    config, base = load_config(tmp_path / "my.yaml", RunConfig), load_config("configs/ssd.yaml", RunConfig)
    assert config.train.init == str(weights)
    assert config.model == base.model


def test_a_folder_without_validation_is_reported(tmp_path: Path) -> None:
    data = roboflow_voc(tmp_path / "data")
    shutil.rmtree(data / "valid")
    assumed = init_config(tmp_path / "my.yaml", "ssd", data)
    assert any(line.startswith("no validation split") for line in assumed)


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda data, output: output.write_text(""), r"my.yaml: exists already"),
        (lambda data, output: shutil.rmtree(data), r"no such folder or file"),
        (lambda data, output: (shutil.rmtree(data), data.mkdir()), r"neither VOC .* nor YOLO"),
        (lambda data, output: [p.unlink() for p in data.rglob("*.jpg")], r"does not exist|no picture|no image"),
    ],
)
def test_what_cannot_be_is_one_line(arrange: Callable[[Path, Path], object], message: str, tmp_path: Path) -> None:
    data, output = devkit(tmp_path / "data"), tmp_path / "my.yaml"
    arrange(data, output)
    existed = output.exists()
    with pytest.raises(UserError, match=message):
        init_config(output, "ssd", data)
    assert output.exists() == existed


def test_the_configuration_trains(tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    init_config(output, "ssd", devkit(tmp_path / "data"))
    settings = ["train.epochs=1", "loader.workers=0", "model.input.resize.size=96"]
    evaluation = train_config(load_config(output, RunConfig, settings), tmp_path / "run")
    assert evaluation is not None
    assert list(evaluation.results["coco"].per_class) == ["cell"]


def test_weights_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope: no such checkpoint"):
        init_config(tmp_path / "my.yaml", "ssd", devkit(tmp_path / "data"), init="nope")
    assert not (tmp_path / "my.yaml").exists()


def test_the_folder_around_a_devkit_is_recognised(tmp_path: Path) -> None:
    devkit(tmp_path / "VOCdevkit")
    assert recognise(tmp_path) == recognise(tmp_path / "VOCdevkit")


@pytest.mark.parametrize("name", ["\x85z", "a: b #c", "\u2028"])
def test_the_name_of_the_folder_reads_back(name: str, tmp_path: Path) -> None:
    data = devkit(tmp_path / name)
    init_config(tmp_path / "my.yaml", "ssd", data)
    assert load_config(tmp_path / "my.yaml", RunConfig).data.root == str(data)


def coco_with(root: Path, **changes: object) -> Path:
    """One annotation in each of two pictures, with these further fields."""
    images, annotations = [], []
    for number in range(2):
        x1, y1, x2, y2 = picture(root / "images" / f"{number}.jpg", number)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 72})
        row = {"id": number, "image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotations.append({**row, **changes})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (root / "train.json").write_text(json.dumps(content))
    return root


def test_a_detector_of_masks_for_data_without_any_is_refused(tmp_path: Path) -> None:
    """Rather than a configuration that no training takes."""
    with pytest.raises(UserError, match="mask_rcnn learns masks, but no object of coco train"):
        init_config(tmp_path / "my.yaml", "mask_rcnn", coco_with(tmp_path / "data"))
    assert not (tmp_path / "my.yaml").exists()


def test_masks_that_a_detector_of_boxes_does_not_read_are_no_problem(tmp_path: Path) -> None:
    data = coco_with(tmp_path / "data", segmentation={"size": [1, 1], "counts": [1]})
    assumed = init_config(tmp_path / "my.yaml", "faster_rcnn", data)
    assert not any("on_bad_label" in line for line in assumed)
    assert load_config(tmp_path / "my.yaml", RunConfig).data.on_bad_label == "raise"  # type: ignore[union-attr]
