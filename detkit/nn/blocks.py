"""Layers with weights that more than one head or neck uses."""

from __future__ import annotations

from typing import Literal

from torch import nn


def with_norm(layer: nn.Conv2d | nn.Linear, norm: Literal["none", "gn"]) -> nn.Module:
    """The layer itself, or the layer and a group norm of 32 groups (Wu and He, arXiv 1803.08494).

    Without pre-trained weights it is the normalisation of neck and heads that lets a detector learn as fast (He et al.,
    arXiv 1811.08883); unlike batch norm it does not care how many images or regions there are.
    """
    if norm == "none":
        return layer
    channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    return nn.Sequential(layer, nn.GroupNorm(32, channels))
