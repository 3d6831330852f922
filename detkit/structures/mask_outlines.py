"""The outlines of masks as polygons, for files that have nothing else.

Legend: h x w pixels of a window, x and y in px.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from detkit.structures.masks import EncodedMasks


def mask_outline(masks: EncodedMasks, index: int, max_error: float = 0.0) -> np.ndarray | None:
    """The outline of one mask as a single polygon, float64 `[points, 2]`; None without a pixel of one.

    max_error  px by which the outline of pixels may leave their borders, which makes it much shorter
    A polygon stays as it is. Several are joined as they are if that draws the same pixels; else, and for run lengths,
    the outline goes along the borders of the pixels, of its parts and its holes.
    """
    mask = masks.decode(index)
    if not mask:
        return None
    if isinstance(mask, list) and len(mask) == 1:
        return mask[0]
    if isinstance(mask, list):
        joined = join_polygons(mask)
        alone = EncodedMasks.of([[joined]], [tuple(masks.sizes[index].tolist())])
        if (alone.bitmap(0) == masks.bitmap(index)).all():
            return joined
    crop = masks[[index]].crops()
    polygons, _ = outlines(crop.crop(0))
    if max_error:
        polygons = [_shortened(polygon, max_error) for polygon in polygons]
    return join_polygons(polygons) + crop.windows[0, :2] if polygons else None


def outlines(mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
    """The polygons, float64 `[points, 2]` x, y, along the borders of a mask's pixels, and whether one is of a hole.

    mask  bool `[h, w]`
    Drawn again as COCO draws them, with holes cut out, they give the same pixels.
    """
    # OpenCV goes through the middles of pixels. Of pixels three wide, these are a step from the border on either side,
    # so that the first and the third of them stand for the left and right border of the pixel.
    large = np.repeat(np.repeat(mask.astype(np.uint8), 3, axis=0), 3, axis=1)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    has_hole = hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())
    return [_at_borders(contour[:, 0].astype(np.float64)) for contour in contours], has_hole


def _at_borders(points: np.ndarray) -> np.ndarray:
    corners = points // 3 + (points % 3) / 2
    differs = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
    return np.asarray(corners[differs])


def _shortened(polygon: np.ndarray, max_error: float) -> np.ndarray:
    points = cv2.approxPolyDP(polygon.astype(np.float32)[:, None], max_error, True)[:, 0]
    return points.astype(np.float64) if len(points) >= 3 else polygon


def join_polygons(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon of several, which are joined where they are nearest, by lines there and back that have no area.

    Where polygons overlap, or one lies in another, the common part is outside.
    """
    from scipy.spatial import cKDTree

    joined, *others = polygons
    for polygon in others:
        distances, places = cKDTree(joined).query(polygon)
        there = int(np.argmin(distances))
        here = int(places[there])
        turned = np.roll(polygon, -there, axis=0)
        joined = np.concatenate([joined[: here + 1], turned, turned[:1], joined[here:]])
    return joined
