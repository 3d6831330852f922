"""Pictures that look alike: a perceptual hash proposes pairs, the correlation of their details decides.

Legend: P pictures, Q of which alike ones are sought; thumbnails are uint8 `[P, SIDE, SIDE]` grey.
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 32  # px of a thumbnail
LOW = 8  # frequencies an axis that the hash reads: 64 bits
MAX_BITS = 10  # in which the hashes of two alike pictures may differ
AROUND = 5  # px of a thumbnail whose mean is taken off: light and floor are alike in pictures of different objects
MIN_CORRELATION = 0.5  # of what is left
FLAT = 1.0  # standard deviation of what is left, in grey levels, below which a picture is like no other
BLOCK = 512  # pictures that are compared with all others at once


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 `[SIDE, SIDE]` grey of a picture `[H, W, 3]` RGB."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def hash_bits(thumbnails: np.ndarray) -> np.ndarray:
    """float32 `[P, 64]` of 1 and -1: whether each low frequency of the cosine transform is above their median."""
    low = [cv2.dct(each.astype(np.float32))[:LOW, :LOW].ravel() for each in thumbnails]
    spectrum = np.array(low, np.float32).reshape(-1, LOW * LOW)
    above = spectrum > np.median(spectrum, axis=1, keepdims=True)
    return np.asarray(np.where(above, np.float32(1), np.float32(-1)))


def first_alike(queries: np.ndarray, pool: np.ndarray | None = None) -> np.ndarray:
    """int64 `[Q]`: for each thumbnail of `queries` the first of `pool` that looks like it, or -1.

    pool  thumbnails `[P, SIDE, SIDE]`; None: the queries that come before each
    """
    within = pool is None
    pool = queries if pool is None else pool
    query_bits, pool_bits = hash_bits(queries), hash_bits(pool)
    query_details, pool_details = _normalised(queries), _normalised(pool)
    result = np.full(len(queries), -1)
    for start in range(0, len(queries), BLOCK):
        end = min(start + BLOCK, len(queries))
        reach = end if within else len(pool)
        # A dot product of signs is the bits that agree less those that differ.
        near = query_bits[start:end] @ pool_bits[:reach].T >= LOW * LOW - 2 * MAX_BITS
        if within:
            near &= np.arange(reach) < np.arange(start, end)[:, None]
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        correlation = query_details[start + rows] @ pool_details[columns].T
        alike = (correlation >= MIN_CORRELATION) & near[np.ix_(rows, columns)]
        matched = alike.any(axis=1)
        if matched.any():
            result[start + rows[matched]] = columns[alike[matched].argmax(axis=1)]
    return result


def _normalised(thumbnails: np.ndarray) -> np.ndarray:
    """float32 `[P, SIDE * SIDE]`: details of mean 0 and length 1, so that a dot product is a correlation; 0 if flat."""
    pixels = [each.astype(np.float32) for each in thumbnails]
    details = [each - cv2.blur(each, (AROUND, AROUND), borderType=cv2.BORDER_REFLECT) for each in pixels]
    rows = np.array(details, np.float32).reshape(-1, SIDE * SIDE)
    rows -= rows.mean(axis=1, keepdims=True)
    rows[rows.std(axis=1) < FLAT] = 0
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))
