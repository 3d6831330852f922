"""The loader: exact, whatever the number of workers and ranks."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from detkit.data.build import DataConfig, build_dataset
from detkit.data.checks import DataError
from detkit.data.coco import COCOConfig
from detkit.data.collate import collate
from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader, LoaderConfig, build_loader
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.sampler import BatchSampler
from detkit.data.shapes import ShapesConfig
from detkit.data.shapes_drawing import CLASS_NAMES
from detkit.data.transforms import Augment, parse_augment
from detkit.data.transforms.entry import Others
from detkit.data.voc import VOCConfig
from detkit.data.yolo import YOLODataConfig
from detkit.structures import Batch, ImageId, ImageInfo, Objects, Sample, Size
from tests.data.writers import make_dataset

SIZES = [(40, 60), (60, 40), (48, 48), (30, 70), (64, 36), (40, 60), (50, 40), (40, 44), (33, 61), (40, 60), (70, 30)]
WIDE = {i for i, (height, width) in enumerate(SIZES) if width >= height}


def multi_scale(image_id: ImageId, size: Size, draw: int | None) -> ImageInfo:
    """Twice the size in evaluation, one to three times in training."""
    factor = 2 if draw is None else 1 + draw % 3
    return ImageInfo(image_id, size, (size[0] * factor, size[1] * factor), (factor, factor))


def failing(image_id: ImageId, size: Size, draw: int | None) -> ImageInfo:
    raise ZeroDivisionError("no such size")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return make_dataset(tmp_path_factory.mktemp("noise"), SIZES)


def loader(dataset: ImageDataset, **changes: Any) -> Loader[Batch]:
    settings: dict[str, Any] = {
        "place": multi_scale,
        "stride": 32,
        "batch_size": 3,
        "augment": Augment(parse_augment(["ssd", {"name": "scale_jitter"}, {"name": "crop"}])),
        "seed": 5,
        "workers": 0,
        "shuffle": True,
        "aspect_grouping": True,
        "with_targets": True,
    }
    return build_loader(dataset, **{**settings, **changes})


def ids(batches: list[Batch]) -> list[Any]:
    return [info.image_id for batch in batches for info in batch.infos]


def epoch_of(loader: Loader[Batch], epoch: int) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.infos == b.infos
        assert torch.equal(a.images, b.images)
        assert a.targets is not None
        assert b.targets is not None
        for target_a, target_b in zip(a.targets, b.targets, strict=True):
            columns_a, columns_b = target_a.objects.columns(), target_b.objects.columns()
            assert columns_a.keys() == columns_b.keys()
            assert all(torch.equal(column, columns_b[name]) for name, column in columns_a.items())


def test_number_of_workers_changes_nothing(dataset: ImageDataset) -> None:
    alone, with_two = loader(dataset), loader(dataset, workers=2)
    for epoch in (0, 1):
        assert_equal(epoch_of(alone, epoch), epoch_of(with_two, epoch))


def test_an_epoch_can_be_repeated_and_the_next_differs(dataset: ImageDataset) -> None:
    one = loader(dataset)
    first = epoch_of(one, 3)
    assert ids(first) != ids(epoch_of(one, 4))
    torch.rand(7)
    assert_equal(first, epoch_of(loader(dataset), 3))
    assert ids(first) != ids(epoch_of(loader(dataset, seed=6), 3))


def test_an_epoch_takes_nothing_from_the_global_generator(dataset: ImageDataset) -> None:
    before = torch.get_rng_state()
    list(loader(dataset))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("aspect_grouping", [True, False])
def test_every_image_once_an_epoch(dataset: ImageDataset, aspect_grouping: bool) -> None:
    one = loader(dataset, aspect_grouping=aspect_grouping)
    for epoch in range(3):
        batches = epoch_of(one, epoch)
        assert sorted(ids(batches)) == list(range(len(SIZES)))
        assert len(batches) == len(one)


def test_batches_hold_one_orientation(dataset: ImageDataset) -> None:
    for batch in epoch_of(loader(dataset), 0):
        assert len({info.image_id in WIDE for info in batch.infos}) == 1


def test_one_draw_a_batch(dataset: ImageDataset) -> None:
    """All images of a batch are resized by the same factor; over the epochs the factors vary."""
    one = loader(dataset, augment=None)
    factors = []
    for epoch in range(4):
        for batch in epoch_of(one, epoch):
            (scale,) = {info.scale for info in batch.infos}
            factors.append(scale[0])
    assert set(factors) == {1.0, 2.0, 3.0}


def test_evaluation_keeps_the_order_and_draws_nothing(dataset: ImageDataset) -> None:
    batches = list(loader(dataset, augment=None, shuffle=False, with_targets=False, workers=2))
    assert ids(batches) == list(range(len(SIZES)))
    assert all(batch.targets is None for batch in batches)
    assert all(
        info.scale == (2.0, 2.0) and info.orig_size == SIZES[int(info.image_id)] for b in batches for info in b.infos
    )


def test_targets_lie_in_input_pixels_and_lead_back(dataset: ImageDataset) -> None:
    for batch in loader(dataset, augment=None):
        assert batch.targets is not None
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
        for info, target in zip(batch.infos, batch.targets, strict=True):
            back = target.objects.boxes / torch.tensor(info.scale * 2)
            torch.testing.assert_close(back, torch.tensor([[2.0, 3.0, 12.0, 13.0]]))
            assert info.input_size == tuple(round(n * s) for n, s in zip(info.orig_size, info.scale[::-1], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_failure_names_the_picture(dataset: ImageDataset, workers: int) -> None:
    with pytest.raises(RuntimeError, match=r"\d{3}\.png: ZeroDivisionError: no such size"):
        list(loader(dataset, place=failing, workers=workers))


def test_picture_lost_during_training_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, SIZES[:3])
    (tmp_path / "001.png").unlink()
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"/001.png .*when noise was checked"):
            list(loader(dataset, workers=workers))


class TestBatchSampler:
    RATIOS = np.array([width / height for height, width in SIZES])

    def sampler(self, **changes: Any) -> BatchSampler:
        settings = {"batch_size": 2, "seed": 0, "shuffle": True, "aspect_grouping": True}
        return BatchSampler(**{"aspect_ratios": self.RATIOS, **settings, **changes})

    @pytest.mark.parametrize("world_size", [2, 3, 8])
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_ranks_partition_each_global_batch(self, world_size: int, shuffle: bool) -> None:
        single = self.sampler(batch_size=2 * world_size, shuffle=shuffle)
        ranks = [self.sampler(rank=r, world_size=world_size, shuffle=shuffle) for r in range(world_size)]
        assert {len(r) for r in ranks} == {len(single)}
        for whole, *parts in zip(single, *ranks, strict=True):
            assert all(parts)
            together = Counter(key for part in parts for key in part)
            assert set(together) == set(whole)
            if len(whole) >= world_size:
                assert together == Counter(whole)

    def test_seed_of_an_image_depends_on_the_epoch_but_not_on_its_batch(self) -> None:
        small, large = self.sampler(), self.sampler(batch_size=5, aspect_grouping=False)

        def seeds(sampler: BatchSampler) -> dict[int, int]:
            return {key.image: key.seed for batch in sampler for key in batch}

        first = seeds(small)
        assert first == seeds(large)
        assert len(set(first.values())) == len(SIZES)
        small.set_epoch(1)
        assert not set(first.values()) & set(seeds(small).values())

    def test_small_batches_do_not_always_come_last(self) -> None:
        sampler = self.sampler(batch_size=4)
        positions = set()
        for epoch in range(12):
            sampler.set_epoch(epoch)
            positions |= {number for number, batch in enumerate(sampler) if len(batch) < 4}
        assert len(positions) > 2

    @pytest.mark.parametrize("changes", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}])
    def test_impossible_settings_are_refused(self, changes: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="expected batch_size >= 1"):
            self.sampler(**changes)


def test_collate_pads_right_and_bottom_with_zeros() -> None:
    items = []
    for number, size in enumerate([(20, 50), (33, 31)]):
        boxes = np.array([(1, 2, 3, 4)] * number, np.float32).reshape(-1, 4)
        image = np.full((*size, 3), (1, 2, 3), np.uint8)
        sample = Sample(image, Objects(boxes, np.zeros(number, np.int64)), number)
        items.append((sample, ImageInfo(number, size, size, (1.0, 1.0))))
    batch = collate(items, stride=16, with_targets=True)
    assert batch.images.shape == (2, 3, 48, 64)
    assert batch.sizes().tolist() == [[20, 50], [33, 31]]
    assert batch.targets is not None
    assert [len(target.objects) for target in batch.targets] == [0, 1]
    for image, (height, width) in zip(batch.images, batch.sizes().tolist(), strict=True):
        assert image[:, :height, :width].unique(dim=1).unique(dim=2).flatten().tolist() == [1, 2, 3]
        assert image.sum() == (1 + 2 + 3) * height * width


def test_collate_puts_a_letterboxed_picture_at_its_offset_and_moves_its_boxes() -> None:
    boxes = np.array([(1, 2, 3, 4)], np.float32)
    image = np.full((16, 31, 3), 7, np.uint8)
    sample = Sample(image, Objects(boxes, np.zeros(1, np.int64)), 0)
    batch = collate([(sample, ImageInfo(0, (16, 31), (16, 31), (1.0, 1.0), (0, 8)))], stride=32, with_targets=True)
    assert batch.images.shape == (1, 3, 32, 32)
    assert (batch.images[0, :, 8:24, :31] == 7).all()
    assert batch.images.sum() == 7 * 3 * 16 * 31
    assert batch.targets is not None
    assert batch.targets[0].objects.boxes.tolist() == [[1, 10, 3, 12]]


def test_each_picture_comes_with_its_proposals(dataset: ImageDataset, tmp_path: Path) -> None:
    """Ten pixels of either side of the picture in its corner, twice as large on an input of twice the size."""
    folder = ProposalFolder(tmp_path, Path("data"), {"name": "own"})
    for index in range(len(dataset)):
        folder.save(dataset.path(index), np.array([[0, 0, 10, 10 + index]], np.float32))
    batches = list(loader(dataset, shuffle=False, augment=None, proposals=folder))
    proposals = [boxes.tolist() for batch in batches for boxes in batch.proposals or ()]
    assert proposals == [[[0, 0, 20, 20 + 2 * index]] for index in range(len(dataset))]
    folder.path(dataset.path(3)).unlink()
    with pytest.raises(DataError, match="no proposals for"):
        list(loader(dataset, shuffle=False, proposals=folder))


def test_batches_share_a_draw(dataset: ImageDataset) -> None:
    def draws(**changes: int) -> list[Any]:
        return [keys[0].draw for keys in loader(dataset, batch_size=2, **changes).sampler]

    assert len(set(draws())) == len(draws()) == 6
    shared = draws(draw_every=4)
    assert len(set(shared[:4])) == len(set(shared[4:])) == 1
    assert shared[0] != shared[4]


def test_each_image_draws_its_own(dataset: ImageDataset) -> None:
    def draws(**changes: Any) -> list[Any]:
        sampler = loader(dataset, batch_size=2, draw_every=0, **changes).sampler
        return [key.draw for keys in sampler for key in keys]

    assert len(set(draws())) == len(draws()) == len(dataset)
    assert draws() == draws()
    assert set(draws(shuffle=False)) == {None}


def test_config_is_chosen_by_name() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DataConfig)
    voc = adapter.validate_json('{"name": "voc", "root": "x", "train": ["2007_trainval"], "val": ["2007_test"]}')
    assert isinstance(voc, VOCConfig)
    assert (voc.on_bad_label, voc.check_images, voc.difficult) == ("raise", True, "ignore")
    assert isinstance(adapter.validate_json('{"name": "coco", "root": "x"}'), COCOConfig)
    assert isinstance(adapter.validate_json('{"name": "yolo", "root": "x"}'), YOLODataConfig)
    assert isinstance(adapter.validate_json('{"name": "shapes"}'), ShapesConfig)
    assert LoaderConfig().workers == 2


def test_build_dataset_reads_each_kind(tmp_path: Path) -> None:
    shapes = ShapesConfig(root=str(tmp_path / "shapes"), num_train=2, num_val=2)
    assert len(build_dataset(shapes, "train")) == 2
    voc = VOCConfig(root=shapes.root, train=("2007_train",), val=("2007_val",), classes=CLASS_NAMES)
    assert build_dataset(voc, "val").name == "voc val (2007_val)"
    voc = VOCConfig(root="/nowhere", train=("2007_a",), val=())
    for config in (voc, COCOConfig(root="/nowhere"), YOLODataConfig(root="/nowhere")):
        with pytest.raises(DataError, match="does not exist"):
            build_dataset(config, "train")


class OneOfTwoOthers:
    """In place of an augmentation: the second of two other images, with the epoch in its first pixel."""

    uses = ()

    def __call__(self, sample: Sample, seed: int, epoch: int, others: Others) -> Sample:
        _, other = others(np.random.default_rng(seed), 2)
        image = other.image.copy()
        image[0, 0] = epoch
        return replace(other, image=image)

    def interpolation(self, seed: int, epoch: int) -> int:
        return cv2.INTER_NEAREST


@pytest.mark.parametrize("workers", [0, 1])
def test_an_augmentation_is_given_the_epoch_and_other_images(
    dataset: ImageDataset, tmp_path: Path, workers: int
) -> None:
    """Any of the data set, drawn by the generator that it hands over, with their proposals."""
    folder = ProposalFolder(tmp_path, Path("data"), {"name": "own"})
    for index in range(len(dataset)):
        folder.save(dataset.path(index), np.array([[0, 0, 10, 10 + index]], np.float32))
    one = loader(dataset, augment=OneOfTwoOthers(), proposals=folder, workers=workers)
    one.set_epoch(6)
    for keys, batch in zip(list(one.sampler), one, strict=True):
        drawn = [np.random.default_rng(key.seed).integers(len(dataset), size=2)[1] for key in keys]
        assert [info.image_id for info in batch.infos] == drawn
        assert (batch.images[:, :, 0, 0] == 6).all()
        assert batch.proposals is not None
        heights = [boxes[0, 3].item() / info.scale[1] for boxes, info in zip(batch.proposals, batch.infos, strict=True)]
        assert heights == pytest.approx([10 + index for index in drawn])


def test_images_of_rare_classes_come_more_often(tmp_path: Path) -> None:
    """Class 1 is on one of eleven images: sqrt(1 / (1 / 11)) = 3.3 times, and the ten others once."""
    dataset = make_dataset(tmp_path, SIZES)
    dataset.objects.labels[4] = 1
    one, rare = loader(dataset, repeat_threshold=1.0, aspect_grouping=False), set()
    for epoch in range(30):
        one.set_epoch(epoch)
        rare.add([key.image for keys in one.sampler for key in keys].count(4))
    assert rare == {3, 4}
    assert ids(epoch_of(one, 0)).count(4) in rare
    assert ids(epoch_of(loader(dataset), 0)).count(4) == 1
    assert LoaderConfig().repeat_threshold is None
