"""Masks and keypoints on their way through the loader: they arrive on their objects, and only where they are needed."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkit.data.checks import RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader, build_loader
from detkit.data.transforms import Augment, parse_augment
from detkit.structures import Batch, Categories, EncodedMasks, ImageId, ImageInfo, KeypointCategories, MaskCrops, Size

NUM_IMAGES, SIZE = 9, (100, 120)
BOXES = [(5, 5, 25, 25), (40, 8, 60, 30), (70, 50, 110, 90), (10, 60, 30, 85)]  # apart; the last has no mask
FLIP_AND_JITTER = ["flip", {"name": "scale_jitter", "scale": [0.7, 2.5]}]


def grey_of(image: int, label: int) -> int:
    return 10 + 6 * (image * len(BOXES) + label)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Each object is the left half of its box, in a grey of its own, with a white and a black point; the label is its
    number. Every third image is empty."""
    folder, images = tmp_path_factory.mktemp("pictures"), []
    for index in range(NUM_IMAGES):
        picture, objects = np.zeros((*SIZE, 3), np.uint8), []
        for label, (x1, y1, x2, y2) in enumerate(BOXES if index % 3 else []):
            middle, y = (x1 + x2) // 2, (y1 + y2) // 2
            picture[y1:y2, x1:middle] = grey_of(index, label)
            picture[y, x1], picture[y, middle - 1] = 255, 254
            columns: dict[str, Any] = {
                "keypoints": np.array([(x1 + 0.5, y + 0.5, 2), (middle - 0.5, y + 0.5, 1)], np.float32)
            }
            if label < 3:
                columns["masks"] = [np.array([(x1, y1), (middle, y1), (middle, y2), (x1, y2)], np.float64)]
            objects.append(RawObject(f"object {label}", label, (x1, y1, x2, y2), columns=columns))
        path = str(folder / f"{index}.png")
        assert cv2.imwrite(path, picture)
        images.append(RawImage(index, path, path, SIZE, objects))
    keypoints = KeypointCategories(("left", "right"), flip_pairs=((0, 1),))
    return ImageDataset(images, name="drawn", categories=Categories(tuple("abcd"), (1, 2, 3, 4), keypoints))


def place(image_id: ImageId, size: Size, draw: int | None) -> ImageInfo:
    """As it is, with a border around it."""
    return ImageInfo(image_id, size, size, (1.0, 1.0), (3, 5))


def loader(dataset: ImageDataset, workers: int = 0, augment: Any = FLIP_AND_JITTER, **changes: Any) -> Loader[Batch]:
    settings: dict[str, Any] = {
        "place": place,
        "stride": 32,
        "batch_size": 3,
        "augment": None if augment is None else Augment(parse_augment(augment), flip_pairs=[(0, 1)]),
        "seed": 0,
        "shuffle": True,
        "aspect_grouping": False,
        "with_targets": True,
    }
    return build_loader(dataset, workers=workers, **{**settings, **changes})


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_and_points_arrive_on_their_objects(dataset: ImageDataset, workers: int) -> None:
    masks_seen = points_seen = mirrored = 0
    for batch in loader(dataset, workers):
        assert batch.targets is not None
        for image, info, target in zip(batch.images, batch.infos, batch.targets, strict=True):
            objects = target.objects
            assert isinstance(objects.masks, MaskCrops)
            assert isinstance(objects.masks.pixels, torch.Tensor)
            assert objects.keypoints is not None
            dense = objects.masks.dense((image.shape[1], image.shape[2]))
            for label, mask, points in zip(objects.labels.tolist(), dense, objects.keypoints.tolist(), strict=True):
                values = image[0][mask].unique().tolist()
                assert set(values) <= {grey_of(int(info.image_id), label), 254, 255}
                assert mask.any() or label == 3
                masks_seen += bool(mask.any())
                visible = [(image[0, int(y), int(x)].item(), v) for x, y, v in points if v]
                # Mirrored, the point that was at the left is called the right one.
                assert visible in ([(255, 2), (254, 1)], [(254, 1), (255, 2)], [(255, 2)], [(254, 1)], [])
                mirrored += bool(visible) and visible[0] == (254, 1)
                points_seen += len(visible)
    assert masks_seen > 9
    assert points_seen > 20
    assert mirrored


def test_batches_with_masks_are_the_same_from_workers(dataset: ImageDataset) -> None:
    for one, two in zip(loader(dataset), loader(dataset, 2), strict=True):
        assert torch.equal(one.images, two.images)
        for target, other in zip(one.targets or (), two.targets or (), strict=True):
            masks, expected = target.objects.masks, other.objects.masks
            assert isinstance(masks, MaskCrops)
            assert isinstance(expected, MaskCrops)
            assert torch.equal(masks.pixels, expected.pixels)
            np.testing.assert_array_equal(masks.windows, expected.windows)
            assert torch.equal(target.objects.keypoints, other.objects.keypoints)


@pytest.mark.parametrize("columns", [(), ("masks",), ("keypoints",)])
@pytest.mark.parametrize("augment", [FLIP_AND_JITTER, None])
def test_targets_have_the_columns_that_are_learned(dataset: ImageDataset, columns: Any, augment: Any) -> None:
    for batch in loader(dataset, augment=augment, columns=columns):
        assert batch.targets is not None
        for target in batch.targets:
            assert {"masks", "keypoints"} & target.objects.columns().keys() == set(columns)
    assert dataset.objects.masks is not None, "the data set itself keeps all"


def test_masks_at_which_nobody_looks_are_not_decoded(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a detector of boxes, nor in evaluation, whose batches carry no targets."""
    monkeypatch.setattr(EncodedMasks, "crops", lambda _: pytest.fail("decoded"))
    assert len(list(loader(dataset, columns=["keypoints"]))) == 3
    assert len(list(loader(dataset, augment=None, with_targets=False))) == 3


def test_an_augmentation_has_masks_that_are_not_learned(dataset: ImageDataset) -> None:
    """Copy-paste for a detector of boxes: the black right halves of boxes are not pasted, so that every grey stays at
    least where it is in the picture alone."""
    augment = [{"name": "copy_paste", "scale": [1, 1], "object_probability": 1, "max_covered": 1}]
    assert Augment(parse_augment(augment)).uses == ("masks",)
    assert Augment(parse_augment("flip")).uses == ()
    pasted = 0
    for batch in loader(dataset, augment=augment, columns=()):
        assert batch.targets is not None
        for image, info, target in zip(batch.images, batch.infos, batch.targets, strict=True):
            assert target.objects.masks is None
            alone = cv2.imread(dataset.path(int(info.image_id)))[..., 0]
            inner = image[0, 5:105, 3:123].numpy()
            assert (inner[alone > 0] > 0).all()
            pasted += bool((inner != alone).any())
    assert pasted > 2


def test_masks_move_to_a_device_with_their_boxes(dataset: ImageDataset) -> None:
    batch = next(iter(loader(dataset, augment=None, shuffle=False, batch_size=9)))
    assert batch.targets is not None
    for target in batch.targets:
        moved = target.to("meta").not_ignored()
        assert isinstance(moved.masks, MaskCrops)
        assert moved.masks.pixels.device == moved.boxes.device == torch.device("meta")
        assert len(moved.masks) == len(moved)
