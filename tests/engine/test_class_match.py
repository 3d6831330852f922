"""Classes by name: which are the same under another spelling or synonym, and which are not."""

from pathlib import Path

import pytest

from detkit.config import ConfigError, UserError
from detkit.data.voc import VOC_CLASSES
from detkit.engine.class_match import map_classes, match_classes, read_class_map

# darknet's data/coco.names
COCO_NAMES = (
    "person, bicycle, car, motorbike, aeroplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, sofa, pottedplant, bed, diningtable, toilet, tvmonitor, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush"
)
DARKNET = COCO_NAMES.split(", ")
TO_COCO = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
COCO = [TO_COCO.get(name, name) for name in DARKNET]


def test_darknets_coco_names_are_cocos_classes() -> None:
    assert len(set(DARKNET)) == len(set(COCO)) == 80
    assert match_classes(DARKNET, COCO) == list(range(80))
    assert match_classes(COCO, DARKNET[::-1]) == list(range(79, -1, -1))


def test_every_class_of_voc_is_one_of_coco() -> None:
    matches = [COCO[index] for index in match_classes(VOC_CLASSES, COCO)]
    assert matches == [TO_COCO.get(name, name) for name in VOC_CLASSES]


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["Traffic_Light", "STOP-sign"], ["stop sign", "traffic light"], [1, 0]),
        (["cat", "Cat"], ["Cat", "cat"], [1, 0]),  # the same name wins
        (["motorbike"], ["Motorcycle", "motorcycle"], [-1]),  # either may be meant
        (["motorbike", "motorcycle"], ["motorcycle"], [-1, 0]),  # they are two classes here
        (["motorbike", "motorcycle"], ["Motorcycle"], [-1, -1]),
        (["cat", "cat"], ["cat"], [-1, -1]),
        (["cat"], ["cat", "cat"], [-1]),
        (["N/A", "cat"], ["cat", "N/A"], [-1, 0]),  # an id that was never used is no class
        (["bus"], ["buses"], [-1]),
        (["Straße"], ["STRASSE"], [0]),
        (["cat"], [], [-1]),
    ],
)
def test_what_matches(names: list[str], others: list[str], expected: list[int]) -> None:
    assert match_classes(names, others) == expected


def test_a_map_comes_before_names() -> None:
    """Two classes of the detector may be one of the data; a class that the map gives away is matched no more."""
    detector, data = ["car", "van", "sofa", "dog"], ["couch", "vehicle", "car"]
    assert map_classes(detector, data, {}) == [2, -1, 0, -1]
    assert map_classes(detector, data, {"car": "vehicle", "van": "vehicle"}) == [1, 1, 0, -1]
    assert map_classes(detector, data, {"dog": "car"}) == [-1, -1, 0, 2]


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"vann": "car"}, r"the detector has no class 'vann'; did you mean 'van'\?"),
        ({"van": "carr"}, r"the data has no class 'carr'; did you mean 'car'\?"),
        ({"van": "zebra"}, "the data has no class 'zebra'; known: car, dog"),
    ],
)
def test_a_map_of_unknown_names_is_an_error(class_map: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        map_classes(["van", "dog"], ["car", "dog"], class_map)


def test_a_map_is_a_file_of_names(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text("motor bike: motorcycle\nlorry: truck\n")
    assert read_class_map(file) == {"motor bike": "motorcycle", "lorry": "truck"}
    file.write_text("lorry: [truck, van]\n")
    with pytest.raises(ConfigError, match=r"map.yaml: 1 error\n  class_map.lorry: should be a valid string"):
        read_class_map(file)
