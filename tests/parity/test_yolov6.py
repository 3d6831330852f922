"""YOLOv6 beside luxonis-train (Apache-2.0): its blocks, its head, its assigners and its losses.

DETKIT_LUXONIS names a folder of `pip install --no-deps --target FOLDER luxonis-train==0.6.0`. Of what the package needs
besides, its modules import names alone here, so that empty modules stand in for it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.backbones.efficient_rep import Pools
from detkit.nn.heads.yolo_v6 import YOLOv6Head, YOLOv6HeadConfig, YOLOv6Outputs
from detkit.nn.reparam import FORMS
from detkit.ops.iou import scylla_box_iou
from detkit.structures import Objects, Target
from tests.parity.conftest import Ledger

REFERENCE = "luxonis-train"
NUM_CLASSES = 5
CANVAS = (96, 128)
LEVELS = {8: (12, 16), 16: (6, 8), 32: (3, 4)}
OUTSIDE = ("loguru", "luxonis_ml", "luxonis_ml.typing", "luxonis_train.tasks")
ROOMS = ("", ".nodes", ".utils", ".assigners", ".attached_modules", ".attached_modules.losses")
KEYS = [  # of its blocks -> of detkit's
    (r"branches\.0\.", "large."),
    (r"scale_layer\.", "small."),
    (r"skip_layer\.", "identity."),
    (r"rep_stack\.(\d+)\.conv_1\.", r"blocks.\1.first."),
    (r"rep_stack\.(\d+)\.conv_2\.", r"blocks.\1.second."),
    (r"rep_stack\.(\d+)\.alpha", r"blocks.\1.factor"),
]


@pytest.fixture(scope="module")
def luxonis() -> Iterator[Any]:
    """Imports a module of the package by its name, without what its parents import."""
    folder = os.environ.get("DETKIT_LUXONIS")
    if not folder:
        pytest.skip("DETKIT_LUXONIS is not set: a folder with luxonis-train")
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.setitem(sys.modules, name, MagicMock())
        for name in ("any_not_none", "all_not_none"):  # of keypoints, which are None
            setattr(sys.modules["luxonis_ml.typing"], name, lambda values: False)
        patch.setitem(sys.modules, "typeguard", MagicMock(typechecked=lambda function: function))
        for name in ROOMS:
            parent = ModuleType(f"luxonis_train{name}")
            parent.__path__ = [str(Path(folder, "luxonis_train", *name.split(".")))]
            patch.setitem(sys.modules, parent.__name__, parent)
        patch.setitem(sys.modules, "luxonis_train.attached_modules.losses.base_loss", MagicMock(BaseLoss=object))

        def load(name: str) -> Any:
            return import_module(f"luxonis_train.{name}")

        boxes = load("utils.boundingbox")
        vars(sys.modules["luxonis_train.utils"]).update(vars(boxes), compute_pose_oks=None)
        assigners = {
            "ATSSAssigner": load("assigners.atss_assigner").ATSSAssigner,
            "TaskAlignedAssigner": load("assigners.tal_assigner").TaskAlignedAssigner,
        }
        vars(sys.modules["luxonis_train.assigners"]).update(assigners)
        vars(sys.modules["luxonis_train.nodes"]).update(EfficientBBoxHead=object)
        yield load
    for name in [name for name in sys.modules if name.startswith("luxonis_train.")]:
        del sys.modules[name]  # they hold the empty modules


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def enliven(module: nn.Module) -> nn.Module:
    """Norms as after a training, of YOLOv6's eps."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            norm.running_mean.normal_(std=0.2)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return module.eval()


def converted(module: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """Its weights by detkit's names; `names`: the start of its names -> of detkit's."""
    state = {}
    for key, value in module.state_dict().items():
        start = next((start for start in names if key.startswith(start)), "")
        key = names.get(start, "") + key.removeprefix(start)
        for pattern, name in KEYS:
            key = re.sub(pattern, name, key)
        state[key.replace(".bn.", ".norm.")] = value
    return state


def test_blocks(luxonis: Any, compare: Ledger) -> None:
    blocks, x, pairs = luxonis("nodes.blocks"), torch.randn(2, 8, 14, 14), []
    single = enliven(blocks.GeneralReparameterizableBlock(8, 8))
    strided = enliven(blocks.GeneralReparameterizableBlock(8, 12, stride=2))
    csp = enliven(blocks.CSPStackRepBlock(8, 12, 4, 2 / 3))
    pools = enliven(blocks.SpatialPyramidPoolingBlock(8, 8))
    merged = {"conv_1": "main", "conv_2": "side", "conv_3": "merge"}
    rep, csp_rep = FORMS["rep"], FORMS["csp_rep"]
    for theirs, own, names in (
        (single, rep.block(8, 8), {}),
        (strided, rep.block(8, 12, 2), {}),
        (csp, csp_rep.stage(8, 12, 4), merged),
        (pools, Pools(8, csp=False, act="relu"), {"conv1": "before.0", "conv2": "after.0"}),
    ):
        own.load_state_dict(converted(theirs, names))
        pairs.append((own.eval()(x), theirs(x)))
    compare("YOLOv6", REFERENCE, "blocks", pairs)


def make_outputs(head: YOLOv6Head, batch: int) -> YOLOv6Outputs:
    """Boxes that are near to the size of objects, and lively scores."""
    features = [torch.randn(batch, 8, *size) for size in LEVELS.values()]
    outputs = head(features, torch.tensor([CANVAS] * batch), CANVAS)
    sides = (1.5 + torch.randn_like(outputs.sides)).requires_grad_()
    return YOLOv6Outputs(sides, torch.randn_like(outputs.logits).requires_grad_(), outputs.points, outputs.strides)


def make_head(**fields: Any) -> YOLOv6Head:
    return YOLOv6Head(YOLOv6HeadConfig(**fields), [8] * len(LEVELS), list(LEVELS), NUM_CLASSES).eval()


def test_head(luxonis: Any, compare: Ledger) -> None:
    head, blocks = make_head(), luxonis("nodes.blocks")
    features = [torch.randn(2, 8, *size) for size in LEVELS.values()]
    logits, sides = [], []
    for level, feature in enumerate(features):
        theirs = enliven(blocks.EfficientDecoupledBlock(8, NUM_CLASSES))
        _, scores, distances = theirs(feature)
        logits.append(scores.flatten(2).transpose(1, 2))
        sides.append(distances.flatten(2).transpose(1, 2))
        parts = {"class_branch": ("class_branch", "classifier"), "regression_branch": ("box_branch", "regressor")}
        names = {f"{part}.{i}": f"{own[i]}.{level}" for part, own in parts.items() for i in range(2)}
        missing, unexpected = head.load_state_dict(
            converted(theirs, {"decoder": f"stems.{level}", **names}), strict=False
        )
        assert not unexpected
        assert not [name for name in missing if f".{level}." in name]
    outputs = head(features, torch.tensor([CANVAS] * 2), CANVAS)
    boxes = luxonis("utils.boundingbox")
    _, points, _, strides = boxes.anchors_for_fpn_features(features, torch.tensor(list(LEVELS)), 5.0, 0.5, True)
    decoded = boxes.dist2bbox(torch.cat(sides, dim=1), points / strides) * strides
    compare("YOLOv6", REFERENCE, "logits", [(outputs.logits, torch.cat(logits, dim=1))])
    compare("YOLOv6", REFERENCE, "boxes (px)", [(outputs.decoded(), decoded)])


def make_targets() -> list[Target]:
    """0, 1 and 12 objects."""
    targets = []
    for count in (0, 1, 12):
        sides = 6 + torch.rand(count, 2) * torch.tensor([90.0, 70.0])
        corner = torch.rand(count, 2) * (torch.tensor([128.0, 96.0]) - sides)
        boxes = torch.cat([corner, corner + sides], dim=1)
        targets.append(Target(Objects(boxes, torch.randint(NUM_CLASSES, (count,)))))
    return targets


def padded(targets: list[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Labels `[B, M, 1]`, boxes `[B, M, 4]` and which of them are objects `[B, M, 1]`."""
    most = max(len(target.objects) for target in targets)
    labels, boxes, mask = (torch.zeros(len(targets), most, width) for width in (1, 4, 1))
    for i, target in enumerate(targets):
        count = len(target.objects)
        labels[i, :count, 0], boxes[i, :count], mask[i, :count] = target.objects.labels.float(), target.objects.boxes, 1
    return labels, boxes, mask


def their_assignment(luxonis: Any, outputs: YOLOv6Outputs, targets: list[Target], warmup: bool) -> Any:
    """Labels, boxes, scores, which are positive, and objects."""
    labels, truth, mask = padded(targets)
    features = [torch.zeros(1, 8, *size) for size in LEVELS.values()]
    anchors, points, counts, _ = luxonis("utils.boundingbox").anchors_for_fpn_features(
        features, torch.tensor(list(LEVELS)), 5.0, 0.5, True
    )
    boxes = outputs.decoded().detach()
    if warmup:
        assigner = luxonis("assigners").ATSSAssigner(topk=9, n_classes=NUM_CLASSES)
        return assigner(anchors, counts, labels, truth, mask, boxes)
    assigner = luxonis("assigners").TaskAlignedAssigner(NUM_CLASSES, skip_stal=True)
    return assigner(outputs.logits.detach().sigmoid(), boxes, points, labels, truth, mask)


@pytest.mark.parametrize("warmup", [False, True], ids=["task-aligned", "ATSS"])
@pytest.mark.parametrize("box_loss", ["giou", "siou"])
def test_assignment_and_losses(luxonis: Any, compare: Ledger, warmup: bool, box_loss: Any) -> None:
    """A square that two objects take goes to the object it overlaps most: in the warm-up there to any, here (as ATSS's
    authors have it) to one of the two. In this drawing it is the same one."""
    torch.manual_seed(2)
    head = make_head(box_loss=box_loss, warmup_images=int(warmup))
    outputs, targets = make_outputs(head, 3), make_targets()
    labels, truth, scores, positive, objects = their_assignment(luxonis, outputs, targets, warmup)
    assignments, what = head.assign(outputs, targets), "ATSS" if warmup else "task-aligned"
    index = torch.stack([assignment.index for assignment in assignments])
    assert torch.equal(index, torch.where(positive.bool(), objects, -1))
    assert positive.sum() > 20
    quality = torch.stack([assignment.quality for assignment in assignments])
    compare("YOLOv6", REFERENCE, f"qualities, {what}", [(quality, scores.sum(dim=2))])

    losses = luxonis("attached_modules.losses.adaptive_detection_loss")
    one_hot = nn.functional.one_hot(labels.long(), NUM_CLASSES + 1)[..., :-1]
    classes = losses.VarifocalLoss()(outputs.logits.sigmoid(), scores, one_hot) / scores.sum().clamp(min=1)
    box, _ = losses.compute_iou_loss(
        outputs.decoded(), truth, scores, positive.bool(), iou_type=box_loss, reduction="sum"
    )
    actual = head.criterion(outputs, targets)
    pairs = [(actual["yolo_class"], classes), (actual["yolo_box"], 2.5 * box)]
    compare("YOLOv6", REFERENCE, f"losses, {what}, {box_loss}", pairs)
    totals, inputs = (actual["yolo_class"] + actual["yolo_box"], classes + 2.5 * box), (outputs.logits, outputs.sides)
    own, theirs = (torch.autograd.grad(total, inputs, retain_graph=True) for total in totals)
    compare("YOLOv6", REFERENCE, f"gradients, {what}, {box_loss}", list(zip(own, theirs, strict=True)))


def test_siou(luxonis: Any, compare: Ledger) -> None:
    corner, sides = torch.rand(2, 200, 2) * 60, 2 + torch.rand(2, 200, 2) * 40
    boxes, truth = torch.cat([corner, corner + sides], dim=2)
    theirs = luxonis("utils.boundingbox").bbox_iou(boxes, truth, iou_type="siou", element_wise=True)
    compare("SIoU", REFERENCE, "values", [(scylla_box_iou(boxes, truth, paired=True), theirs)])
