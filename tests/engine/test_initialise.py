"""Weights of another detector as a start: which tensors and which rows go over, and what the user is told."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

import detkit
from detkit import cli
from detkit.config import UserError, parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.detectors.rcnn import RCNN
from detkit.detectors.single_shot import SingleShotDetector
from detkit.detectors.sliding_window import SlidingWindowConfig
from detkit.engine.checkpoint import load_checkpoint, save_checkpoint
from detkit.engine.initialise import NEW_CLASS_PRIOR, initialise, rows_by_name, take_over
from detkit.engine.settings import RunConfig
from detkit.engine.sources import Weights
from detkit.engine.train import train_config
from detkit.nn.anchors import AnchorConfig, PriorConfig
from detkit.nn.backbones.lenet import LeNetConfig
from detkit.nn.heads.dab_detr import (
    DABDETRHead,
    DABDETRHeadConfig,
    DABSelectionConfig,
    DABTransformerConfig,
    DNDenoisingConfig,
    ProposalConfig,
)
from detkit.nn.heads.detr import DETRHead, DETRHeadConfig
from detkit.nn.heads.head import Head
from detkit.nn.heads.rcnn import RCNNHead, RCNNHeadConfig, RCNNSelectionConfig
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.heads.rpn import RPN, RPNConfig
from detkit.nn.heads.set_head import SetSelectionConfig
from detkit.nn.heads.sliding_window import WindowHeadConfig, WindowSelectionConfig
from detkit.nn.heads.ssd import SSDHead, SSDHeadConfig, SSDSelectionConfig
from detkit.nn.heads.yolo import YOLOSelectionConfig
from detkit.nn.heads.yolo_v1 import YOLOv1Head, YOLOv1HeadConfig, YOLOv1SelectionConfig
from detkit.nn.heads.yolo_v2 import YOLOv2Head, YOLOv2HeadConfig
from detkit.nn.heads.yolo_v3 import YOLOv3Head, YOLOv3HeadConfig
from detkit.nn.input import ImageInput, InputConfig, StretchConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.nn.proposals.windows import PyramidConfig
from detkit.nn.selection import SelectionConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Batch, Categories, ImageInfo, KeypointCategories
from detkit.weights.torchvision import CONFIGS as TORCHVISION
from tests.cli_support import write_config
from tests.detectors.batches import CONFIGS, cheap_config
from tests.engine.settings import make_config, write_pictures

ALL: dict[str, Any] = {"score_threshold": 0.0, "max_detections": 5000}  # every prediction is a detection
SIZE = (32, 32)  # of the input


class Backbone(nn.Module):
    """Two levels of eight channels."""

    out_channels, out_strides = (8, 8), (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 2, 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images).tanh()
        return [fine, self.coarse(fine).tanh()]


class OneLevel(Backbone):
    out_channels, out_strides = (8,), (8,)

    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(images)[:1]


def with_head(
    head: Callable[[Backbone, int], Head[Any]], backbone_class: type[Backbone] = Backbone
) -> Callable[[Categories], Any]:
    def build(categories: Categories) -> Any:
        backbone = backbone_class()
        image_input = ImageInput(InputConfig(resize=StretchConfig(size=32)), 16)
        return SingleShotDetector(backbone, None, head(backbone, len(categories)), image_input, categories)  # type: ignore[arg-type]

    return build


def ssd(depthwise: bool) -> Callable[[Categories], Any]:
    config = SSDHeadConfig(
        priors=PriorConfig(min_sizes=(8, 16), max_sizes=(16, 32), ratios=((2,), (2, 3)), steps=None),
        depthwise=depthwise,
        selection=SSDSelectionConfig(**ALL),
    )
    return with_head(lambda backbone, count: SSDHead(config, backbone.out_channels, count))


def yolov1(output: str) -> Callable[[Categories], Any]:
    config = YOLOv1HeadConfig(grid=2, hidden="none", output=output, selection=YOLOv1SelectionConfig(**ALL))  # type: ignore[arg-type]
    return with_head(lambda _, count: YOLOv1Head(config, 8, (2, 2), count))


def yolov2(backbone: Backbone, count: int) -> YOLOv2Head:
    config = YOLOv2HeadConfig(selection=YOLOSelectionConfig(**ALL))
    return YOLOv2Head(config, backbone.out_channels, backbone.out_strides, count)


def yolov3(backbone: Backbone, count: int) -> YOLOv3Head:
    config = YOLOv3HeadConfig(anchors=(((10, 14), (8, 8)), ((20, 20),)), selection=YOLOSelectionConfig(**ALL))
    return YOLOv3Head(config, backbone.out_channels, backbone.out_strides, count)


TRANSFORMER = TransformerConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1, feedforward=16, dropout=0)


def detr(_: Backbone, count: int) -> DETRHead:
    config = DETRHeadConfig(transformer=TRANSFORMER, num_queries=40, selection=SetSelectionConfig(**ALL))
    return DETRHead(config, 8, count)


def dab_detr(**options: Any) -> Callable[[Categories], Any]:
    config = DABDETRHeadConfig(
        transformer=DABTransformerConfig(**dict(TRANSFORMER)),
        num_queries=6,  # with proposals: all cells of the coarser level
        selection=DABSelectionConfig(**ALL),
        **options,
    )
    return with_head(lambda _, count: DABDETRHead(config, 8, count))


def faster_rcnn(categories: Categories) -> Any:
    roi = RoIConfig(hidden=(8,), output_size=2, selection=SelectionConfig(**ALL))
    rpn = RPNConfig(anchors=AnchorConfig(sizes=((16,),)), post_nms_top_k_test=20)
    head = RoIHead(roi, 8, (8,), len(categories))
    image_input = ImageInput(InputConfig(), 8)
    return FasterRCNN(OneLevel(), None, RPN(rpn, 8, (8,)), head, image_input, categories)  # type: ignore[arg-type]


def rcnn(categories: Categories) -> Any:
    """With SVMs and box regressors that are fitted."""
    config = RCNNHeadConfig(crop_size=16, context=2, hidden=(8,), output_size=2, selection=RCNNSelectionConfig(**ALL))
    head = RCNNHead(config, 8, len(categories))
    head.finished.fill_(True)
    proposals = SelectiveSearchConfig()
    return RCNN(OneLevel(), head, proposals, ImageInput(InputConfig(), 8), categories)  # type: ignore[arg-type]


def sliding_window(categories: Categories) -> Any:
    config = SlidingWindowConfig(
        backbone=LeNetConfig(widths=(4, 4)),
        windows=PyramidConfig(largest_scale=1.0),
        roi=WindowHeadConfig(hidden=(8,), selection=WindowSelectionConfig(**ALL)),
    )
    return build_detector(config, categories)


SIGMOID = {
    "yolov1_connected": yolov1("connected"),
    "yolov1_convolution": yolov1("convolution"),
    "yolov3": with_head(yolov3),
    "dab_detr": dab_detr(),
    "dab_detr_denoising": dab_detr(denoising=DNDenoisingConfig()),
    "dab_detr_proposals": dab_detr(proposals=ProposalConfig()),
    "rcnn_svm": rcnn,
}
SOFTMAX = {
    "ssd": ssd(depthwise=False),
    "ssdlite": ssd(depthwise=True),
    "detr": with_head(detr),
    "faster_rcnn": faster_rcnn,
    "sliding_window": sliding_window,
}
EVERY = SIGMOID | SOFTMAX | {"yolov2": with_head(yolov2, OneLevel)}


def trained(build: Callable[[Categories], Any], names: str) -> Any:
    """A detector of classes a, b, ... whose weights are all random, with scores that differ from class to class."""
    torch.manual_seed(len(names))
    detector = build(Categories.of_names(names))
    for name, tensor in detector.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            nn.init.normal_(tensor, std=0.3)
    return detector.eval()


def started(build: Callable[[Categories], Any], names: str, source: Any) -> Any:
    """Another detector of classes `names` that starts from the weights of `source`."""
    torch.manual_seed(1)
    detector = build(Categories.of_names(names))
    transfer = take_over(detector, Weights(source.state_dict(), source.categories, "a test"), "source")
    assert transfer.loaded
    return detector.eval()


@torch.no_grad()
def detections_by_class(detector: Any, names: str) -> dict[str, Tensor]:
    """`[N, 5]` for each of `names`: scores and boxes of the detections in two images, in a fixed order."""
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    infos = tuple(ImageInfo(index, SIZE, SIZE, (1.0, 1.0)) for index in range(2))
    regions = (torch.tensor([[2.0, 3.0, 20.0, 28.0], [10.0, 0.0, 31.0, 30.0]]),) * 2
    batch = Batch(images, infos, proposals=regions if isinstance(detector, RCNN) else None)
    rows: dict[str, list[list[float]]] = {name: [] for name in names}
    for detections in detector.postprocess(detector(batch), infos):
        for label, score, box in zip(detections.labels, detections.scores, detections.boxes, strict=True):
            name = detector.categories.names[label]
            if name in rows:
                rows[name].append([round(score.item(), 4), *box.tolist(), score.item()])
    return {name: torch.tensor(sorted(found)).reshape(-1, 6)[:, 1:] for name, found in rows.items()}


def check_same_detections(one: Any, two: Any, names: str) -> None:
    first, second = detections_by_class(one, names), detections_by_class(two, names)
    assert sum(map(len, first.values())) > 3
    for name in names:
        assert first[name].shape == second[name].shape, name
        torch.testing.assert_close(first[name][:, :4], second[name][:, :4], atol=1e-4, rtol=1e-5)  # px
        torch.testing.assert_close(first[name][:, 4], second[name][:, 4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SIGMOID)
def test_old_classes_keep_their_detections_among_others(kind: str) -> None:
    """Where each class has a score of its own, whatever classes come and go."""
    source = trained(EVERY[kind], "abc")
    check_same_detections(source, started(EVERY[kind], "cxa", source), "ac")


@pytest.mark.parametrize("kind", SIGMOID | SOFTMAX)
def test_old_classes_keep_their_detections_beside_new_ones(kind: str) -> None:
    """In a softmax too, if none is left out: new classes take from the background alone."""
    source = trained(EVERY[kind], "abc")
    check_same_detections(source, started(EVERY[kind], "cxaby", source), "abc")


@pytest.mark.parametrize("kind", EVERY)
def test_old_classes_keep_their_detections_in_another_order(kind: str) -> None:
    source = trained(EVERY[kind], "abc")
    check_same_detections(source, started(EVERY[kind], "cab", source), "abc")


def test_a_new_class_without_an_svm_is_never_detected() -> None:
    """SVMs are fitted after the last epoch; until then a margin of 0 would be a score of one half everywhere."""
    assert len(detections_by_class(started(rcnn, "cxa", trained(rcnn, "abc")), "x")["x"]) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_heads_name_every_tensor_that_depends_on_the_classes(path: Path) -> None:
    config = cheap_config(path).model
    points = KeypointCategories(("head", "tail"))
    with torch.device("meta"):
        few, more = (build_detector(config, replace(Categories.of_names(n), keypoints=points)) for n in ("ab", "abc"))
        two, three, rows = few.state_dict(), more.state_dict(), rows_by_name(few, 3)
    assert set(rows) == {name for name in three if two[name].shape != three[name].shape}
    assert {name: len(labels) for name, labels in rows.items()} == {name: len(three[name]) for name in rows}


def test_new_classes_start_with_a_part_of_the_background() -> None:
    """One hundredth for both of them, whatever the features."""
    source = trained(faster_rcnn, "ab")
    detector = started(faster_rcnn, "axby", source)
    hidden = torch.randn(50, 8)
    before, after = (d.roi.classifier(hidden).softmax(dim=1) for d in (source, detector))
    background, a, x, b, y = after.unbind(dim=1)
    torch.testing.assert_close(torch.stack([a, b], dim=1), before[:, 1:])
    torch.testing.assert_close(background, before[:, 0] * (1 - NEW_CLASS_PRIOR))
    torch.testing.assert_close(x, before[:, 0] * NEW_CLASS_PRIOR / 2)
    torch.testing.assert_close(y, x)


def test_a_softmax_without_background_keeps_its_logits() -> None:
    source = trained(EVERY["yolov2"], "abc")
    detector = started(EVERY["yolov2"], "cxa", source)
    old, new = (d.head.predict[0].weight.view(5, -1, 8) for d in (source, detector))
    assert torch.equal(new[:, :5], old[:, :5])  # boxes and objectness of the five anchors
    assert torch.equal(new[:, [5, 7]], old[:, [7, 5]])


def test_without_a_common_class_only_the_classifier_is_new() -> None:
    """The background's row too: it would drown classes that it was not trained beside."""
    source = trained(faster_rcnn, "abc")
    torch.manual_seed(1)
    fresh = faster_rcnn(Categories.of_names("xy"))
    detector = started(faster_rcnn, "xy", source)
    for name, tensor in detector.state_dict().items():
        is_new = name.startswith(("roi.classifier", "roi.regressor"))
        assert torch.equal(tensor, (fresh if is_new else source).state_dict()[name]), name


def test_boxes_and_objectness_go_over_without_a_common_class() -> None:
    source = trained(EVERY["yolov3"], "abc")
    detector = started(EVERY["yolov3"], "wxyz", source)
    for old, new in zip(source.head.predict, detector.head.predict, strict=True):
        assert torch.equal(new.bias.view(-1, 9)[:, :5], old.bias.view(-1, 8)[:, :5])


def test_synonyms_are_the_same_class(tmp_path: Path) -> None:
    source, target = (
        EVERY["detr"](Categories.of_names(names)) for names in (["sofa", "motorbike"], ["motorcycle", "cat", "couch"])
    )
    transfer = take_over(target, Weights(source.state_dict(), source.categories, "a test"), "source")
    assert torch.equal(target.head.classifier.weight[[0, 2]], source.head.classifier.weight[[1, 0]])
    assert "classes kept: 2 (motorcycle <- motorbike, couch <- sofa)" in transfer.describe()


# ---- files


def build(names: str) -> Any:
    config = make_config({"name": "shapes", "root": "none"})
    return build_detector(config.model, Categories.of_names(names))


def test_a_state_dict_alone(tmp_path: Path) -> None:
    """Under the prefixes that programs put before the names; of the same classes, in their order."""
    source = trained(EVERY["yolov3"], "ab")
    for prefix in ("", "module.", "model.module.", "_orig_mod."):
        state = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
        torch.save(state, tmp_path / "state.pth")
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
        save_file(state, tmp_path / "state.safetensors")
        for file in ("state.pth", "nested.pt", "state.safetensors"):
            detector = EVERY["yolov3"](Categories.of_names("xy"))
            transfer = initialise(detector, str(tmp_path / file))
            assert not transfer.new
            assert not transfer.left_out
            assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in detector.state_dict().items())
            assert "tensors of a detector of detkit" in detector.notes[-1]
            assert "the file names none" in detector.notes[-1]


def build_tiny(categories: Categories) -> Any:
    return build("".join(categories.names))


def test_a_classifier_of_torchvision_becomes_the_backbone(tmp_path: Path) -> None:
    classifier = resnet18()
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    detector = build("ab")
    transfer = initialise(detector, str(tmp_path / "resnet18.pth"))
    state = classifier.state_dict()
    for name, tensor in detector.backbone.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert transfer.left_out == ("backbone.fc.weight", "backbone.fc.bias")
    assert "tensors of a backbone alone" in detector.notes[-1]


def test_a_detector_under_torchvisions_names(tmp_path: Path) -> None:
    """The file names no classes: of its 91 rows none is taken for one of the data's two."""
    import torchvision

    peer = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    detector = build_detector(TORCHVISION["fasterrcnn_mobilenet_v3_large_320_fpn"], Categories.of_names("ab"))
    transfer = initialise(detector, str(tmp_path / "peer.pth"))
    assert sorted(transfer.new) == [
        f"roi.{layer}.{part}" for layer in ("classifier", "regressor") for part in ("bias", "weight")
    ]
    assert torch.equal(detector.rpn.conv.weight, peer.rpn.head.conv[0][0].weight)
    assert "tensors of a detector of torchvision" in detector.notes[-1]


def test_torchvisions_public_classes_go_over_by_name(tmp_path: Path) -> None:
    """With its name before the file, the 91 rows are COCO's; ids that were never used are no classes."""
    import torchvision

    torch.manual_seed(0)
    peer = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    config = TORCHVISION["fasterrcnn_mobilenet_v3_large_320_fpn"]
    detector = build_detector(config, Categories.of_names(["tvmonitor", "drone", "N/A", "person"]))
    initialise(detector, f"torchvision:fasterrcnn_mobilenet_v3_large_320_fpn:{tmp_path / 'peer.pth'}")
    own, other = detector.roi.classifier.weight, peer.roi_heads.box_predictor.cls_score.weight
    assert torch.equal(own[[0, 1, 4]], other[[0, 72, 1]])  # background, tv, person
    assert torch.equal(own[2], other[0])  # a new class starts as background
    boxes = peer.roi_heads.box_predictor.bbox_pred.weight
    assert torch.equal(detector.roi.regressor.weight[4:8], boxes[72 * 4 : 73 * 4])
    assert "classes kept: 2 (tvmonitor <- tv, person)" in detector.notes[-1]
    assert "classes new: 2 (drone, N/A)" in detector.notes[-1]
    assert "classes left out: 78 (bicycle, car, motorcycle" in detector.notes[-1]


def test_the_table_names_what_is_loaded_new_and_left_out(tmp_path: Path) -> None:
    source = trained(build_tiny, "abc")
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("neck.output.0")}
    state["roi.hidden.0.bias"] = torch.zeros(7)
    state["mask.conv.weight"] = torch.zeros(2, 2)
    save_checkpoint(tmp_path / "source.pt", {"model": state, "categories": source.categories.to_plain(), "config": ""})
    detector = build("cx")
    initialise(detector, str(tmp_path / "source.pt"))
    lines = detector.notes[-1].splitlines()
    assert lines[0] == f"starts from {tmp_path / 'source.pt'}, a run of detkit"
    assert "  neck           6 tensors kept     2 new     0 left out" in lines
    assert "  roi            5 tensors kept     1 new     0 left out" in lines
    assert "  mask           0 tensors kept     0 new     1 left out" in lines
    assert "  new: roi.hidden.0.bias ([32] here, [7] there)" in lines
    assert "  new, not in the source: neck.output.0.weight, neck.output.0.bias" in lines
    assert "  left out: mask.conv.weight" in lines
    assert lines[-3:] == ["  classes kept: 1 (c)", "  classes new: 1 (x)", "  classes left out: 2 (a, b)"]
    assert len(lines) < 25


def test_a_backbone_that_fits_nowhere_is_reported() -> None:
    source = trained(EVERY["yolov3"], "ab")
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("backbone")}
    detector = EVERY["yolov3"](Categories.of_names("ab"))
    transfer = take_over(detector, Weights(state, source.categories, "a test"), "source")
    assert "nothing of the backbone fits" in transfer.describe()


def test_other_pixels_and_strides_are_warned_of() -> None:
    """Each warning with the settings that mend it."""
    pixels = InputConfig(channel_order="bgr", mean=(103.53, 116.28, 123.675), std=(1, 1, 1))
    source = trained(build_tiny, "ab")
    weights = Weights(source.state_dict(), source.categories, "a test", pixels, {"backbone.conv1.weight": (4, 4)})
    warnings = take_over(build("ab"), weights, "source").warnings
    assert len(warnings) == 2
    assert (
        "model.input gives (channel_order rgb, mean [123.675,116.28,103.53], std [58.395,57.12,57.375])" in warnings[0]
    )
    assert warnings[0].endswith(
        "--set model.input.channel_order=bgr model.input.mean=[103.53,116.28,123.675] model.input.std=[1,1,1]"
    )
    assert "backbone.conv1.weight has the stride [2, 2], and in the source [4, 4]" in warnings[1]
    same = replace(weights, input=InputConfig(), strides={"backbone.conv1.weight": (2, 2)})
    assert take_over(build("ab"), same, "source").warnings == ()


# ---- errors


def test_nothing_fits(tmp_path: Path) -> None:
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"nothing of .*other.pth.* fits this FasterRCNN: here are .* there some.we"):
        initialise(build("ab"), str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "rpn.conv.weight has 9 nan"), (torch.inf, "rpn.conv.weight is infinite")]
)
def test_weights_that_diverged(tmp_path: Path, value: float, message: str) -> None:
    state = build("ab").state_dict()
    state["rpn.conv.weight"][0, 0] = value
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(UserError, match=message):
        initialise(build("ab"), str(tmp_path / "diverged.pth"))


@pytest.mark.parametrize(("content", "message"), [(b"text", "no archive of tensors"), (None, "No such file")])
def test_a_file_that_is_none(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights.pth.*{message}"):
        initialise(build("ab"), str(path))


# ---- darknet


def write_tiny_yolov3(folder: Path, names: list[str], convolutions: int = 13) -> tuple[str, Tensor]:
    """yolov3-tiny.cfg with its own number of classes: `darknet:CFG:WEIGHTS:NAMES`, and the bias of the coarse level."""
    filters = 3 * (5 + len(names))
    conv = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\nstride=1\npad=1\nactivation=leaky\n"
    pool = "[maxpool]\nsize=2\nstride={}\n"
    head = f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={filters}\nactivation=linear\n[yolo]\nmask={{}}\n"
    head += f"anchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\nclasses={len(names)}\nnum=6\n"
    trunk = "".join(conv.format(2**power, 3) + pool.format(2 if power < 9 else 1) for power in range(4, 10))
    body = conv.format(1024, 3) + conv.format(256, 1) + conv.format(512, 3) + head.format("3,4,5")
    fine = "[route]\nlayers=-4\n" + conv.format(128, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n"
    fine += conv.format(256, 3) + head.format("0,1,2")
    cfg = folder / "tiny.cfg"
    cfg.write_text("[net]\nwidth=416\nheight=416\nchannels=3\n" + trunk + body + (fine if convolutions == 13 else ""))
    folder.joinpath("tiny.names").write_text("\n".join(names))
    sizes = [(3, 16, 3), (16, 32, 3), (32, 64, 3), (64, 128, 3), (128, 256, 3), (256, 512, 3), (512, 1024, 3)]
    sizes += [(1024, 256, 1), (256, 512, 3), (512, filters, 1), (256, 128, 1), (384, 256, 3), (256, filters, 1)]
    parts, generator = [], torch.Generator().manual_seed(0)
    for number, (inputs, outputs, kernel) in enumerate(sizes[:convolutions]):
        bias = torch.rand(outputs, generator=generator)
        parts += [bias] if number in (9, 12) else [bias, *torch.rand(3, outputs, generator=generator)]
        parts.append(torch.zeros(outputs * inputs * kernel**2))
        if number == 9:
            coarse = bias
    values = b"".join(part.numpy().astype("<f4").tobytes() for part in parts)
    cfg.with_suffix(".weights").write_bytes(struct.pack("<3iq", 0, 2, 5, 0) + values)
    return f"darknet:{cfg}::{cfg.with_suffix('.names')}", coarse


def tiny_yolov3(names: list[str]) -> Any:
    tree = {
        "name": "yolov3",
        "backbone": {"name": "yolov3_tiny", "strides": [16, 32]},
        "neck": {"name": "yolov3_tiny"},
        "head": {"anchors": [[[10, 14], [23, 27], [37, 58]], [[81, 82], [135, 169], [344, 319]]]},
    }
    config = parse_config({**make_config({"name": "shapes"}).model_dump(mode="json"), "model": tree}, RunConfig)
    return build_detector(config.model, Categories.of_names(names))


def test_a_darknet_network_fills_its_twin(tmp_path: Path) -> None:
    """Layers by their order, rows of classes by the names file; boxes and objectness of all three anchors."""
    source, coarse = write_tiny_yolov3(tmp_path, ["aeroplane", "car"])
    detector = tiny_yolov3(["truck", "car", "airplane"])
    transfer = initialise(detector, source)
    assert not transfer.new
    own, other = detector.head.predict[1].bias.view(3, 8), coarse.view(3, 7)
    assert torch.equal(own[:, :5], other[:, :5])
    assert torch.equal(own[:, [7, 6]], other[:, 5:])
    assert "classes kept: 2 (car, airplane <- aeroplane)" in detector.notes[-1]


def test_a_darknet_network_without_a_twin(tmp_path: Path) -> None:
    source, _ = write_tiny_yolov3(tmp_path, ["a", "b"], convolutions=10)
    with pytest.raises(UserError, match=r"has 10 layers with weights, this YOLOv3 13; take the configuration of"):
        initialise(tiny_yolov3(["a", "b"]), source)
    with pytest.raises(UserError, match="for yolov1 to yolov4 and yolov7, not FasterRCNN"):
        initialise(build("ab"), source)


# ---- in a run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pictures(tmp_path_factory.mktemp("init") / "data", 4)


@pytest.mark.long
def test_a_run_starts_from_another_with_other_settings(
    trained_run: Path, pictures: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of almost nothing its weights stay; public weights of the backbone are not fetched."""
    still = ["train.optimizer.lr=1e-12", "train.epochs=1", "train.batch_size=1", "model.backbone.norm=frozen_bn"]
    weights = "model.backbone.weights=IMAGENET1K_V1"
    data = {**pictures, "classes": ["dog", "bird", "cat"]}
    config = make_config(data, *still, weights, f"train.init={trained_run}", "train.ema={decay: 0.9, warmup: 2}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "load_state_dict_from_url", None)
        train_config(config, tmp_path)
    out = capsys.readouterr().out
    assert f"starts from {trained_run}, a run of detkit" in out
    assert "classes kept: 2 (dog, cat)" in out
    before, after = (load_checkpoint(folder / "last.pt") for folder in (trained_run, tmp_path))
    for name, tensor in before["model"].items():
        if tensor.shape == after["model"][name].shape if name in after["model"] else False:
            torch.testing.assert_close(after["model"][name], tensor, atol=1e-6, rtol=0)
    old, new = before["model"]["roi.classifier.weight"], after["model"]["roi.classifier.weight"]
    torch.testing.assert_close(new[[1, 3]], old[[2, 1]], atol=1e-6, rtol=0)


@pytest.mark.long
def test_init_counts_at_the_start_alone(trained_run: Path, pictures: dict[str, Any], tmp_path: Path) -> None:
    """Resumed, the run goes on from its own checkpoint, also where the source is no longer there."""
    source = tmp_path / "source.pt"
    source.write_bytes((trained_run / "last.pt").read_bytes())
    config = make_config(pictures, "train.epochs=2", f"train.init={source}")
    train_config(config, tmp_path / "run", stop_after=1)
    source.unlink()
    train_config(config, tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run/last.pt")["epoch"] == 2


def test_a_missing_source_is_told_before_the_data_is_read(tmp_path: Path) -> None:
    config = make_config({"name": "coco", "root": "nowhere"}, f"train.init={tmp_path / 'typo'}")
    with pytest.raises(UserError, match=r"typo: no such checkpoint"):
        train_config(config, tmp_path / "run")


def test_init_is_an_option_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever characters the path has."""
    path = str(tmp_path / "tiny.yaml")
    write_config(Path(path))
    source = tmp_path / 'a "run" #1: ü😀'
    assert cli.train([path, "--output", str(tmp_path / "run"), "--init", str(source)]) == 2
    with pytest.raises(UserError) as caught:
        detkit.train(path, output=tmp_path / "run", init=source)
    assert str(caught.value).startswith(f"{source}: no such checkpoint")
    assert f"error: {caught.value}" in capsys.readouterr().err
