"""Videos as a data set: their annotated frames are its images, and each can be loaded with the frames around it.

Legend: I images, M objects of all images, V videos, F frames of all videos, T frames of a clip, N objects of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from detkit.config import UserError
from detkit.data.checks import Check, DataError, LabelPolicy, RawImage, check_images
from detkit.data.dataset import ImageDataset, plural
from detkit.data.pictures import read_picture
from detkit.structures import Categories, Clip, Objects, Sample, Size
from detkit.structures.clips import split_frame_id

MAX_FRAMES = 10**6  # of a video: the six digits of a frame's number


@dataclass(frozen=True, slots=True)
class RawVideo:
    """One video as its file has it.

    frames  the pictures of its frames, one after the other
    images  of its frames those that are annotated; their ids are `frame_id(name, number)` with the place in `frames`
    """

    name: str
    frames: Sequence[str]
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
        """As `ImageDataset`. Raises DataError too if the frames of a video have several sizes."""
        self._video_names = np.array([video.name for video in videos])
        super().__init__(
            [image for video in videos for image in video.images],
            name=name,
            categories=categories,
            on_bad_label=on_bad_label,
            decode=decode,
            notes=notes,
            check=check,
        )
        places = [split_frame_id(self.image_id(index)) for index in range(len(self))]
        index_of = {video.name: index for index, video in enumerate(videos)}
        self._video_of_image = np.array([index_of[place[0]] for place in places if place])  # [I]
        self._number_of_image = np.array([place[1] for place in places if place])  # [I]
        self._keep_frames(videos)
        self._check_sizes()
        self._index_tracks()

    def _keep_frames(self, videos: Sequence[RawVideo]) -> None:
        """Without the pictures that the check has dropped."""
        annotated = {image.path for video in videos for image in video.images}
        gone = annotated - set(self._paths.tolist())
        frames = [[(number, path) for number, path in enumerate(video.frames) if path not in gone] for video in videos]
        self._frame_paths = np.array([path for video in frames for _, path in video])  # [F]
        self._frame_numbers = np.array([number for video in frames for number, _ in video])  # [F] within its video
        self._frame_starts = np.cumsum([0, *map(len, frames)])  # [V + 1]

    def _check_sizes(self) -> None:
        for video in np.unique(self._video_of_image):
            rows = np.flatnonzero(self._video_of_image == video)
            other = rows[(self._sizes[rows] != self._sizes[rows[0]]).any(axis=1)]
            if len(other):
                first, second = ("{1} x {0}".format(*self._sizes[row]) for row in (rows[0], other[0]))
                raise DataError(
                    f"{self.name}: video {self._video_names[video]}: frames of one size are expected, but frame "
                    f"{self._number_of_image[rows[0]]} is {first} and frame {self._number_of_image[other[0]]} is "
                    f"{second} (w x h); scale them to one size, or make two videos of them"
                )

    def _index_tracks(self) -> None:
        """What `_tubes` looks up: the boxes of all objects in the order of their keys, which are distinct numbers."""
        if self.objects.track_ids is None:
            return
        image = self.image_of_object
        self._tracks = np.unique(self.objects.track_ids)
        keys = self._track_keys(self._video_of_image[image], self.objects.track_ids, self._number_of_image[image])
        order = np.argsort(keys)
        self._keys, self._key_boxes = keys[order], self.objects.boxes[order]
        twice = np.flatnonzero(np.diff(self._keys) == 0)
        if len(twice):
            row = order[twice[0]]
            raise DataError(
                f"{self.name}: {self.image_id(int(image[row]))}: track {self.objects.track_ids[row]} has two boxes in "
                "this frame; give them two tracks"
            )

    def _track_keys(self, videos: np.ndarray, tracks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        keys: np.ndarray = (videos * len(self._tracks) + np.searchsorted(self._tracks, tracks)) * MAX_FRAMES + numbers
        return keys

    @override
    def take(self, indices: Sequence[int]) -> ClipDataset:
        part = super().take(indices)
        assert isinstance(part, ClipDataset)
        part._video_of_image = self._video_of_image[list(indices)]
        part._number_of_image = self._number_of_image[list(indices)]
        return part

    def every(self, step: int) -> ClipDataset:
        """With only those images whose number in their video is a multiple of `step`."""
        indices = np.flatnonzero(self._number_of_image % step == 0)
        part = self.take(indices.tolist())
        part.notes = self.notes.copy()
        part.notes["annotated frame passed over"] += len(self) - len(part)
        part.summary = part._summarise()
        return part

    def lengths(self) -> np.ndarray:
        """int64 `[V]`: frames of each video."""
        return np.diff(self._frame_starts)

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
        start, end = self._frame_starts[self._video_of_image[index] :][:2].tolist()
        place = int(np.searchsorted(self._frame_numbers[start:end], self._number_of_image[index]))
        places = clip.positions(place, end - start)
        pictures = {place: sample.image}
        for other in places:
            if other not in pictures:
                pictures[other] = self._picture(str(self._frame_paths[start + other]), sample)
        image = np.stack([pictures[other] for other in places])
        objects = sample.objects
        if clip.tubes:
            objects = self._with_tubes(objects, index, self._frame_numbers[start:end][places])
        return replace(sample, image=image, objects=objects)

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
        """With their boxes in the frames of these numbers; an object that is not in all of them is ignored."""
        if objects.track_ids is None:
            raise DataError(
                f"{self.name}: this detector learns tubes, and the objects have no tracks; number the same object "
                "alike in all frames"
            )
        tubes = np.repeat(objects.boxes[:, None], len(numbers), axis=1)
        video = np.full((len(objects), 1), self._video_of_image[index])
        keys = self._track_keys(video, objects.track_ids[:, None], numbers[None])
        rows = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        there = self._keys[rows] == keys
        tubes[there] = self._key_boxes[rows[there]]
        return replace(objects, tubes=tubes, ignore=objects.ignore | ~there.all(axis=1))

    @override
    def _lacking(self) -> list[str]:
        videos = {place[0] for place in map(split_frame_id, self._image_ids) if place}
        return [f"frames of {plural(len(videos), 'video')}", *super()._lacking()]
