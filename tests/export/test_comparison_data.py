"""The pictures to compare on: which they are, that they fit, and how they become batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.detectors.detector import Detector
from detkit.engine.settings import RunConfig
from detkit.export.comparison_data import ComparisonData, batches, comparison_data
from detkit.nn.input import (
    ImageInput,
    InputConfig,
    KeepConfig,
    LetterboxConfig,
    ResizeConfig,
    ShortSideConfig,
    StretchConfig,
)
from detkit.nn.proposals import FileProposalsConfig, ProposalsConfig
from detkit.structures import Categories, Objects, Sample, Size
from tests.engine.settings import make_config, write_pictures

SHORT_SIDE = ShortSideConfig(size=64, max_size=96)


class InputOnly(Detector[Any]):
    """A detector of which only the input spec, with a stride of 32 px, and the proposals are asked for."""

    def __init__(self, resize: ResizeConfig, proposals: ProposalsConfig | None = None) -> None:
        super().__init__(ImageInput(InputConfig(resize=resize), 32), Categories.of_names(["cat", "dog"]))
        self.proposals = proposals

    def network(self, images: Any, sizes: Any) -> Any:
        raise NotImplementedError

    def criterion(self, outputs: Any, targets: Any) -> Any:
        raise NotImplementedError

    def detect(self, outputs: Any, sizes: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Seven pictures of 64 x 96 px (h x w), of which the last five are for validation."""
    root = tmp_path_factory.mktemp("data")
    data = write_pictures(root, 7)
    (root / "VOC2007/ImageSets/Main/val.txt").write_text("".join(f"{index:03d}\n" for index in range(2, 7)))
    return make_config(data)


def pictures_of(sizes: list[Size]) -> ComparisonData:
    samples = [Sample(np.full((*size, 3), i, np.uint8), Objects.empty(), i) for i, size in enumerate(sizes)]
    return ComparisonData(tuple(samples), None, "pictures")


def test_the_first_pictures_of_the_validation_data(settings: RunConfig) -> None:
    data = comparison_data(InputOnly(SHORT_SIDE), settings, 3, canvas=None)
    every = build_dataset(settings.data, "val")
    assert Path(every.path(0)).stem == "002"
    assert data.dataset is not None
    assert len(data.samples) == len(data.dataset) == 3
    assert "3 pictures of the validation data" in data.label
    for index, sample in enumerate(data.samples):
        assert sample.image_id == data.dataset.image_id(index) == every.image_id(index)
        assert np.array_equal(sample.image, every.load(index).image)
        assert sample.proposals is None


def test_fewer_where_there_are_fewer(settings: RunConfig) -> None:
    data = comparison_data(InputOnly(SHORT_SIDE), settings, 100, canvas=None)
    assert len(data.samples) == 5
    assert data.label.startswith("5 pictures of")


def test_proposals_of_files_reach_the_detector(settings: RunConfig, tmp_path: Path) -> None:
    """A source that knows the pictures of a data set only; a picture that it does not know has no proposals."""
    ids = [build_dataset(settings.data, "val").image_id(index) for index in range(3)]
    entries = [{"image_id": i, "bbox": [8 + n, 4, 32, 16], "score": 1.0} for n, i in enumerate(ids[:2])]
    (tmp_path / "boxes.json").write_text(json.dumps([{**entry, "category_id": 1} for entry in entries]))
    proposals = FileProposalsConfig(paths=(str(tmp_path / "boxes.json"),), allow_missing=True)
    detector = InputOnly(SHORT_SIDE, proposals)
    own = settings.model_copy(
        update={"loader": settings.loader.model_copy(update={"proposals": str(tmp_path / "proposals")})}
    )
    data = comparison_data(detector, own, 3, canvas=None)
    assert [None if s.proposals is None else s.proposals.tolist() for s in data.samples] == [
        [[8, 4, 40, 20]],
        [[9, 4, 41, 20]],
        [],
    ]
    for sample, batch in zip(data.samples[:1], batches(detector, data), strict=False):
        assert sample.image.shape[:2] == (64, 96)  # the short side becomes 64, so that proposals stay as they are
        assert batch.proposals is not None
        assert batch.proposals[0].tolist() == [[8, 4, 40, 20]]


def test_drawn_pictures_are_landscape_and_portrait_and_always_the_same() -> None:
    one, other = (comparison_data(InputOnly(SHORT_SIDE), None, 16, canvas=None) for _ in range(2))
    assert one.dataset is None
    assert one.label == "16 drawn pictures"
    sizes = [sample.image.shape[:2] for sample in one.samples]
    assert len(sizes) == 16
    assert {height < width for height, width in sizes} == {True, False}
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one.samples, other.samples, strict=True))
    assert len({sample.image.tobytes() for sample in one.samples}) == 16


def test_a_file_that_resizes_is_given_batches_of_1_2_and_7_of_one_size() -> None:
    data = comparison_data(InputOnly(SHORT_SIDE), None, 16, canvas=None, pictures="resize")
    sizes = [sample.image.shape[:2] for sample in data.samples]
    parts = [sizes[0:1], sizes[1:3], sizes[3:10], sizes[10:16]]
    assert [len(set(part)) for part in parts] == [1, 1, 1, 2]
    assert len({part[0] for part in parts[:3]}) == 2


@pytest.mark.parametrize("canvas", [(640, 640), (96, 64), (64, 192)])
def test_drawn_pictures_fit_the_canvas_of_a_detector_that_keeps_their_size(canvas: Size) -> None:
    detector = InputOnly(KeepConfig())
    data = comparison_data(detector, None, 4, canvas=canvas)
    sizes = {sample.image.shape[:2] for sample in data.samples}
    assert len(sizes) == 2
    assert all(height <= canvas[0] and width <= canvas[1] for height, width in sizes)


def test_portrait_pictures_do_not_fit_a_landscape_canvas() -> None:
    """Of 64 px for the short side and at most 96 for the other; a stride of 32."""
    data = comparison_data(InputOnly(SHORT_SIDE), None, 4, canvas=(64, 96))
    for batch in batches(InputOnly(SHORT_SIDE), data):
        height, width = batch.images.shape[2:]
        assert height <= 64
        assert width <= 96
    assert len({sample.image.shape for sample in data.samples}) == 2


@pytest.mark.parametrize("resize", [StretchConfig(size=96), LetterboxConfig(size=96)])
def test_every_picture_fits_where_all_become_one_size(resize: ResizeConfig) -> None:
    data = comparison_data(InputOnly(resize), None, 3, canvas=(96, 96))
    assert {sample.image.shape[:2] for sample in data.samples} == {(480, 640), (640, 480)}


def test_a_program_that_resizes_is_given_pictures_no_larger_than_its_canvas() -> None:
    detector = InputOnly(StretchConfig(size=800))
    data = comparison_data(detector, None, 3, canvas=(100, 200), pictures="resize")
    assert all(s.image.shape[0] <= 100 and s.image.shape[1] <= 200 for s in data.samples)


def test_pictures_of_the_data_that_do_not_fit_are_left_out(settings: RunConfig) -> None:
    """Pictures of 64 x 96 px."""
    keeping = InputOnly(KeepConfig())
    assert len(comparison_data(keeping, settings, 3, canvas=(64, 96)).samples) == 3
    with pytest.raises(UserError, match=r"fits the 64 x 90 px .* --size") as error:
        comparison_data(keeping, settings, 3, canvas=(64, 90))
    assert "\n" not in str(error.value)


def test_no_drawn_picture_fits() -> None:
    detector = InputOnly(ShortSideConfig(size=128, max_size=256))
    with pytest.raises(UserError, match="drawn pictures: no picture"):
        comparison_data(detector, None, 3, canvas=(64, 96))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1]), (2, [1, 1]), (3, [1, 2]), (16, [1, 2, 7, 6]), (20, [1, 2, 7, 7, 3])]
)
def test_sizes_of_batches(count: int, expected: list[int]) -> None:
    data = pictures_of([(64, 96)] * count)
    parts = list(batches(InputOnly(SHORT_SIDE), data))
    assert [len(batch) for batch in parts] == expected
    assert [info.image_id for batch in parts for info in batch.infos] == list(range(count))
    assert [int(image[0, 5, 5]) for batch in parts for image in batch.images] == list(range(count))


def test_batches_follow_the_input_spec_of_the_detector() -> None:
    """A letterbox of 64 px: 100 x 200 px become 32 x 64, 16 px below the upper border. The short side: 48 x 96."""
    data = pictures_of([(100, 200)])
    (info,) = next(iter(batches(InputOnly(LetterboxConfig(size=64)), data))).infos
    assert (info.orig_size, info.input_size, info.offset) == ((100, 200), (32, 64), (0, 16))
    batch = next(iter(batches(InputOnly(SHORT_SIDE), data)))
    assert batch.infos[0].input_size == (48, 96)
    assert batch.images.shape == (1, 3, 64, 96)
    assert batch.targets is None
    assert batch.images.dtype == torch.uint8


def test_masks_are_read_only_for_a_detector_that_has_them(tmp_path: Path) -> None:
    settings = make_config(write_pictures(tmp_path, 2))
    masks = tmp_path / "VOC2007/SegmentationObject"
    masks.mkdir()
    for index in range(2):
        (masks / f"{index:03d}.png").write_text("not a picture")
    assert len(comparison_data(InputOnly(SHORT_SIDE), settings, 2, canvas=None).samples) > 0
    detector = InputOnly(SHORT_SIDE)
    detector.columns = ("masks",)
    with pytest.raises(UserError, match="SegmentationObject"):
        comparison_data(detector, settings, 2, canvas=None)
