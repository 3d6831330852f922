"""Batches through shared memory that is reused: they do not change while any tensor shares their memory."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader, build_loader
from detkit.data.transfer import NUM_BUFFERS, BufferPool
from detkit.data.transforms import Augment, parse_augment
from detkit.structures import Batch, ImageId, ImageInfo, Size
from tests.data.writers import make_dataset

SIZES = [(40 + 7 * (i % 5), 60 - 11 * (i % 3)) for i in range(24)]


def doubled_or_not(image_id: ImageId, size: Size, draw: int | None) -> ImageInfo:
    factor = 1 + (draw or 0) % 2
    return ImageInfo(image_id, size, (size[0] * factor, size[1] * factor), (factor, factor), (3, 5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return make_dataset(tmp_path_factory.mktemp("noise"), SIZES)


def loader(dataset: ImageDataset, workers: int, **changes: Any) -> Loader[Batch]:
    settings: dict[str, Any] = {"batch_size": 2, "shuffle": True, "with_targets": True, "stride": 32, "seed": 5}
    augment = Augment(parse_augment(["flip", {"name": "scale_jitter", "scale": [0.7, 1.4]}]))
    return build_loader(
        dataset,
        **{**settings, **changes},
        place=doubled_or_not,
        augment=augment,
        workers=workers,
        aspect_grouping=False,
    )


def pool(of: Loader[Batch]) -> BufferPool:
    found = of.dataset.function.pool  # type: ignore[attr-defined]
    assert isinstance(found, BufferPool)
    return found


def epochs(of: Loader[Batch], count: int) -> Iterator[Batch]:
    for epoch in range(count):
        of.set_epoch(epoch)
        yield from of


def assert_equal(one: Batch, two: Batch) -> None:
    assert one.infos == two.infos
    assert torch.equal(one.images, two.images)
    assert (one.targets is None) == (two.targets is None)
    for target, other in zip(one.targets or (), two.targets or (), strict=True):
        columns, expected = target.objects.columns(), other.objects.columns()
        assert columns.keys() == expected.keys()
        assert all(torch.equal(column, expected[name]) for name, column in columns.items())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_earlier_content_of_a_buffer_does_not_show(dataset: ImageDataset, workers: int) -> None:
    """Batches of several sizes, with canvases around the pictures, through the same buffers."""
    for one, two in zip(epochs(loader(dataset, 0), 3), epochs(loader(dataset, workers), 3), strict=True):
        assert_equal(one, two)


def test_few_buffers_serve_all_batches(dataset: ImageDataset) -> None:
    one = loader(dataset, 1, stride=512)  # batches of one size
    addresses = {batch.images.data_ptr() for batch in epochs(one, 4)}
    assert 1 < len(addresses) <= NUM_BUFFERS


def test_batches_in_use_do_not_change(dataset: ImageDataset) -> None:
    """More of them than there are buffers, and then again when all are free."""
    with_worker, alone = loader(dataset, 1), loader(dataset, 0)
    for _ in range(2):
        batches = list(epochs(with_worker, 1))
        assert len(batches) > 2 * NUM_BUFFERS
        for one, two in zip(batches, epochs(alone, 1), strict=True):
            assert_equal(one, two)
        del batches, one


def test_a_view_keeps_its_buffer(dataset: ImageDataset) -> None:
    """A row of a batch that was dropped, as a numpy array."""
    batches = epochs(loader(dataset, 1, stride=512), 3)
    row = next(batches).images[1, 2, 20].numpy()
    before = row.copy()
    for _ in batches:
        np.testing.assert_array_equal(row, before)


def test_all_buffers_are_free_when_the_batches_are_gone(dataset: ImageDataset) -> None:
    """Also those of batches that were under way when an epoch was abandoned."""
    one = loader(dataset, 2)
    for _ in range(2 * NUM_BUFFERS):
        next(iter(one))
    seen = sum(len(batch) for batch in epochs(one, 1))
    assert seen == len(SIZES)
    gc.collect()
    assert len(pool(one).buffers) > 1
    assert sum(pool(one).taken) == 0


def test_with_a_worker_or_not_the_channels_lie_together(dataset: ImageDataset) -> None:
    for workers in (0, 1):
        for batch in loader(dataset, workers, with_targets=False):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.targets is None


def test_without_memory_files_the_batches_are_the_same(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without memfd, or when no more files can be opened."""

    def refused(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("os.memfd_create", refused)
    one = loader(dataset, 1)
    for first, second in zip(epochs(one, 2), epochs(loader(dataset, 0), 2), strict=True):
        assert_equal(first, second)
    assert pool(one).buffers == {}


def test_a_batch_needs_no_room_in_the_file_system_of_shared_memory(dataset: ImageDataset) -> None:
    """Docker gives /dev/shm 64 MB, of which other processes may have taken all."""
    one = loader(dataset, 2, stride=512)
    before = set(os.listdir("/dev/shm"))
    batches = list(epochs(one, 1))
    assert len(batches) > 2 * NUM_BUFFERS
    new = [Path("/dev/shm", name) for name in set(os.listdir("/dev/shm")) - before]
    assert sum(path.stat().st_size for path in new if path.exists()) < batches[0].images.numel()
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if "/torch_" in line]
