"""Videos as a data set: their annotated frames are its images, and each can be loaded with the frames around it.

Legend: I images, M objects of all images, F frames of a video, T frames of a clip, N objects of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from detkit.config import UserError
from detkit.data.check_cache import picture_sizes
from detkit.data.checks import Check, DataError, LabelPolicy, RawImage, check_images
from detkit.data.dataset import ImageDataset, plural
from detkit.data.frame_files import FrameFiles
from detkit.data.pictures import read_picture
from detkit.structures import Categories, Clip, Objects, Sample, Size
from detkit.structures.clips import split_frame_id


@dataclass(frozen=True, slots=True)
class RawVideo:
    """One video as its file has it.

    name    another one than that of every other video
    frames  the pictures of its frames, one after the other
    images  of its frames those that are annotated; their ids are `frame_id(name, number)` with the place in `frames`
    """

    name: str
    frames: FrameFiles
    images: Sequence[RawImage]


class ClipDataset(ImageDataset):
    """The annotated frames of videos. A detector of pictures sees them as pictures, one of clips with their neighbours.

    Objects that are the same in several frames have one of `track_ids`, which count within a video.
    """

    def __init__(
        self,
        videos: Sequence[RawVideo],
        *,
        name: str,
        categories: Categories,
        on_bad_label: LabelPolicy = "raise",
        decode: bool = True,
        notes: Mapping[str, int] | None = None,
        check: Check = check_images,
    ) -> None:
        """As `ImageDataset`. Raises DataError too if the frames of a video have several sizes, or if a track has two
        boxes in one frame."""
        super().__init__(
            [image for video in videos for image in video.images],
            name=name,
            categories=categories,
            on_bad_label=on_bad_label,
            decode=decode,
            notes=notes,
            check=check,
        )
        index_of = {video.name: index for index, video in enumerate(videos)}
        places = [_place(self.image_id(index)) for index in range(len(self))]
        self._video_of_image = np.array([index_of[video] for video, _ in places])  # [I]
        self._number_of_image = np.array([number for _, number in places])  # [I] frame within its video
        self._frames = self._readable_frames(videos)
        self._check_sizes()
        self._index_tracks()

    def _readable_frames(self, videos: Sequence[RawVideo]) -> list[FrameFiles]:
        """The frames of each video, without pictures that the check has dropped because they cannot be read."""
        checked = set(self._paths.tolist())
        dropped = sorted({image.path for video in videos for image in video.images} - checked)
        sizes = picture_sizes(dropped, decode=True, name=self.name)
        unreadable = {path for path, size in zip(dropped, sizes, strict=True) if isinstance(size, str)}
        if not unreadable:
            return [video.frames for video in videos]
        return [
            video.frames.without([_place(image.image_id)[1] for image in video.images if image.path in unreadable])
            for video in videos
        ]

    def _check_sizes(self) -> None:
        _, first, video = np.unique(self._video_of_image, return_index=True, return_inverse=True)  # first image of each
        differing = np.flatnonzero((self._sizes != self._sizes[first[video]]).any(axis=1))
        if len(differing):
            row = differing[0]
            one, other = ("{1} x {0}".format(*self._sizes[image]) for image in (first[video[row]], row))
            raise DataError(
                f"{self.name}: the frames of a video are expected to have one size, but "
                f"{self.image_id(int(first[video[row]]))} has {one} and {self.image_id(int(row))} has {other} (w x h); "
                "scale them to one size, or make two videos of them"
            )

    def _index_tracks(self) -> None:
        """What `_boxes_in` looks up: the boxes of all objects in the order of their keys, which are distinct."""
        tracks = self.objects.track_ids
        self._tracks = np.unique(np.zeros(0, np.int64) if tracks is None else tracks)
        if tracks is None:
            return
        image = self.image_of_object
        keys = self._keys_of(self._video_of_image[image], tracks, self._number_of_image[image])
        order = np.argsort(keys)
        self._keys, self._key_boxes = keys[order], self.objects.boxes[order]
        twice = np.flatnonzero(np.diff(self._keys) == 0)
        if len(twice):
            row = order[twice[0]]
            raise DataError(
                f"{self.name}: {self.image_id(int(image[row]))}: track {tracks[row]} has two boxes in this frame; give "
                "them two tracks"
            )

    def _keys_of(self, videos: np.ndarray, tracks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """int64, one for every track in every frame."""
        longest = int(self.lengths().max())
        keys: np.ndarray = (videos * len(self._tracks) + np.searchsorted(self._tracks, tracks)) * longest + numbers
        return keys

    @override
    def take(self, indices: Sequence[int]) -> ClipDataset:
        part = super().take(indices)
        assert isinstance(part, ClipDataset)
        part._video_of_image = self._video_of_image[list(indices)]
        part._number_of_image = self._number_of_image[list(indices)]
        return part

    def every(self, step: int) -> ClipDataset:
        """With only every `step`-th of the annotated frames of each video, from its first."""
        _, first, video = np.unique(self._video_of_image, return_index=True, return_inverse=True)
        part = self.take(np.flatnonzero((np.arange(len(self)) - first[video]) % step == 0).tolist())
        part.notes = self.notes.copy()
        part.notes["frame passed over (train_every)"] += len(self) - len(part)
        part.summary = part._summarise()
        return part

    def lengths(self) -> np.ndarray:
        """int64: how many frames each video has."""
        return np.array([len(frames) for frames in self._frames])

    @override
    def load(
        self,
        index: int,
        at_least: Size | None = None,
        proposals: np.ndarray | None = None,
        clip: Clip | None = None,
    ) -> Sample:
        """As `ImageDataset.load`; a clip is decoded at its own size."""
        if clip is None:
            return super().load(index, at_least, proposals)
        sample = super().load(index, None, proposals)
        numbers = self._clip_numbers(index, clip)
        frames = self._frames[self._video_of_image[index]]
        pictures = {int(self._number_of_image[index]): sample.image}
        for number in numbers.tolist():
            if number not in pictures:
                pictures[number] = self._picture(frames.path(number), sample)
        objects = self._with_tubes(sample.objects, index, numbers) if clip.tubes else sample.objects
        return replace(sample, image=np.stack([pictures[number] for number in numbers.tolist()]), objects=objects)

    def _clip_numbers(self, index: int, clip: Clip) -> np.ndarray:
        """int64 `[T]`: the frames of the clip of an image. Those without a picture are stepped over."""
        numbers = self._frames[self._video_of_image[index]].numbers()
        position = int(np.searchsorted(numbers, self._number_of_image[index]))
        return np.take(numbers, clip.positions(position, len(numbers)))

    def _picture(self, path: str, sample: Sample) -> np.ndarray:
        try:
            image = read_picture(path)
        except UserError as error:
            raise DataError(str(error)) from error
        if image.shape != sample.image.shape:
            found, expected = (f"{shape[1]} x {shape[0]}" for shape in (image.shape, sample.image.shape))
            raise DataError(f"{path}: expected {expected} (w x h) as the frame {sample.image_id}, found {found}")
        return image

    def _with_tubes(self, objects: Objects[np.ndarray], index: int, numbers: np.ndarray) -> Objects[np.ndarray]:
        """With their boxes in the frames of these numbers; an object that is not in all of them is ignored, and has its
        box of this image in those in which it is not."""
        tubes = np.repeat(objects.boxes[:, None], len(numbers), axis=1)
        if not len(objects):
            return replace(objects, tubes=tubes)
        if objects.track_ids is None:
            raise DataError(
                f"{self.name}: this detector learns tubes, and the objects have no tracks; number the same object "
                "alike in all frames"
            )
        videos = np.full((len(objects), 1), self._video_of_image[index])
        rows, there = self._rows_of(videos, objects.track_ids[:, None], numbers[None])
        tubes[there] = self._key_boxes[rows[there]]
        return replace(objects, tubes=tubes, ignore=objects.ignore | ~there.all(axis=1))

    def _rows_of(self, videos: np.ndarray, tracks: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each track in each frame the row of `_key_boxes`, and whether it has one."""
        keys = self._keys_of(videos, tracks, numbers)
        rows = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return rows, self._keys[rows] == keys

    @override
    def describe(self, clip: Clip | None) -> list[str]:
        """The summary, and of how many objects there is no tube if the clip is to have such."""
        tracks = self.objects.track_ids
        if clip is None or not clip.tubes or tracks is None:
            return super().describe(clip)
        image = self.image_of_object
        numbers = np.stack([self._clip_numbers(index, clip) for index in range(len(self))])  # [I, T]
        there = self._rows_of(self._video_of_image[image][:, None], tracks[:, None], numbers[image])[1]  # [M, T]
        partial = int((~there.all(axis=1) & ~self.objects.ignore).sum())
        text = f"{plural(partial, 'object')} not in all {clip.frames} frames of the clip, and so ignored"
        if partial and partial == int((~self.objects.ignore).sum()):
            text += ": every one of them, so that nothing can be learned; are all frames annotated?"
        return [*super().describe(clip), *([text] if partial else [])]

    @override
    def _lacking(self) -> list[str]:
        videos = {place[0] for place in map(split_frame_id, self._image_ids) if place}
        return [f"frames of {plural(len(videos), 'video')}", *super()._lacking()]


def _place(image_id: object) -> tuple[str, int]:
    """The video and the number of a frame."""
    place = split_frame_id(image_id)
    if place is None:
        raise ValueError(f"image_id of a frame: expected VIDEO/NUMBER as `frame_id` gives, got {image_id!r}")
    return place
