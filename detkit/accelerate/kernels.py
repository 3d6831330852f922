"""The compiled kernels that `detkit.ops.dispatch` offers to ops and metrics, by name. Importing this imports numba."""

from numba.core.errors import NumbaError as CompilationError

from detkit.accelerate.coco import compute_curves
from detkit.accelerate.deformable_attention import deformable_attention
from detkit.accelerate.iou import box_iou
from detkit.accelerate.nms import suppress
from detkit.accelerate.roi_align import roi_align
from detkit.accelerate.winograd import convolution3x3

__all__ = [
    "CompilationError",
    "box_iou",
    "compute_curves",
    "convolution3x3",
    "deformable_attention",
    "roi_align",
    "suppress",
]
