"""Random weights whose predictions differ from place to place, as those of a trained detector do.

Plain random weights give every place of a picture nearly the same scores. Which box of a suppression survives is then a
matter of rounding, and two runtimes that compute the same share no detection.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detkit.detectors.detector import AnyDetector
from detkit.structures import Batch

Aim = tuple[float, float]  # mean and standard deviation of an output over places and pictures
LOGIT: Aim = (0.0, 2.0)
OBJECTNESS: Aim = (-6.0, 2.0)  # of YOLO; as of a trained one few places look like an object
BACKGROUND_ODDS = 100.0  # of the background to all classes together
DELTA: Aim = (0.0, 0.2)
WEIGHTED_DELTA: Aim = (0.0, 1.0)  # the coders of SSD and of regions divide by 5 and 10, DETR's boxes pass a sigmoid
SHARE: Aim = (0.5, 0.3)  # YOLOv1's scores and centres have no sigmoid
ROOT: Aim = (0.4, 0.1)  # YOLOv1's roots of sides, in those of the canvas


@torch.no_grad()
def spread(detector: AnyDetector, batch: Batch) -> None:
    """Gives norms the statistics of this batch, and the last layers of all branches outputs of the aims above.

    The last layer of a branch keeps its directions: it is scaled as a whole, and each output is moved to its mean.
    """
    hooks = [
        _once(module.register_forward_pre_hook, _take_statistics)
        for module in detector.modules()
        if hasattr(module, "running_mean")
    ]
    for layer, aims in _last_layers(detector):
        if not layer.weight.any():  # a regressor that moves nothing before training
            nn.init.xavier_uniform_(layer.weight)
        hooks.append(_once(layer.register_forward_hook, _scale_to(aims)))
    detector.eval()(batch)
    for hook in hooks:
        hook.remove()


def _once(register: Callable[[Callable[..., Any]], RemovableHandle], action: Callable[..., Any]) -> RemovableHandle:
    """Runs `action` the first time that a module is called."""

    def hook(*arguments: Any) -> Any:
        handle.remove()
        return action(*arguments)

    handle = register(hook)
    return handle


def _take_statistics(norm: Any, inputs: tuple[Tensor]) -> None:
    """Of a batch norm, frozen or not.

    Most activations are positive with this bias, so the network is nearly linear. With a bias of 0 a ReLU drops half of
    what reaches it, and each layer amplifies the rounding of those before it: the logits that PyTorch gives in float32
    are up to 7e-4 from those in float64 (SSDLite320), 6e-5 with this one.
    """
    norm.bias.fill_(1.0)
    others = (0, *range(2, inputs[0].ndim))  # of clips, time is one of them
    norm.running_mean.copy_(inputs[0].mean(dim=others))
    norm.running_var.copy_(inputs[0].var(dim=others, correction=0))


def _last_layers(detector: AnyDetector) -> Iterator[tuple[Any, Sequence[Aim]]]:
    """The last layer of each branch, and the aims of its outputs, repeated as often as they fit."""
    num_classes, head = len(detector.categories), getattr(detector, "head", None)
    boxes_per_cell = getattr(getattr(head, "config", None), "boxes_per_cell", 1)
    mean_of_exp = math.exp(LOGIT[0] + LOGIT[1] ** 2 / 2)  # of a normal distribution
    background = math.log(BACKGROUND_ODDS * num_classes * mean_of_exp), LOGIT[1]
    background_first = [background, *[LOGIT] * num_classes]
    softmax = isinstance(getattr(head, "classifier", None), nn.ModuleList) and not hasattr(head, "objectness")  # SSD's
    aims: dict[str, Sequence[Aim]] = {
        r"roi\.(stages\.\d\.)?classifier": background_first,
        r"head\.classifier": background_first if softmax else [LOGIT],
        r"head\.classifiers": [LOGIT],
        r"head\.objectness": [OBJECTNESS],  # YOLOX's
        r"rpn\.objectness|head\.proposer\.classifier": [LOGIT],
        r"rpn\.deltas|head\.(decoder|proposer)\.regressor|head\.(first_regressor|regressors)": [DELTA],
        r"roi\.(stages\.\d\.)?regressor|head\.regressor": [WEIGHTED_DELTA],
        r"head\.predict": [DELTA] * 4 + [OBJECTNESS] + [LOGIT] * num_classes,
        r"head\.output": [SHARE] * (num_classes + boxes_per_cell) + [SHARE, SHARE, ROOT, ROOT] * boxes_per_cell,
    }
    for name, module in detector.named_modules():
        for pattern, of_outputs in aims.items():
            if re.fullmatch(pattern, name):
                for branch in module if isinstance(module, nn.ModuleList) else [module]:
                    yield [part for part in branch.modules() if isinstance(part, nn.Conv2d | nn.Linear)][-1], of_outputs


def _scale_to(aims: Sequence[Aim]) -> Callable[..., Tensor]:
    def hook(layer: Any, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            channels, columns = 1, outputs.movedim(1, -1).flatten(0, -2)
        else:  # of a transformer's layers `[L, B, Q, C]` the last alone: they differ more than its queries
            channels, columns = outputs.ndim - 1, (outputs[-1] if outputs.ndim == 4 else outputs).flatten(0, -2)
        means = columns.mean(dim=0)
        target = torch.tensor(aims).repeat(len(means) // len(aims), 1)
        factors = target[:, 1] / (columns - means).std(correction=0)
        shifts = target[:, 0] - means * factors
        layer.weight.mul_(factors.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.mul_(factors).add_(shifts)
        shape = [-1 if dim == channels else 1 for dim in range(outputs.ndim)]
        return outputs * factors.view(shape) + shifts.view(shape)

    return hook
