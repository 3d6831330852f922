"""`select_detections` for tubelets: suppression is by the mean overlap over the frames of a clip.

Legend: B clips, N candidates of a clip, T frames, K classes, C candidates of a class that enter the suppression, D rows
of a clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.nn.selection import MIN_SIZE, DetectionRows, SelectionConfig, best_rows
from detkit.ops.boxes import clip_to_windows, valid_boxes
from detkit.ops.tubelets import suppress_tubelets


def select_tubelets(tubelets: Tensor, scores: Tensor, windows: Tensor, config: SelectionConfig) -> DetectionRows:
    """Clips, takes scores above the threshold and the best of each class, suppresses within each class, and cuts.

    A tubelet that is degenerate in one of its frames is no candidate. The boxes of the rows are those of the first
    frame.

    tubelets  `[B, N, T, 4]` xyxy in input px
    scores    `[B, N, K]`
    windows   `[B, 4]` xyxy in input px: where each clip lies on its canvas
    """
    tubelets = clip_to_windows(tubelets, windows[:, None, None])
    valid = valid_boxes(tubelets, MIN_SIZE).all(dim=2)
    likely = (scores > config.score_threshold) & valid[..., None]
    limit = min(config.top_k_per_class or scores.shape[1], scores.shape[1])
    if not torch.compiler.is_compiling():
        limit = min(limit, max(1, int(likely.sum(dim=1).max())))
    best, candidates = torch.where(likely, scores, -torch.inf).transpose(1, 2).topk(limit, dim=2)  # [B, K, C]
    groups = _take(tubelets, candidates.flatten(1)).reshape(*best.shape, *tubelets.shape[2:])
    if config.nms_threshold is not None:
        best = torch.where(suppress_tubelets(groups, config.nms_threshold), best, -torch.inf)
    best, rows, filled = best_rows(best.flatten(1), config.max_detections)
    tubes = torch.where(filled[..., None, None], _take(groups.flatten(1, 2), rows), 0.0).float()
    labels = torch.where(filled, rows // limit, 0)
    return DetectionRows(tubes[:, :, 0], torch.where(filled, best, 0.0).float(), labels, filled.sum(dim=1), tubes=tubes)


def _take(tubelets: Tensor, rows: Tensor) -> Tensor:
    """Of `[B, N, T, 4]` those of rows `[B, M]`: `[B, M, T, 4]`."""
    return tubelets.gather(1, rows[..., None, None].expand(-1, -1, *tubelets.shape[2:]))
