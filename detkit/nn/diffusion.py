"""Diffusion of boxes: how noise is added to them, and one step back (DDPM, arXiv 2006.11239; DDIM, arXiv 2010.02502).

Legend: B images, N boxes of an image, T times of the schedule, from little noise to almost nothing else.
Boxes are cxcywh in parts of the picture's sides. A diffused box is such a box on the scale of the noise, in
[-scale, scale]. The alpha bar of a time is the share of the box in the variance, 1 - alpha bar that of the noise.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.hungarian import SetTargets

SCHEDULE_OFFSET = 0.008  # of the cosine, so that the first times are not without noise
MAX_BETA = 0.999
MIN_SIDE = 1e-4  # of boxes that are drawn, in parts of the picture's


class DiffusionConfig(Config):
    """Defaults: DiffusionDet (arXiv 2211.09788, section 4.1 and table 3a)."""

    times: int = Field(1000, ge=1)
    scale: float = Field(2.0, gt=0)  # of boxes beside noise with a standard deviation of 1 (signal-to-noise ratio)


def cosine_alpha_bars(times: int) -> Tensor:
    """float64 `[T]`: alpha bars that fall as the square of a cosine (arXiv 2102.09672, equation 17)."""
    at = torch.arange(times + 1, dtype=torch.float64, device="cpu") / times
    cosine = torch.cos((at + SCHEDULE_OFFSET) / (1 + SCHEDULE_OFFSET) * math.pi / 2) ** 2
    betas = (1 - cosine[1:] / cosine[:-1]).clamp(0, MAX_BETA)
    return (1 - betas).cumprod(dim=0)


def scaled_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Boxes `[..., 4]` on the scale of the noise."""
    return (2 * boxes - 1) * scale


def unscaled_boxes(diffused: Tensor, scale: float) -> Tensor:
    """The boxes `[..., 4]`, all of their values in [0, 1], that diffused ones are."""
    return (diffused.clamp(-scale, scale) / scale + 1) / 2


def diffuse(start: Tensor, noise: Tensor, alpha_bars: Tensor) -> Tensor:
    """`[B, N, 4]`: scaled boxes with the noise of a time (arXiv 2006.11239, equation 4).

    start, noise  `[B, N, 4]`
    alpha_bars    `[B]`: of the time of each image
    """
    share = alpha_bars[:, None, None]
    return share.sqrt() * start + (1 - share).sqrt() * noise


def ddim_step(
    noisy: Tensor, start: Tensor, alpha_bar: Tensor, next_alpha_bar: Tensor, noise: Tensor, eta: float = 1.0
) -> Tensor:
    """From a time to one of less noise, `[..., 4]` (arXiv 2010.02502, equations 12 and 16).

    noisy      scaled boxes at the time
    start      what they would be without noise, by prediction
    alpha_bar  of the time, and of the next one; scalars
    noise      drawn anew, with a standard deviation of 1
    eta        0: nothing is drawn anew; 1: as much as DDPM does
    """
    predicted = (noisy - alpha_bar.sqrt() * start) / (1 - alpha_bar).sqrt()
    # of the variance of the noise, what DDPM leaves; as a product, so that no difference of almost equal numbers is < 0
    left = alpha_bar * (1 - next_alpha_bar) / (next_alpha_bar * (1 - alpha_bar))
    drawn = eta**2 * (1 - left)
    noise = (1 - drawn).sqrt() * predicted + drawn.sqrt() * noise
    return next_alpha_bar.sqrt() * start + (1 - next_alpha_bar).sqrt() * noise


def sampling_times(times: int, steps: int) -> list[int]:
    """The time of each of at most T steps, evenly spaced and rounded down, the last time first."""
    return [times * step // steps - 1 for step in range(steps, 0, -1)]


def padded_boxes(objects: SetTargets, count: int) -> Tensor:
    """`[B, N, 4]`: the boxes of each image and drawn ones, N in all (arXiv 2211.09788, section 3.3).

    Values of drawn boxes are normal around .5 with a standard deviation of 1/6. An image without objects has one box
    as large as itself. One with more than N has some of them, drawn.
    """
    images = []
    for boxes in torch.split(objects.boxes, objects.counts):
        if not len(boxes):
            boxes = boxes.new_tensor([[0.5, 0.5, 1.0, 1.0]])
        boxes = boxes[torch.randperm(len(boxes), device=boxes.device)[:count]]
        drawn = torch.randn(count - len(boxes), 4, device=boxes.device, dtype=boxes.dtype) / 6 + 0.5
        center, sides = drawn.chunk(2, dim=1)
        images.append(torch.cat([boxes, torch.cat([center, sides.clamp(min=MIN_SIDE)], dim=1)]))
    return torch.stack(images)
