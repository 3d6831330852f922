"""The complete classifiers that backbones are the trunks of: images `[B, C, H, W]` -> scores `[B, K]`.

LeNet-5 and CaffeNet are implemented here, all others are torchvision's.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict

import torch
from torch import Tensor, nn

from detkit.nn.backbones.alexnet import caffenet_trunk
from detkit.nn.backbones.lenet import LeNetConfig, lenet_activation, lenet_trunk


def build_classifier(name: str, num_classes: int | None = None, *, aux: bool = False) -> nn.Module:
    """A classifier with random weights.

    name         lenet5 (1998), lenet5_dense, caffenet, or a classifier that torchvision has by name
    num_classes  None: as published, 10 for LeNet-5 and 1000 for the others
    aux          build the auxiliary classifiers of googlenet and inception_v3, which then return a tuple in training

    LeNet-5 takes images `[B, 1, 32, 32]`, CaffeNet `[B, 3, 227, 227]`.
    """
    if aux and name not in ("googlenet", "inception_v3"):
        raise ValueError(f"aux: expected googlenet or inception_v3, which have auxiliary classifiers, found {name}")
    match name:
        case "lenet5":
            return _lenet(LeNetConfig(connections="sparse"), num_classes or 10)
        case "lenet5_dense":
            return _lenet(LeNetConfig(), num_classes or 10)
        case "caffenet":
            return _caffenet(num_classes or 1000)
        case _:
            return _torchvision(name, num_classes or 1000, aux)


class EuclideanRBF(nn.Module):
    """Minus the squared distance between features `[B, F]` and a fixed code of -1 and 1 for each class: `[B, K]`.

    The codes of the paper are images of characters of 7 x 12 pixels; these are random, and the same each time.
    """

    codes: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        bits = torch.randint(0, 2, (num_classes, in_features), generator=torch.Generator().manual_seed(1998))
        self.register_buffer("codes", bits * 2.0 - 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.codes).square().sum(-1)


def _lenet(config: LeNetConfig, num_classes: int) -> nn.Sequential:
    sparse = config.connections == "sparse"
    layers = {
        **lenet_trunk(config, in_channels=1),
        "c5": nn.Sequential(nn.Conv2d(config.widths[1], 120, 5), lenet_activation(config)),
        "flatten": nn.Flatten(),
        "f6": nn.Sequential(nn.Linear(120, 84), lenet_activation(config)),
        "output": EuclideanRBF(84, num_classes) if sparse else nn.Linear(84, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _caffenet(num_classes: int) -> nn.Sequential:
    layers = {
        **caffenet_trunk(),
        "flatten": nn.Flatten(),
        "fc6": nn.Linear(256 * 6 * 6, 4096),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout(0.5),
        "fc7": nn.Linear(4096, 4096),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout(0.5),
        "fc8": nn.Linear(4096, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def _torchvision(name: str, num_classes: int, aux: bool) -> nn.Module:
    from torchvision import models  # seconds to import, so not at the head

    known = models.list_models(module=models)
    if name not in known:
        known = ["lenet5", "lenet5_dense", "caffenet", *known]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise ValueError(f"{name!r} is not a classifier; known: {', '.join(close or known)}")
    options = {"aux_logits": aux, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return network
