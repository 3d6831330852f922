"""Masks in windows of their own: the same pixels as if the whole masks had been changed, in little memory."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data.collate import collate
from detkit.data.transforms import Augment, parse_augment
from detkit.data.transforms.geometry import Window, flip, resize_sample, take_window
from detkit.data.transforms.masks import (
    Masks,
    any_mask,
    count_pixels,
    cover_masks,
    flip_masks,
    scale_masks,
    shift_masks,
    warp_masks,
)
from detkit.structures import EncodedMasks, ImageInfo, MaskCrops, Objects, Sample
from tests.data.transforms.samples import crops_of, dense_masks, framed, with_boxes
from tests.reference import augment as reference

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))
SEEDS = st.integers(0, 10**6)


def random_masks(seed: int, size: tuple[int, int]) -> tuple[Masks, np.ndarray]:
    """Five masks in windows anywhere on a picture, the last without a pixel; the same as bool `[5, H, W]`."""
    rng = np.random.default_rng(seed)
    crops, windows, dense = [], [], np.zeros((5, *size), np.bool_)
    for number in range(4):
        (y1, y2), (x1, x2) = (np.sort(rng.integers(0, side + 1, 2)) for side in size)
        crop = rng.random((y2 - y1, x2 - x1)) < rng.choice([0.05, 0.6, 1])
        crops.append(crop)
        windows.append((x1, y1, x2, y2))
        dense[number, y1:y2, x1:x2] = crop
    return MaskCrops.of([*crops, np.zeros((0, 0))], [*windows, (0, 0, 0, 0)]), dense


def assert_windows_are_small(masks: Masks, dense: np.ndarray) -> None:
    for window, mask in zip(masks.windows, dense, strict=True):
        assert tuple(window) == (framed(mask) if mask.any() else (0, 0, 0, 0))


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, size=SIZES)
def test_mirrored(seed: int, size: tuple[int, int]) -> None:
    masks, dense = random_masks(seed, size)
    np.testing.assert_array_equal(flip_masks(masks, size).dense(size), dense[:, :, ::-1])
    np.testing.assert_array_equal(flip_masks(masks, size, upside_down=True).dense(size), dense[:, ::-1])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, size=SIZES, result=SIZES, corner=st.tuples(st.integers(-30, 30), st.integers(-30, 30)))
def test_in_a_window(seed: int, size: tuple[int, int], result: tuple[int, int], corner: tuple[int, int]) -> None:
    """Inside, over the borders, or where no mask is."""
    masks, dense = random_masks(seed, size)
    expected = np.stack([reference.window_of_mask(mask, *corner, *result) for mask in dense])
    shifted = shift_masks(masks, *corner, result)
    np.testing.assert_array_equal(shifted.dense(result), expected)
    cut = expected.sum(axis=(1, 2)) < dense.sum(axis=(1, 2))
    assert_windows_are_small(shifted[cut], expected[cut])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, size=SIZES, result=SIZES)
def test_scaled(seed: int, size: tuple[int, int], result: tuple[int, int]) -> None:
    """The pixels are chosen on the grid of the whole picture, whatever the window of a mask is."""
    masks, dense = random_masks(seed, size)
    resized = [cv2.resize(mask.astype(np.uint8), result[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for mask in dense]
    expected = np.stack(resized).reshape(len(dense), *result) > 0
    scaled = scale_masks(masks, size, result)
    np.testing.assert_array_equal(scaled.dense(result), expected)
    assert_windows_are_small(scaled, expected)


def random_matrix(rng: np.random.Generator) -> np.ndarray:
    linear = np.exp(rng.uniform(-1.5, 1.5)) * (np.eye(2) + rng.uniform(-0.9, 0.9, (2, 2)))
    return np.column_stack([linear, rng.uniform(-12, 12, 2)])


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, size=SIZES, result=SIZES)
def test_warped(seed: int, size: tuple[int, int], result: tuple[int, int]) -> None:
    masks, dense = random_masks(seed, size)
    matrix = random_matrix(np.random.default_rng(seed))
    expected = np.stack([reference.warp_mask(mask, matrix, *result) for mask in dense])
    warped = warp_masks(masks, matrix, result)
    np.testing.assert_array_equal(warped.dense(result), expected)
    assert_windows_are_small(warped, expected)


def test_a_warp_is_that_of_the_picture() -> None:
    """OpenCV, which moves the picture, rounds places: its nearest pixel is another one here and there."""
    size, result, different, total = (200, 150), (180, 220), 0, 0
    for seed in range(40):
        masks, dense = random_masks(seed, size)
        linear, centre = random_matrix(np.random.default_rng(seed))[:, :2], np.full(2, 0.5)
        matrix = np.column_stack([linear, np.array([110, 90]) - linear @ np.array([75, 100])])
        pixels = np.column_stack([matrix[:, :2], linear @ centre + matrix[:, 2] - centre])
        expected = [
            cv2.warpAffine(mask.astype(np.uint8), pixels, result[::-1], flags=cv2.INTER_NEAREST) > 0 for mask in dense
        ]
        different += int((warp_masks(masks, matrix, result).dense(result) != np.stack(expected)).sum())
        total += int(np.sum(expected))
    assert total > 300_000
    assert different < 1e-3 * total


@pytest.mark.parametrize("matrix", [[[0.5, 0, 0], [0, 0.5, 0]], [[2, 0, -3], [0, 3, 1]], [[0, -1, 9], [1, 0, 0.5]]])
def test_warps_between_the_centres_of_pixels(matrix: list[list[float]]) -> None:
    """At half the size the centre of a pixel is the corner of four: it is that of the one below on the right."""
    masks, dense = random_masks(1, (14, 11))
    expected = np.stack([reference.warp_mask(mask, np.array(matrix), 12, 13) for mask in dense])
    np.testing.assert_array_equal(warp_masks(masks, np.array(matrix), (12, 13)).dense((12, 13)), expected)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, size=SIZES)
def test_covered_joined_and_counted(seed: int, size: tuple[int, int]) -> None:
    masks, dense = random_masks(seed, size)
    covered = np.random.default_rng(seed).random(size) < 0.5
    rest = cover_masks(masks, covered)
    np.testing.assert_array_equal(rest.dense(size), dense & ~covered)
    assert_windows_are_small(rest, dense & ~covered)
    np.testing.assert_array_equal(any_mask(masks, size), dense.any(axis=0))
    assert count_pixels(masks).tolist() == dense.sum(axis=(1, 2)).tolist()


NONE: Masks = MaskCrops.of([], [])
CHANGES: dict[str, Callable[[Masks], Masks]] = {
    "flip": lambda masks: flip_masks(masks, (7, 9)),
    "shift": lambda masks: shift_masks(masks, 1, 2, (5, 5)),
    "scale": lambda masks: scale_masks(masks, (7, 9), (3, 20)),
    "warp": lambda masks: warp_masks(masks, np.eye(2, 3), (5, 5)),
    "cover": lambda masks: cover_masks(masks, np.ones((7, 9), np.bool_)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_mask_at_all(name: str) -> None:
    assert len(CHANGES[name](NONE)) == 0
    assert not any_mask(NONE, (7, 9)).any()
    assert count_pixels(NONE).tolist() == []


def test_a_mask_that_is_cut_away_leaves_its_box() -> None:
    """An L of 2 px in a box of 20 x 20: a window shows much of the box and nothing of the L. The box stays as it was
    cut, and there is no mask any more, as if only the box were known."""
    sample = with_boxes(np.zeros((40, 40, 3), np.uint8), (10, 10, 30, 30))
    mask = np.zeros((1, 40, 40), np.bool_)
    mask[0, 10:30, 10:12] = mask[0, 28:30, 10:30] = True
    sample = replace(sample, objects=replace(sample.objects, masks=crops_of(mask)))
    result = take_window(sample, Window(10, 14, (18, 26)))
    assert result.objects.boxes.tolist() == [[0, 0, 16, 18]]
    assert isinstance(result.objects.masks, MaskCrops)
    assert result.objects.masks.windows.tolist() == [[0, 0, 0, 0]]
    corner = take_window(sample, Window(20, 0, (20, 20)))
    assert corner.objects.boxes.tolist() == [[10, 0, 20, 10]]
    assert framed(dense_masks(corner)[0]) == (10, 0, 20, 10)


def test_masks_in_the_form_of_a_file_are_refused() -> None:
    sample = with_boxes(np.zeros((40, 40, 3), np.uint8), (10, 10, 30, 30))
    sample = replace(sample, objects=replace(sample.objects, masks=EncodedMasks.of([None], [(40, 40)])))
    with pytest.raises(ValueError, match=r"expected MaskCrops, found EncodedMasks; use its crops\(\)"):
        flip(sample)


def crowded_scene() -> Sample:
    """100 ellipses on 800 x 1066, with sides of 2 to 40 % of the picture's, small ones as often as large ones."""
    rng, size = np.random.default_rng(0), (800, 1066)
    crops, windows = [], []
    for _ in range(100):
        height, width = np.ceil(np.exp(rng.uniform(np.log(0.02), np.log(0.4), 2)) * size).astype(int).tolist()
        y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        crops.append(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, height)))
        windows.append((x, y, x + width, y + height))
    objects = Objects(np.array(windows, np.float32), np.zeros(100, np.int64), masks=MaskCrops.of(crops, windows))
    return Sample(np.zeros((*size, 3), np.uint8), objects, 0)


def test_a_crowded_scene_takes_less_memory_than_four_bytes_a_pixel() -> None:
    """Its objects, before, in the middle and at the end; dense, the masks alone would take 100."""
    scene = crowded_scene()
    augment = Augment(parse_augment([{"name": "random_affine"}, {"name": "horizontal_flip"}, {"name": "crop"}]))
    samples = [scene, *(augment(scene, seed) for seed in range(4)), resize_sample(scene, (480, 640))]
    infos = [ImageInfo(0, s.image.shape[:2], s.image.shape[:2], (1.0, 1.0)) for s in samples]
    batch = collate(list(zip(samples, infos, strict=True)), 32, with_targets=True)
    assert batch.targets is not None
    for sample, target in zip(samples, batch.targets, strict=True):
        masks = sample.objects.masks
        assert isinstance(masks, MaskCrops)
        assert masks.pixels.any()
        assert masks.pixels.nbytes + masks.windows.nbytes < 4 * sample.image[..., 0].size
        assert isinstance(target.objects.masks, MaskCrops)
        assert target.objects.masks.pixels.numel() == len(masks.pixels)


# Each object of a drawn scene is a disc in a colour of its own with two points, a white and a black spot.
DISCS = {(255, 0, 0): (60, 90), (0, 255, 0): (250, 70), (0, 0, 255): (160, 185)}  # colour: (x, y) of the middle
RADIUS, SPOT = 45, 14
MOVES = {
    "horizontal_flip": {"probability": 1},
    "vertical_flip": {"probability": 1},
    "expand": {"probability": 1, "max_ratio": 2},
    "iou_crop": {},
    "crop": {"probability": 1},
    "scale_jitter": {},
    "translate": {"probability": 1},
    "jitter": {"scale": [0.5, 2]},
    "large_scale_jitter": {"scale": [0.6, 1.6], "size": 260},
    "random_affine": {"degrees": 180},
    "mosaic": {"size": 280},
    "cutout": {"holes": 3},
    "copy_paste": {"scale": [0.6, 1.5]},
}


def discs() -> Sample:
    image, bitmaps, points = np.full((240, 320, 3), 100, np.uint8), [], []
    rows, columns = np.mgrid[:240, :320] + 0.5
    for colour, (x, y) in DISCS.items():
        bitmaps.append((rows - y) ** 2 + (columns - x) ** 2 < RADIUS**2)
        image[bitmaps[-1]] = colour
        for offset, value in ((-20, 255), (20, 0)):
            image[(rows - y) ** 2 + (columns - x - offset) ** 2 < SPOT**2] = value
        points.append([(x - 20, y, 2), (x + 20, y, 2)])
    boxes = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in DISCS.values()]
    sample = with_boxes(image, *boxes)
    masks, keypoints = crops_of(np.array(bitmaps)), np.array(points, np.float32)
    return replace(sample, objects=replace(sample.objects, masks=masks, keypoints=keypoints))


def is_near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(np.abs(pixels.astype(int) - colour).max(axis=-1) < 70)


@pytest.mark.parametrize("name", MOVES)
def test_an_object_is_found_again_by_its_mask_and_its_points(name: str) -> None:
    augment = Augment(parse_augment([{"name": name, **MOVES[name]}]), epochs=100)
    ring, seen, points_seen = np.ones((5, 5), np.uint8), 0, 0
    for seed in range(12):
        result = augment(discs(), seed, 0, lambda _, count: [discs()] * count)
        keypoints = result.objects.keypoints
        assert keypoints is not None
        masks = dense_masks(result)
        for label, mask, points in zip(result.objects.labels, masks, keypoints, strict=True):
            colour = tuple(DISCS)[label]
            inner = cv2.erode(mask.astype(np.uint8), ring, borderValue=1) > 0
            pixels = result.image[inner]
            spots = is_near(pixels, (255, 255, 255)) | is_near(pixels, (0, 0, 0))
            edges = (~is_near(pixels, colour) & ~spots).sum()
            assert edges <= 0.3 * len(pixels), "the edges of the spots are blends"
            assert is_near(pixels, colour).sum() >= 0.4 * len(pixels) or len(pixels) < 200
            seen += bool(mask.any())
            for (x, y, visibility), value in zip(points.tolist(), (255, 0), strict=True):
                if visibility == 2:
                    row, column = min(int(y), len(result.image) - 1), min(int(x), result.image.shape[1] - 1)
                    assert is_near(result.image[row, column], (value,) * 3) or near_border(result, x, y)
                    points_seen += 1
        if name not in ("mosaic", "copy_paste"):  # where the rest of an object that is dropped may lie in another's box
            assert_nothing_outside(result, masks)
    assert seen > 12
    assert points_seen > 18


def near_border(sample: Sample, x: float, y: float) -> bool:
    height, width = sample.image.shape[:2]
    return min(x, y, width - x, height - y) < 2


def assert_nothing_outside(result: Sample, masks: np.ndarray) -> None:
    """No pixel of the colour of an object lies in its box and outside of its mask."""
    for box, label, mask in zip(result.objects.boxes.astype(int), result.objects.labels, masks, strict=True):
        wide = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        missed = is_near(result.image, tuple(DISCS)[label]) & ~wide
        assert not missed[box[1] : box[3], box[0] : box[2]].any()
