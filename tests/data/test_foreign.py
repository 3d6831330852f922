"""The formats of other tools, drawn by hand from their documentation (see foreign_sets.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError, RawImage
from detkit.data.foreign import FORMATS, foreign_format, read_foreign
from detkit.data.foreign.collect import ellipse, split_of, turned
from detkit.structures import EncodedMasks
from tests.data import foreign_sets as sets
from tests.data.foreign_sets import labelme_shape, region
from tests.data.writers import coco_content, voc_object, write_coco, write_picture, write_voc, write_yolo

Found = list[tuple[str, list[float]]]


def objects(path: Path, name: str, split: str = "train") -> tuple[Found, dict[str, int]]:
    """Class and box of every object, rounded to 1e-3 px, and the counts of what was lost."""
    data, names = read_foreign(path, name)
    items = [item for image in data.images[split] for item in image.objects]
    assert not any(item.problem for item in items)
    return [(names[item.label], [round(v, 3) for v in item.box]) for item in items], dict(+data.lost)


def only_image(path: Path, name: str) -> RawImage:
    data, _ = read_foreign(path, name)
    ((image,),) = data.images.values()
    return image


@pytest.mark.parametrize("name", FORMATS)
def test_a_box_on_a_picture_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    root = sets.SETS[name](tmp_path / "set")
    assert foreign_format(root) == name
    assert objects(root, name) == ([("cat", [10, 5, 30, 15])], {})
    assert Path(only_image(root, name).path).is_file()


@pytest.mark.parametrize(
    "write",
    [
        lambda root: write_voc(root, {"a": [voc_object("cat", (1, 1, 9, 9))]}),
        lambda root: write_coco(root, coco_content()),
        lambda root: write_yolo(root, {"a": "0 0.5 0.5 0.1 0.1"}),
    ],
)
def test_the_formats_of_a_configuration_are_none_of_them(write: Callable[[Path], Path], tmp_path: Path) -> None:
    write(tmp_path / "set")
    assert foreign_format(tmp_path / "set") is None


# What is neither a box nor a polygon: the box around it is read and counted. Extents by hand, pictures 60 x 40.
@pytest.mark.parametrize(
    ("shape", "box", "lost"),
    [
        (labelme_shape("cat", [[20, 20], [23, 24]], "circle"), [15, 15, 25, 25], "circle"),  # radius 5, by 3-4-5
        (labelme_shape("cat", [[3, 4], [7, 9]], "mask"), [3, 4, 8, 10], "mask"),  # the last pixel belongs to it
    ],
)
def test_labelme_shapes(shape: dict[str, Any], box: list[float], lost: str, tmp_path: Path) -> None:
    assert objects(sets.labelme(tmp_path, [shape]), "labelme") == (
        [("cat", box)],
        {f"object drawn as {lost}, of which the box is kept": 1},
    )


def test_labelme_shapes_of_one_group_are_one_object(tmp_path: Path) -> None:
    first = labelme_shape("cat", [[1, 2], [9, 8]], group_id=1)
    second = labelme_shape("cat", [[20, 1], [30, 5]], group_id=1)
    other = labelme_shape("dog", [[40, 1], [50, 5]], group_id=1)
    found, _ = objects(sets.labelme(tmp_path, [first, second, other]), "labelme")
    assert found == [("cat", [1, 1, 30, 8]), ("dog", [40, 1, 50, 5])]


def test_labelme_points_and_flags_are_counted_as_lost(tmp_path: Path) -> None:
    shapes = [labelme_shape("eye", [[1, 2]], "point"), labelme_shape("cat", [[1, 2], [9, 8]], flags={"blurred": True})]
    _, lost = objects(sets.labelme(tmp_path, shapes), "labelme")
    assert lost == {"object drawn as point, which has no box": 1, "shape with flags": 1}


@pytest.mark.parametrize("picture", ["..\\other\\a.jpg", "other.jpg", "", "b.jpg"])
def test_labelme_pairs_a_file_with_the_picture_that_is_called_like_it(picture: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "b.jpg")  # a copied file still names it
    assert only_image(sets.labelme(tmp_path, picture=picture), "labelme").path == str(tmp_path / "a.jpg")


def test_labelme_xml_in_its_own_folders_with_deleted_and_occluded_objects(tmp_path: Path) -> None:
    corners = [(1.0, 2.0), (9.0, 2.0), (5.0, 8.0)]
    gone = sets.labelme_xml_object("dog", corners).replace("<deleted>0", "<deleted>1")
    extent = "<xmin>3</xmin><ymin>4</ymin><xmax>7</xmax><ymax>9</ymax>"
    mask = f"<object><name>cat</name><segm><box>{extent}</box></segm></object>"
    root = sets.labelme_xml(
        tmp_path / "Annotations/street",
        gone + mask + sets.labelme_xml_object("cat", corners, "<occluded>yes</occluded>"),
    )
    (tmp_path / "Images/street").mkdir(parents=True)
    (root / "a.jpg").rename(tmp_path / "Images/street/a.jpg")
    found, lost = objects(tmp_path, "labelme_xml")
    assert found == [("cat", [3, 4, 7, 9]), ("cat", [1, 2, 9, 8])]
    assert lost == {
        "object drawn as mask, of which the box is kept": 1,
        "object marked as occluded": 1,
    }
    assert only_image(tmp_path, "labelme_xml").path == str(tmp_path / "Images/street/a.jpg")


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<polygon label="cat" points="1,2;9,2;5,8"/>', [1, 2, 9, 8]),
        ('<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"/>', [15, 5, 25, 25]),  # around (20, 15)
        ('<ellipse label="cat" cx="30" cy="20" rx="10" ry="5"/>', [20, 15, 40, 25]),
        ('<ellipse label="cat" cx="30" cy="20" rx="10" ry="5" rotation="90"/>', [25, 10, 35, 30]),
        ('<mask label="cat" rle="0, 4" left="3" top="4" width="2" height="2"/>', [3, 4, 5, 6]),
        (
            '<cuboid label="cat" xtl1="5" ytl1="6" xbl1="5" ybl1="20" xtr1="15" ytr1="6" xbr1="15" ybr1="20" '
            'xtl2="8" ytl2="3" xbl2="8" ybl2="17" xtr2="18" ytr2="3" xbr2="18" ybr2="17"/>',
            [5, 3, 18, 20],
        ),
    ],
)
def test_cvat_shapes(shape: str, box: list[float], tmp_path: Path) -> None:
    found, lost = objects(sets.cvat(tmp_path, shape), "cvat")
    assert found == [("cat", box)]
    assert sum(lost.values()) == (0 if "polygon" in shape else 1)


def test_cvat_says_what_has_no_box(tmp_path: Path) -> None:
    box = '<box label="cat" occluded="1" xtl="1" ytl="1" xbr="3" ybr="3"><attribute name="fur">red</attribute></box>'
    _, lost = objects(sets.cvat(tmp_path, f'{box}<points label="eye" points="1,2"/><tag label="indoor"/>'), "cvat")
    assert lost == {
        "object drawn as points, which has no box": 1,
        "object drawn as tag, which has no box": 1,
        "object with attributes": 1,
        "object marked as occluded": 1,
    }


def test_cvat_keeps_the_order_of_its_labels_and_its_subsets(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "b.jpg")
    more = f'<image id="1" name="b.jpg" subset="Validation" width="60" height="40">{sets.CVAT_BOX}</image>'
    data, names = read_foreign(sets.cvat(tmp_path, images=more), "cvat")
    assert names == ("dog", "cat")
    assert {split: len(images) for split, images in data.images.items()} == {"train": 1, "val": 1}


def test_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\.xml: is of a video.*CVAT for images"):
        read_foreign(sets.cvat(tmp_path / "cvat", after='<track id="0" label="cat"/>'), "cvat")
    root = sets.supervisely(tmp_path / "supervisely")
    sets.write_json(root / "meta.json", {"classes": [], "projectType": "videos"})
    with pytest.raises(DataError, match="project of videos, which are not read"):
        read_foreign(root, "supervisely")


@pytest.mark.parametrize(
    ("one", "box"),
    [
        (region("polygonlabels", points=[[10, 10], [50, 10], [30, 50]]), [6, 4, 30, 20]),
        (region("ellipselabels", x=50, y=50, radiusX=10, radiusY=25), [24, 10, 36, 30]),
        # Around its upper left corner (30, 10), in px: what went right goes down, what went down goes left.
        (region(x=50, y=25, width=20, height=10, rotation=90), [26, 10, 30, 22]),
    ],
)
def test_label_studio_regions(one: dict[str, Any], box: list[float], tmp_path: Path) -> None:
    assert objects(sets.label_studio(tmp_path, one), "label_studio")[0] == [("cat", box)]


def test_label_studio_rectangle_and_labels_in_two_entries(tmp_path: Path) -> None:
    shape = region("rectangle", names=None, x=10, y=10, width=50, height=50)
    named = {**shape, "type": "labels", "value": {**shape["value"], "labels": ["cat"]}}
    assert objects(sets.label_studio(tmp_path, shape, named), "label_studio") == ([("cat", [6, 4, 36, 24])], {})


def test_label_studio_takes_the_checked_annotation_and_counts_the_others(tmp_path: Path) -> None:
    result = [region(x=10, y=10, width=50, height=50)]
    annotations = [
        {"result": [region()], "was_cancelled": True},
        {"result": [region()]},
        {"result": result, "ground_truth": True},
    ]
    root = sets.label_studio(tmp_path, annotations=annotations, predictions=[{"result": [region()]}])
    assert objects(root, "label_studio") == (
        [("cat", [6, 4, 36, 24])],
        {"annotation by another person of the same picture": 1, "prediction": 1},
    )


@pytest.mark.parametrize(
    "image",
    [
        "a.jpg",
        "https://example.com/x/a.jpg?token=1",
        "s3://bucket/a.jpg",
        "/data/local-files/?d=some/where/a.jpg",
        "/data/upload/3/0123abcd-a.jpg",
    ],
)
def test_label_studio_finds_the_picture_of_a_task(image: str, tmp_path: Path) -> None:
    assert only_image(sets.label_studio(tmp_path, image=image), "label_studio").path == str(tmp_path / "images/a.jpg")


def test_label_studio_picture_shown_turned_is_a_problem(tmp_path: Path) -> None:
    image = only_image(sets.label_studio(tmp_path, {**region(), "image_rotation": 90}), "label_studio")
    assert "showed turned" in str(image.objects[0].problem)


@pytest.mark.parametrize(
    ("item", "box"),
    [
        ({"geometryType": "polygon", "points": {"exterior": [[1, 2], [8, 2], [4, 7]]}}, [1, 2, 9, 8]),
        ({"geometryType": "bitmap", "bitmap": {"origin": [3, 4], "data": sets.bitmap(5, 6)}}, [3, 4, 8, 10]),
    ],
)
def test_supervisely_shapes(item: dict[str, Any], box: list[float], tmp_path: Path) -> None:
    found, lost = objects(sets.supervisely(tmp_path, {"classTitle": "cat", **item}), "supervisely")
    assert found == [("cat", box)]
    assert lost == {}


@pytest.mark.parametrize(("dataset", "tags"), [("val", ()), ("ds0", ("val",))])
def test_supervisely_splits(dataset: str, tags: tuple[str, ...], tmp_path: Path) -> None:
    assert objects(sets.supervisely(tmp_path, dataset=dataset, tags=tags), "supervisely", "val")[0][0][0] == "cat"


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 2, 8]}, [1, 2, 9, 8]),
        ({"name": "circle", "cx": 20, "cy": 20, "r": 5}, [15, 15, 25, 25]),
        ({"name": "ellipse", "cx": 20, "cy": 20, "rx": 8, "ry": 4, "theta": 0}, [12, 16, 28, 24]),
    ],
)
def test_via_shapes(shape: dict[str, Any], box: list[float], tmp_path: Path) -> None:
    root = sets.via(tmp_path, {"shape_attributes": shape, "region_attributes": {"class": {"cat": True, "dog": False}}})
    lost = {} if shape["name"] == "polygon" else {f"object drawn as {shape['name']}, of which the box is kept": 1}
    assert objects(root, "via") == ([("cat", box)], lost)


RING = [[1, 2], [9, 2], [5, 8]]


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("labelme", lambda root: sets.labelme(root, [labelme_shape("cat", RING, "polygon")]), RING),
        ("labelme_xml", lambda root: sets.labelme_xml(root, sets.labelme_xml_object("cat", RING)), RING),
        ("cvat", lambda root: sets.cvat(root, '<polygon label="cat" points="1,2;9,2;5,8"/>'), RING),
        (  # percent of 60 x 40
            "label_studio",
            lambda root: sets.label_studio(root, region("polygonlabels", points=[[10, 10], [50, 10], [30, 50]])),
            [[6, 4], [30, 4], [18, 20]],
        ),
        (
            "via",
            lambda root: sets.via(
                root,
                {
                    "shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 2, 8]},
                    "region_attributes": {"class": "cat"},
                },
            ),
            RING,
        ),
        (  # its pixels are inclusive, so that a point is the middle of one
            "supervisely",
            lambda root: sets.supervisely(
                root, {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": RING}}
            ),
            [[1.5, 2.5], [9.5, 2.5], [5.5, 8.5]],
        ),
    ],
)
def test_polygons_are_masks(name: str, write: Callable[[Path], Path], expected: Any, tmp_path: Path) -> None:
    (item,) = only_image(write(tmp_path), name).objects
    (polygon,) = item.columns["masks"]
    np.testing.assert_allclose(polygon, expected)


def test_a_bitmap_of_supervisely_is_a_mask(tmp_path: Path) -> None:
    item = {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"origin": [3, 4], "data": sets.bitmap(5, 6)}}
    image = only_image(sets.supervisely(tmp_path, item), "supervisely")
    expected = np.zeros((40, 60), np.bool_)
    expected[4:10, 3:8] = True
    masks = EncodedMasks.of([image.objects[0].columns["masks"]], [(40, 60)])
    np.testing.assert_array_equal(masks.bitmap(0), expected)


def test_an_object_of_a_polygon_and_a_rectangle_has_only_a_box(tmp_path: Path) -> None:
    shapes = [
        labelme_shape("cat", RING, "polygon", group_id=1),
        labelme_shape("cat", [[20, 1], [30, 5]], group_id=1),
        labelme_shape("dog", RING, "polygon", group_id=2),
        labelme_shape("dog", RING, "polygon", group_id=2),
    ]
    cat, dog = only_image(sets.labelme(tmp_path, shapes), "labelme").objects
    assert "masks" not in cat.columns
    assert len(dog.columns["masks"]) == 2


def test_via_without_a_project_and_with_the_regions_of_version_1(tmp_path: Path) -> None:
    root = sets.via(tmp_path, project=False)
    content = json.loads((root / "via.json").read_text())
    content["a.jpg700"]["regions"] = {"0": content["a.jpg700"]["regions"][0]}
    sets.write_json(root / "via.json", content)
    assert foreign_format(root) == "via"
    assert objects(root, "via")[0] == [("cat", [10, 5, 30, 15])]


@pytest.mark.parametrize(
    ("attributes", "name"),
    [({"animal": "cat"}, "cat"), ({"Label": "cat", "pose": "left"}, "cat"), ({"a": "x", "b": "y"}, None)],
)
def test_via_class_is_the_only_attribute_or_one_of_a_usual_name(
    attributes: dict[str, str], name: str | None, tmp_path: Path
) -> None:
    root = sets.via(tmp_path, {"shape_attributes": sets.VIA_RECT, "region_attributes": attributes})
    if name is None:
        with pytest.raises(DataError, match="which region attribute is the class"):
            read_foreign(root, "via")
    else:
        assert objects(root, "via")[0] == [(name, [10, 5, 30, 15])]


def test_open_images_group_is_ignored_and_pictures_elsewhere_are_counted(tmp_path: Path) -> None:
    group = "a,xclick,/m/0bt9lr,1,0,0.5,0,0.5,1,0,1,0,0"
    elsewhere = "b,xclick,/m/01yrx,1,0,0.5,0,0.5,0,0,0,0,0"
    root = sets.open_images(tmp_path, group, elsewhere, split="validation", folder="validation")
    found, lost = objects(root, "open_images", "val")
    assert found == [("dog", [0, 0, 30, 20])]
    assert lost == {"picture missing here": 1, "object with a flag such as IsOccluded": 1}
    assert only_image(root, "open_images").objects[0].columns == {"ignore": True}


def test_folders_are_splits_and_pictures_without_annotation_are_counted(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        sets.createml(tmp_path / folder)
    write_picture(tmp_path / "test" / "b.jpg")
    data, _ = read_foreign(tmp_path, "createml")
    assert {split: len(images) for split, images in data.images.items()} == {"train": 1, "val": 1, "test": 1}
    assert +data.lost == {"picture that no annotation names": 1}


def test_two_names_that_lead_to_one_picture_are_a_problem(tmp_path: Path) -> None:
    root = sets.createml(tmp_path)
    rows = json.loads((root / "_annotations.createml.json").read_text())
    rows[0]["image"], more = "cam1/a.jpg", {**rows[0], "image": "cam2/a.jpg"}
    sets.write_json(root / "_annotations.createml.json", [rows[0], more])
    data, _ = read_foreign(root, "createml")
    assert "both lead to" in str(data.images["train"][1].problem)


@pytest.mark.parametrize(
    "fault",
    [
        ("labelme", lambda r: sets.labelme(r, [labelme_shape("cat", [[1, 2], ["x", 9]])])),
        ("labelme", lambda r: sets.labelme(r, [labelme_shape("", [[1, 2], [8, 9]])])),
        ("createml", lambda r: sets.createml(r, x=1)),
        ("cvat", lambda r: sets.cvat(r, '<box label="cat" xtl="1"/>')),
        ("label_studio", lambda r: sets.label_studio(r, region(names=None))),
        ("via", lambda r: sets.via(r, {"shape_attributes": sets.VIA_RECT, "region_attributes": {}})),
        ("supervisely", lambda r: sets.supervisely(r, {"classTitle": "cat", "geometryType": "rectangle"})),
        ("open_images", lambda r: sets.open_images(r, "a,xclick,/m/01yrx,1,0,nan,0,1,0,0,0,0,0")),
    ],
    ids=lambda fault: fault[0],
)
def test_what_cannot_be_read_is_a_problem_of_its_object(fault: Any, tmp_path: Path) -> None:
    name, write = fault
    assert [bool(item.problem) for item in only_image(write(tmp_path), name).objects] == [True]


def test_a_file_that_is_not_as_its_tool_writes_it_is_named(tmp_path: Path) -> None:
    root = sets.via(tmp_path, {"shape_attributes": "rect", "region_attributes": {}})
    with pytest.raises(DataError, match=r"via\.json: is not as via writes it"):
        read_foreign(root, "via")


def test_corners_that_are_turned() -> None:
    assert turned((0, 0, 4, 2), 90) == pytest.approx((1, -1, 3, 3))
    assert turned((0, 0, 4, 2), 0) == (0, 0, 4, 2)
    assert turned((0, 0, 4, 2), "x") is None
    assert ellipse(10, 10, 4, 4, 33) == pytest.approx((6, 6, 14, 14))


@pytest.mark.parametrize(
    ("folder", "stem", "split"),
    [
        ("valid", "_annotations", "val"),
        (".", "instances_val2017", "val"),
        (".", "my_test", "test"),
        (".", "data", "train"),
        ("train", "val", "val"),
        ("test/of/contest", "contest", "test"),
        ("my_test_photos", "", "train"),  # a folder is called just so
        ("oid", "validation-annotations-bbox", "val"),
    ],
)
def test_the_split_is_a_word_of_the_file_or_a_folder(folder: str, stem: str, split: str) -> None:
    assert split_of(Path(folder), stem) == split


def test_labelme_files_are_called_like_their_pictures_which_are_of_no_split(tmp_path: Path) -> None:
    (sets.labelme(tmp_path) / "a.json").rename(tmp_path / "test_1.json")
    (tmp_path / "a.jpg").rename(tmp_path / "test_1.jpg")
    assert objects(tmp_path, "labelme", "train")[0] == [("cat", [10, 5, 30, 15])]
