"""Clips of videos: which frames they have, the boxes of objects over time, and one augmentation for all frames."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.data.checks import DataError
from detkit.data.clip_dataset import ClipDataset, RawVideo
from detkit.data.collate import collate
from detkit.data.frame_files import FrameFiles
from detkit.data.loader import build_loader
from detkit.data.sampler import Key
from detkit.data.transforms import Augment, parse_augment
from detkit.data.transforms.geometry import Window, flip, on_canvas, resize_sample, take_window, warp
from detkit.structures import Batch, Categories, Clip, ImageId, ImageInfo, Objects, Sample, Size
from tests.data.video_sets import SIZE, moved, numbers_in, read, track, write_frames
from tests.data.writers import make_dataset, write_picture

BOX = (5.0, 6.0, 25.0, 30.0)
TUBES = Clip(3, tubes=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of five frames and of two."""
    folder = tmp_path_factory.mktemp("videos")
    write_frames(folder / "long", 5)
    write_frames(folder / "short", 2)
    return folder


@pytest.fixture(scope="module")
def dataset(root: Path) -> ClipDataset:
    """Objects: one in all frames, one that leaves, one that comes and goes; in the short video another track 0."""
    tracks = [
        track("run", range(5), moved(BOX, 5)),
        track("jump", [0, 1, 2], moved((30, 5, 40, 15), 3, 2)),
        track("jump", [1, 3], [(0, 0, 9, 9), (1, 1, 9, 9)]),
    ]
    short = [track("run", [0, 1], moved((10, 10, 20, 20), 2, 5))]
    return read(
        root,
        [{"name": "long", "frames": "long", "tracks": tracks}, {"name": "short", "frames": "short", "tracks": short}],
    )


CLIPS = {
    "the frame and those that follow": (Clip(3), 1, [1, 2, 3]),
    "around the frame": (Clip(3, before=1), 1, [0, 1, 2]),
    "only those before": (Clip(3, before=2), 3, [1, 2, 3]),
    "steps": (Clip(3, step=2, before=1), 2, [0, 2, 4]),
    "the start": (Clip(4, before=2), 1, [0, 0, 1, 2]),
    "the end": (Clip(4, before=1), 4, [3, 4, 4, 4]),
    "steps over the end": (Clip(3, step=3, before=1), 3, [0, 3, 4]),
    "longer than the video": (Clip(9, before=4), 2, [0, 0, 0, 1, 2, 3, 4, 4, 4]),
    "one frame": (Clip(1), 3, [3]),
    "the next video": (Clip(3, before=1), 5, [0, 0, 1]),
    "the end of all": (Clip(4), 6, [1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_has_the_frames_around_its_own(dataset: ClipDataset, name: str) -> None:
    clip, index, expected = CLIPS[name]
    sample = dataset.load(index, clip=clip)
    assert sample.image.shape == (clip.frames, *SIZE, 3)
    assert numbers_in(sample.image) == expected
    assert sample.objects.tubes is None
    assert sample.objects.boxes.tolist() == dataset.ground_truth(index).objects.boxes.tolist()
    assert sample.image_id == dataset.image_id(index)


def test_without_a_clip_it_is_a_data_set_of_pictures(dataset: ClipDataset) -> None:
    assert dataset.load(2).image.shape == (*SIZE, 3)
    assert dataset.load(2).objects.tubes is None


def test_tubes_are_the_boxes_of_a_track(dataset: ClipDataset) -> None:
    objects = dataset.load(1, clip=TUBES).objects
    assert objects.tubes is not None
    assert objects.tubes.dtype == np.float32
    assert objects.tubes.tolist() == [
        [[6, 6, 26, 30], [7, 6, 27, 30], [8, 6, 28, 30]],
        [[32, 5, 42, 15], [34, 5, 44, 15], [32, 5, 42, 15]],  # it leaves before the last frame
        [[0, 0, 9, 9], [0, 0, 9, 9], [1, 1, 9, 9]],  # it is not in the second frame
    ]
    assert objects.ignore.tolist() == [False, True, True]
    assert dataset.ground_truth(1).objects.ignore.tolist() == [False, False, False]  # what is evaluated stays


def test_tubes_at_the_end_repeat_the_last_box(dataset: ClipDataset) -> None:
    objects = dataset.load(4, clip=TUBES).objects
    assert objects.tubes is not None
    assert objects.tubes.tolist() == [[[9, 6, 29, 30]] * 3]
    assert objects.ignore.tolist() == [False]


def test_tracks_of_one_number_in_two_videos_are_two(dataset: ClipDataset) -> None:
    objects = dataset.load(5, clip=TUBES).objects
    assert objects.tubes is not None
    assert objects.tubes.tolist() == [[[10, 10, 20, 20], [15, 10, 25, 20], [15, 10, 25, 20]]]
    assert objects.ignore.tolist() == [False]


def test_tubes_do_not_need_the_images_that_are_passed_over(dataset: ClipDataset) -> None:
    for part, index in ((dataset.every(2), 1), (dataset.take([2, 0]), 0)):
        whole, objects = dataset.load(2, clip=TUBES).objects, part.load(index, clip=TUBES).objects
        assert part.image_id(index) == "long/000002"
        assert objects.tubes is not None
        assert whole.tubes is not None
        assert objects.tubes.tolist() == whole.tubes.tolist()
        assert numbers_in(part.load(index, clip=Clip(3, before=1)).image) == [1, 2, 3]


def test_how_many_objects_have_no_tube_is_said(dataset: ClipDataset, root: Path) -> None:
    """By hand: the object that leaves in frames 1 and 2, the one that comes and goes in both of its frames."""
    assert dataset.describe(None) == dataset.describe(Clip(3)) == [dataset.summary]
    assert dataset.describe(TUBES) == [
        dataset.summary,
        "4 objects not in all 3 frames of the clip, and so ignored",
    ]
    alone = read(root, [{"name": "long", "frames": "long", "annotated": [2], "tracks": [track("run", [2], [BOX])]}])
    assert alone.describe(TUBES)[1].endswith("nothing can be learned; are all frames annotated?")
    assert len(alone.describe(Clip(1, tubes=True))) == 1


def test_images_without_objects_have_no_tubes(root: Path) -> None:
    empty = read(root, [{"name": "long", "frames": "long"}])
    objects = empty.load(0, clip=TUBES).objects
    assert objects.tubes is not None
    assert objects.tubes.shape == (0, 3, 4)
    assert empty.describe(TUBES) == [empty.summary]


def test_a_picture_that_was_dropped_is_stepped_over(tmp_path: Path) -> None:
    write_frames(tmp_path / "v", 6)
    (tmp_path / "v" / "000002.png").write_text("broken")
    video = {"name": "v", "frames": "v", "tracks": [track("run", range(6), moved(BOX, 6))]}
    with pytest.raises(DataError, match=r"video v, frame 2: the picture .*000002.png cannot be decoded"):
        read(tmp_path, [video])
    dataset = read(tmp_path, [video], on_bad_label="drop_image")
    sample = dataset.load(1, clip=TUBES)
    assert dataset.image_id(1) == "v/000001"
    assert numbers_in(sample.image) == [1, 3, 4]
    assert sample.objects.tubes is not None
    assert sample.objects.tubes[0, :, 0].tolist() == [6, 8, 9]
    assert dataset.lengths().tolist() == [6]


def test_a_picture_with_a_wrong_box_is_still_seen(tmp_path: Path) -> None:
    """drop_image drops it as an image; its neighbours have it beside them."""
    write_frames(tmp_path / "v", 3)
    video = {"name": "v", "frames": "v", "tracks": [track("run", [0, 1], [BOX, (0, 0, 500, 500)])]}
    dataset = read(tmp_path, [video], on_bad_label="drop_image")
    assert [dataset.image_id(index) for index in range(2)] == ["v/000000", "v/000002"]
    assert numbers_in(dataset.load(0, clip=Clip(3)).image) == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: write_picture(path, (30, 60)),
            r"expected 60 x 40 \(w x h\) as the frame v/000000, found 60 x 30$",
        ),
        (lambda path: path.unlink(), "000001.png does not exist$"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "000001.png cannot be decoded: .*; replace the file$"),
    ],
)
def test_a_frame_beside_is_looked_at_when_it_is_loaded(
    tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    write_frames(tmp_path / "v", 2)
    dataset = read(tmp_path, [{"name": "v", "frames": "v", "annotated": [0]}])
    change(tmp_path / "v" / "000001.png")
    assert numbers_in(dataset.load(0, clip=Clip(1)).image) == [0]
    with pytest.raises(DataError, match=message):
        dataset.load(0, clip=Clip(2))


def test_single_pictures_have_no_clips(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="has single pictures, and this detector takes clips of 3 frames; give it videos"
    ):
        make_dataset(tmp_path, [(20, 30)]).load(0, clip=TUBES)


def test_tubes_need_tracks(dataset: ClipDataset) -> None:
    bare = copy.copy(dataset)
    bare.objects = replace(dataset.objects, track_ids=None)
    with pytest.raises(DataError, match="this detector learns tubes, and the objects have no tracks"):
        bare.load(0, clip=TUBES)


def test_frames_of_two_folders_and_names_of_any_bytes() -> None:
    files = FrameFiles.of(["/a/1.png", None, "/b/\udcff.png"])
    assert [files.path(0), files.path(2)] == ["/a/1.png", "/b/\udcff.png"]
    assert files.numbers().tolist() == [0, 2]
    assert files.without([0]).numbers().tolist() == [2]
    assert files.numbers().tolist() == [0, 2]
    assert len(files) == 3


def test_ids_of_other_images_are_refused(tmp_path: Path) -> None:
    from detkit.data.checks import RawImage

    write_picture(tmp_path / "a.png")
    image = RawImage(17, str(tmp_path / "a.png"), "a.png", None, ())
    video = RawVideo("v", FrameFiles.of([str(tmp_path / "a.png")]), [image])
    with pytest.raises(ValueError, match="expected VIDEO/NUMBER"):
        ClipDataset([video], name="v", categories=Categories.of_names(["a"]))


# Augmentation: one draw for all frames


def still(seed: int = 0, frames: int = 3, size: Size = (48, 64)) -> Sample:
    """A clip of equal frames of noise with two objects that stay where they are."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    boxes = np.array([[4, 6, 30, 40], [20, 10, 60, 44]], np.float32)
    tubes = np.repeat(boxes[:, None], frames, axis=1)
    objects = Objects(boxes, np.array([0, 1]), track_ids=np.array([5, 6]), tubes=tubes)
    return Sample(np.repeat(image[None], frames, axis=0), objects, "v/000000")


def assert_still(sample: Sample) -> None:
    """All frames are equal, and each tube is the box in every frame."""
    assert (sample.image == sample.image[:1]).all()
    assert sample.objects.tubes is not None
    for column in range(sample.objects.tubes.shape[1]):
        np.testing.assert_array_equal(sample.objects.tubes[:, column], sample.objects.boxes)


AUGMENTS: dict[str, Any] = {
    **{name: [name] for name in ("flip", "ssd", "yolov1", "yolov3", "detr")},
    "scales": [{"name": "large_scale_jitter"}, {"name": "scale_jitter", "scale": [0.7, 1.4]}],
    "affine": [{"name": "random_affine", "size": 50, "degrees": 15}, {"name": "hsv_shift"}],
    "windows": [{"name": "crop"}, {"name": "cutout"}],
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_frame_is_augmented_alike(name: str) -> None:
    augment, changed = Augment(parse_augment(AUGMENTS[name]), 20), 0
    for seed in range(12):
        sample = augment(still(seed), seed)
        assert_still(sample)
        changed += sample.image.shape != (3, 48, 64, 3) or bool((sample.image != still(seed).image).any())
        picture = augment(replace(still(seed), image=still(seed).image[0]), seed)
        np.testing.assert_array_equal(picture.image, sample.image[0])  # as the same picture alone
        np.testing.assert_array_equal(picture.objects.boxes, sample.objects.boxes)
    assert changed >= 3


TURN = np.array([[0.9, -0.3, 8], [0.2, 1.1, -3]])
MOVES: dict[str, Callable[[Sample], Sample]] = {
    "flip": flip,
    "window": lambda sample: take_window(sample, Window(5, 8, (30, 40))),
    "larger window": lambda sample: take_window(sample, Window(-5, -8, (70, 90))),
    "affine": lambda sample: warp(sample, TURN, (50, 70)),
    "resize": lambda sample: resize_sample(sample, (31, 97)),
    "letterbox": lambda sample: on_canvas(sample, 7, 11, (80, 90)),
}


@pytest.mark.parametrize("name", MOVES)
def test_tubes_move_as_boxes_do(name: str) -> None:
    """Of a still object, and of one that is elsewhere in each frame: as if that were its box."""
    assert_still(MOVES[name](still()))
    sample = still()
    assert sample.objects.tubes is not None
    shift = np.arange(3, dtype=np.float32)[None, :, None]
    tubes = (sample.objects.tubes + shift).astype(np.float32)
    result = MOVES[name](replace(sample, objects=replace(sample.objects, tubes=tubes))).objects
    assert result.tubes is not None
    assert result.track_ids is not None
    for frame in range(3):
        other = MOVES[name](replace(sample, objects=replace(sample.objects, boxes=tubes[:, frame].copy()))).objects
        assert other.track_ids is not None
        assert other.track_ids.tolist() == result.track_ids.tolist()
        np.testing.assert_array_equal(result.tubes[:, frame], other.boxes)


# Batches


def test_clips_are_collated_with_a_time_axis() -> None:
    sample = still(frames=4)
    info = ImageInfo("v/000000", (48, 64), (24, 32), (0.5, 0.5), (3, 5))
    batch = collate([(sample, info), (still(1, 4), info)], stride=32, with_targets=True)
    assert batch.images.shape == (2, 3, 4, 64, 64)  # 24 + 2 * 5 and 32 + 2 * 3, to a multiple of 32
    for frame in range(4):
        alone = replace(sample, image=sample.image[frame])
        expected = collate([(alone, info)], stride=32, with_targets=True).images[0]
        assert torch.equal(batch.images[0, :, frame], expected)
    assert batch.targets is not None
    tubes = batch.targets[0].objects.tubes
    assert tubes is not None
    assert tubes[0, 3].tolist() == [4 / 2 + 3, 6 / 2 + 5, 30 / 2 + 3, 40 / 2 + 5]


def half(image_id: ImageId, size: Size, draw: int | None) -> ImageInfo:
    return ImageInfo(image_id, size, (size[0] // 2, size[1] // 2), (0.5, 0.5))


def batches(dataset: ClipDataset, workers: int, **changes: Any) -> list[Batch]:
    settings: dict[str, Any] = {"batch_size": 2, "shuffle": True, "with_targets": True, "stride": 32, "seed": 5}
    loader = build_loader(
        dataset,
        **{**settings, **changes},
        place=half,
        augment=Augment(parse_augment(["flip"])),
        workers=workers,
        aspect_grouping=False,
        clip=Clip(3, before=1, tubes=True),
    )
    loader.set_epoch(1)
    return list(loader)


def test_workers_send_the_clips_that_there_are_without_them(dataset: ClipDataset) -> None:
    alone, sent = batches(dataset, 0), batches(dataset, 2)
    assert sorted(map(len, sent)) == [1, 2, 2, 2]
    for one, other in zip(alone, sent, strict=True):
        assert one.images.shape[1:] == (3, 3, 32, 32)
        assert torch.equal(one.images, other.images)
        assert one.infos == other.infos
        assert one.targets is not None
        assert other.targets is not None
        for target, same in zip(one.targets, other.targets, strict=True):
            assert target.objects.tubes is not None
            assert same.objects.tubes is not None
            assert torch.equal(target.objects.tubes, same.objects.tubes)


def test_a_batch_has_the_frames_of_its_images(dataset: ClipDataset) -> None:
    (batch,) = batches(dataset, 0, batch_size=7, shuffle=False)
    expected = [dataset.load(index, clip=Clip(3, before=1)) for index in range(7)]
    for images, sample in zip(batch.images, expected, strict=True):
        assert numbers_in(images.permute(1, 2, 3, 0).numpy()) == numbers_in(sample.image)


def test_keys_name_images_not_frames(dataset: ClipDataset) -> None:
    """What a sampler gives is the index of an annotated frame."""
    loader = build_loader(
        dataset,
        place=half,
        stride=1,
        batch_size=1,
        augment=None,
        seed=0,
        workers=0,
        shuffle=False,
        aspect_grouping=False,
        with_targets=False,
        clip=Clip(2),
    )
    keys: list[list[Key]] = list(loader.sampler)
    assert [key.image for batch in keys for key in batch] == list(range(7))
    assert all(batch.targets is None for batch in loader)
