"""A trained detector on pictures, from Python; `detkit.engine.prediction` does the rest of the command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils._pytree import tree_leaves

from detkit.config import UserError
from detkit.data.collate import collate
from detkit.data.pictures import decode_picture, read_picture, to_8_bits
from detkit.data.transforms import resize_sample
from detkit.detectors.detector import AnyDetector
from detkit.engine.proposal_search import ProposalSource, source_of
from detkit.structures import Clip, Detections, Objects, Sample

AnyImage: TypeAlias = str | Path | bytes | np.ndarray | Image.Image | Tensor


def predict(
    detector: AnyDetector,
    images: Sequence[np.ndarray],
    proposals: ProposalSource | None = None,
    *,
    scale: float = 1.0,
) -> list[Detections]:
    """Detections of each picture, uint8 `[H, W, 3]` RGB, in its own pixels. Runs on the device of the detector.

    A detector of clips takes `[T, H, W, 3]`, and detects in the frame that the clip is of.

    `proposals` is for a detector that is given them; None: the source of its configuration, built at every call.
    `scale` multiplies the size of the detector's input.

    Raises UserError for a picture of another form or without pixels, and if the outputs of the network are nan.
    """
    for index, image in enumerate(images):
        check_image(index, image, detector.input.clip)
    if not len(images):
        return []
    return [_ordinary(detections) for detections in _predict(detector, images, proposals, scale)]


@torch.inference_mode()
def _predict(
    detector: AnyDetector, images: Sequence[np.ndarray], proposals: ProposalSource | None, scale: float
) -> list[Detections]:
    detector.eval()
    proposals, clip = proposals or source_of(detector), detector.input.clip
    items = []
    for index, image in enumerate(images):
        frame = image[clip.before] if clip else image
        sample = Sample(image, Objects.empty(), index, proposals.of_picture(frame) if proposals else None)
        info = detector.input.place(index, sample.size, scale=scale)
        items.append((resize_sample(sample, info.input_size), info))
    batch = collate(items, detector.input.stride, with_targets=False).to(detector.input.mean.device)
    outputs = detector(batch)
    for value in tree_leaves(outputs):
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
            which = "the picture" if len(images) == 1 else f"one of {len(images)} pictures"
            raise UserError(f"the outputs of the network are nan for {which}: its weights are of no use")
    return detector.postprocess(outputs, batch.infos)


def _ordinary(detections: Detections) -> Detections:
    """With tensors that can be changed in place and differentiated, which those of inference mode cannot."""
    return replace(detections, objects=detections.objects.map(torch.clone))


def predict_each(detector: AnyDetector, images: Iterable[AnyImage]) -> Iterator[Detections]:
    """Detections of one picture after the other; see `as_image` and `detkit.predict`."""
    proposals = source_of(detector)
    for index, image in enumerate(images):
        pixels = as_image(image)
        check_image(index, pixels, detector.input.clip)
        yield predict(detector, [pixels], proposals=proposals)[0]


def as_image(image: AnyImage) -> np.ndarray:
    """A file of a picture or its content, an image of Pillow, grey `[H, W]` or a tensor `[3, H, W]` -> `[H, W, 3]` RGB.

    Anything else is returned as it is, for `check_image`.
    """
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, bytes):
        return decode_picture(image, name="in these bytes")
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):  # more than 8 bits
            return as_image(to_8_bits(np.asarray(upright)))
        return np.array(upright.convert("RGB"))
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3:
        return np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0))
    if isinstance(image, np.ndarray) and (image.ndim == 2 or image.shape[2:] == (1,)):
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image  # type: ignore[return-value]


def check_image(index: int, image: object, clip: Clip | None = None) -> None:
    """Raises UserError, which names the picture by its index, unless it is uint8 `[H, W, 3]` with pixels.

    clip  what the detector takes instead; None: it takes pictures
    """
    if clip is not None:
        _check_clip(index, image, clip)
        return
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if image.size:
            return
        raise UserError(f"image {index}: expected at least one pixel, found {image.shape[0]} x {image.shape[1]}")
    found, fix = type(image).__name__, "give a file, an image of Pillow, or such pixels"
    if isinstance(image, np.ndarray | Tensor):
        found = f"{found} {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
        if image.ndim == 4:
            fix = "give a batch as a list of its images"
        elif image.ndim == 3 and image.shape[2] == 4:
            fix = "leave the fourth channel out: image[..., :3]"
        elif str(image.dtype).removeprefix("torch.") != "uint8":
            fix = "convert it to uint8; values in [0, 1] are multiplied by 255 first"
    raise UserError(f"image {index}: expected uint8 [H, W, 3] RGB, found {found}; {fix}")


def _check_clip(index: int, image: object, clip: Clip) -> None:
    """As `check_image`, for uint8 `[T, H, W, 3]`."""
    pixels = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size and image.ndim == 4
    if pixels and (image.shape[0], image.shape[3]) == (clip.frames, 3):  # type: ignore[attr-defined]
        return
    found = list(image.shape) if isinstance(image, np.ndarray | Tensor) else type(image).__name__
    raise UserError(
        f"image {index}: this detector takes clips of {clip.frames} frames, uint8 [{clip.frames}, H, W, 3] RGB, found "
        f"{found}; give it a video file, or such a clip"
    )
