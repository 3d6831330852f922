"""The data that travels between rooms.

Legend: B images in a batch, N objects of one image, P keypoints of an object, H x W pixels, K classes,
T frames of a clip.
Boxes are float32 `[N, 4]` xyxy in continuous absolute pixels (width = x2 - x1), sizes are `(h, w)`, labels are int64 in
`[0, K)` without a background class. Every structure is frozen and checks shapes and dtypes when it is made.
"""

from detkit.structures.batches import Batch, GroundTruth, ImageId, ImageInfo, Sample, Size, Target
from detkit.structures.categories import Categories, KeypointCategories
from detkit.structures.clips import Clip
from detkit.structures.detections import Detections
from detkit.structures.masks import EncodedMasks, MaskCrops
from detkit.structures.objects import COLUMNS, ArrayT, Column, Objects, OtherT

__all__ = [
    "COLUMNS",
    "ArrayT",
    "Batch",
    "Categories",
    "Clip",
    "Column",
    "Detections",
    "EncodedMasks",
    "GroundTruth",
    "ImageId",
    "ImageInfo",
    "KeypointCategories",
    "MaskCrops",
    "Objects",
    "OtherT",
    "Sample",
    "Size",
    "Target",
]
