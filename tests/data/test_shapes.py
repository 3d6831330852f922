"""The built-in data set: the same from the same seed, true VOC and true COCO, and never over somebody's files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError
from detkit.data.shapes import ShapesConfig, ensure_shapes, read_shapes
from detkit.data.shapes_drawing import CLASS_NAMES, HIDDEN_BELOW, KEYPOINT_NAMES, draw_picture
from detkit.structures import EncodedMasks, MaskCrops
from detkit.structures.masks import POLYGONS, RUN_LENGTHS


def config(root: Path, **changes: Any) -> ShapesConfig:
    return ShapesConfig(**{"root": str(root / "shapes"), "num_train": 6, "num_val": 3, **changes})


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_files_and_other_seed_other_pictures(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ensure_shapes(config(tmp_path / name, seed=seed))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a if name.endswith(".jpg"))


def test_a_picture_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    ensure_shapes(config(tmp_path / "few", num_train=2))
    ensure_shapes(config(tmp_path / "many"))
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert all(few[name] == many[name] for name in few if name.endswith(".jpg"))


def test_training_and_validation_pictures_differ(tmp_path: Path) -> None:
    ensure_shapes(config(tmp_path))
    pictures = [data for name, data in files(tmp_path).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 9


@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_and_coco_hold_the_same_ground_truth(tmp_path: Path, split: Any) -> None:
    voc = read_shapes(config(tmp_path, num_train=40), split)
    coco = read_shapes(config(tmp_path, num_train=40, format="coco"), split)
    assert voc.categories.names == coco.categories.names == CLASS_NAMES
    assert voc.categories.ids == coco.categories.ids
    assert len(voc) == len(coco) == (40 if split == "train" else 3)
    for index in range(len(voc)):
        one, two = voc.ground_truth(index), coco.ground_truth(index)
        assert one.size == two.size
        np.testing.assert_array_equal(one.objects.boxes, two.objects.boxes)
        np.testing.assert_array_equal(one.objects.labels, two.objects.labels)
        np.testing.assert_array_equal(one.objects.ignore, two.objects.ignore)
        assert (two.objects.area <= one.objects.area).all()  # COCO's is that of the visible mask
    if split == "train":
        assert any(voc.ground_truth(index).objects.ignore.any() for index in range(len(voc)))  # difficult objects occur


def test_written_once_and_drawn_again_for_other_settings(tmp_path: Path) -> None:
    ensure_shapes(config(tmp_path))
    marker = tmp_path / "shapes" / "VOC2007" / "marker"
    marker.touch()
    ensure_shapes(config(tmp_path, format="coco"))  # another reader is no other set
    assert marker.exists()
    ensure_shapes(config(tmp_path, num_val=4))
    assert not marker.exists()
    assert len(read_shapes(config(tmp_path, num_val=4), "val")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]  # nothing is left aside


def test_older_version_of_the_drawing_is_replaced(tmp_path: Path) -> None:
    ensure_shapes(config(tmp_path))
    about = tmp_path / "shapes" / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "version": 0}))
    (tmp_path / "shapes" / "VOC2007" / "old").touch()
    ensure_shapes(config(tmp_path))
    assert not (tmp_path / "shapes" / "VOC2007" / "old").exists()


@pytest.mark.parametrize("about", [None, "{", "[]", '{"generator": "somebody else"}'])
def test_folder_of_somebody_else_is_left_alone(tmp_path: Path, about: str | None) -> None:
    root = tmp_path / "shapes"
    root.mkdir()
    (root / "thesis.txt").write_text("precious")
    if about is not None:
        (root / "about.json").write_text(about)
    with pytest.raises(DataError, match="was not drawn by detkit"):
        ensure_shapes(config(tmp_path))
    assert (root / "thesis.txt").read_text() == "precious"


def test_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    assert len(read_shapes(config(tmp_path), "train")) == 6


def test_a_writer_that_dies_leaves_no_half_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("detkit.data.shapes._append_coco", die)
        with pytest.raises(KeyboardInterrupt):
            ensure_shapes(config(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert len(read_shapes(config(tmp_path), "train")) == 6


def test_pictures_are_of_the_promised_kind() -> None:
    pictures = [draw_picture(np.random.default_rng(seed)) for seed in range(60)]
    objects = [item for _, drawn in pictures for item in drawn]
    sides = np.array([max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in (item.box for item in objects)])
    assert {item.label for item in objects} == set(range(len(CLASS_NAMES)))
    assert (sides < 14).mean() < 0.25
    assert sides.max() > 120
    assert all(HIDDEN_BELOW <= item.visible <= 1 for item in objects)
    assert {image.shape[0] > image.shape[1] for image, _ in pictures} == {True, False}
    for image, drawn in pictures:
        assert image.dtype == np.uint8
        assert 208 <= min(image.shape[:2]) <= max(image.shape[:2]) <= 352
        assert 1 <= len(drawn) <= 10
        for x1, y1, x2, y2 in (item.box for item in drawn):
            assert 0 <= x1 < x2 <= image.shape[1]
            assert 0 <= y1 < y2 <= image.shape[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_and_coco_hold_the_same_masks(tmp_path: Path, split: Any) -> None:
    """Each pixel belongs to the object that shows there, so that masks have no pixel in common and lie in their box."""
    voc = read_shapes(config(tmp_path), split)
    coco = read_shapes(config(tmp_path, format="coco"), split)
    kinds = set()
    for index in range(len(voc)):
        one, two = voc.ground_truth(index).objects, coco.ground_truth(index).objects
        assert isinstance(one.masks, EncodedMasks)
        assert isinstance(two.masks, EncodedMasks)
        kinds |= set(two.masks.kinds.tolist())
        dense = two.masks.dense()
        np.testing.assert_array_equal(one.masks.dense(), dense)
        assert dense.sum(axis=0).max() == 1
        assert dense.sum(axis=(1, 2)).tolist() == two.area.tolist()
        for mask, (x1, y1, x2, y2) in zip(dense, two.boxes.astype(int).tolist(), strict=True):
            assert mask.sum() == mask[y1:y2, x1:x2].sum()
    assert kinds == ({POLYGONS, RUN_LENGTHS} if split == "train" else kinds)


def test_masks_are_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On black, in white, without clutter: the lit pixels are those of the masks."""
    draw_plainly(monkeypatch)
    for seed in range(20):
        image, objects = draw_picture(np.random.default_rng(seed))
        masks = MaskCrops.of([item.mask for item in objects], [item.box for item in objects])
        drawn = masks.dense((image.shape[0], image.shape[1])).any(axis=0)
        lit = image[..., 0] >= 128
        assert (drawn & ~lit).sum() == 0
        assert (
            lit & ~drawn
        ).sum() <= 0.02 * lit.sum()  # where two shapes that each cover less than half of a pixel meet


def test_keypoints_are_centroids_of_the_quarters_of_the_box() -> None:
    checked = 0
    for seed in range(10):
        for item in draw_picture(np.random.default_rng(seed))[1]:
            if item.visible < 1:
                continue
            height, width = item.mask.shape
            rows = {"top": range(-(-height // 4)), "bottom": range(height - -(-height // 4), height)}
            columns = {"left": range(-(-width // 4)), "right": range(width - -(-width // 4), width)}
            for name, (x, y, visibility) in zip(KEYPOINT_NAMES[:4], item.keypoints.tolist(), strict=False):
                pixels = [
                    (item.box[0] + column + 0.5, item.box[1] + row + 0.5)
                    for row in rows.get(name, range(height))
                    for column in columns.get(name, range(width))
                    if item.mask[row, column]
                ]
                assert (x, y) == pytest.approx(np.mean(pixels, axis=0), abs=1e-4)
                assert visibility == 2
                checked += 1
    assert checked > 100


def test_keypoints_are_hidden_where_a_later_object_is(tmp_path: Path) -> None:
    dataset = read_shapes(config(tmp_path, num_train=30, format="coco"), "train")
    points = dataset.categories.keypoints
    assert points is not None
    assert (points.names, points.flip_pairs) == (KEYPOINT_NAMES, ((1, 3),))
    assert points.sigmas == (0.05,) * 5
    hidden = 0
    for index in range(len(dataset)):
        objects = dataset.ground_truth(index).objects
        assert objects.keypoints is not None
        assert isinstance(objects.masks, EncodedMasks)
        masks = objects.masks.dense()
        x1, y1, x2, y2 = objects.boxes.T
        top, right, bottom, left, centre = objects.keypoints.transpose(1, 0, 2)
        widths, heights = np.ceil((x2 - x1) / 4), np.ceil((y2 - y1) / 4)
        assert ((y1 < top[:, 1]) & (top[:, 1] < y1 + heights)).all()
        assert ((x2 - widths < right[:, 0]) & (right[:, 0] < x2)).all()
        assert ((y2 - heights < bottom[:, 1]) & (bottom[:, 1] < y2)).all()
        assert ((x1 < left[:, 0]) & (left[:, 0] < x1 + widths)).all()
        np.testing.assert_array_equal(centre[:, :2], np.stack([(x1 + x2) / 2, (y1 + y2) / 2], 1))
        for number, each in enumerate(objects.keypoints):
            in_front = masks[number + 1 :].any(axis=0)  # objects stand in drawing order
            for x, y, visibility in each.tolist():
                hidden += visibility == 1
                assert visibility == (1 if in_front[int(y), int(x)] else 2)
    assert 0 < hidden < 0.3 * dataset.objects.keypoints[..., 2].size  # type: ignore[index]


def draw_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """On black, in white, without clutter."""
    monkeypatch.setattr("detkit.data.shapes_drawing.draw_background", lambda rng, size: np.zeros((*size, 3), np.uint8))
    monkeypatch.setattr("detkit.data.shapes_drawing.draw_clutter", lambda rng, image: None)
    monkeypatch.setattr("detkit.data.shapes_drawing.draw_stroke", lambda rng, image, thickness: None)
    monkeypatch.setattr("detkit.data.shapes_drawing.degrade", lambda rng, image: image)
    white = np.full(3, 255.0)
    monkeypatch.setattr("detkit.data.shapes_drawing.colour_away_from", lambda *_: white)
    monkeypatch.setattr(
        "detkit.data.shapes_drawing.draw_texture", lambda rng, side, *_: np.full((side, side, 3), 255.0)
    )


def test_boxes_are_tight_around_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On black, in white, without clutter: rows and columns just inside the box are lit, those just outside are not."""
    draw_plainly(monkeypatch)
    checked = 0
    for seed in range(40):
        image, objects = draw_picture(np.random.default_rng(seed))
        lit = image[..., 0] >= 128
        expected = np.zeros_like(lit)
        for item in objects:
            x1, y1, x2, y2 = item.box
            expected[y1:y2, x1:x2] = True
            inside = lit[y1:y2, x1:x2]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            checked += 1
        assert not (lit & ~expected).any()
    assert checked > 100
