"""SSD in its published forms."""

import pytest
import torch
from pydantic import ValidationError
from torchvision.models import vgg16

from detkit.config import load_config
from detkit.detectors.build import build_detector
from detkit.detectors.ssd import SSD, SSDConfig, SSDInputConfig, build_ssd
from detkit.engine.settings import RunConfig
from detkit.nn.anchors import PriorConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.vgg import SSDVGGConfig, build_ssd_vgg
from detkit.nn.heads.ssd import SSDHeadConfig
from detkit.nn.input import ShortSideConfig, StretchConfig
from detkit.nn.necks.extra_levels import ExtraLevelsConfig
from detkit.nn.necks.fpn import FPNConfig
from detkit.structures import Categories
from detkit.weights.torchvision import CONFIGS
from tests.detectors.batches import ROOT, make_batch

VOC, COCO, IDS = (  # IDS: torchvision's 91 outputs with background
    Categories.of_names([f"class {i}" for i in range(count)]) for count in (20, 80, 90)
)


def build(file: str, categories: Categories) -> SSD:
    config = load_config(ROOT / "configs" / file, RunConfig, ["model.backbone.weights=null"]).model
    assert isinstance(config, SSDConfig)
    with torch.device("meta"):
        detector = build_detector(config, categories)
    assert isinstance(detector, SSD)
    return detector


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("file", "categories", "expected"),
    [
        ("voc/ssd300.yaml", VOC, 26_285_486),  # weiliu89/caffe, branch ssd
        ("coco/ssd300.yaml", COCO, 34_305_206),
        ("voc/ssd512.yaml", VOC, 27_188_676),
        ("coco/ssd512.yaml", COCO, 36_038_196),
        ("voc/mobilenet_ssd.yaml", VOC, 5_796_089),  # chuanqi305/MobileNet-SSD, batch norm's affine counted
        ("coco/ssdlite320.yaml", IDS, 3_440_060),  # torchvision
    ],
)
def test_published_parameter_counts(file: str, categories: Categories, expected: int) -> None:
    assert num_parameters(build(file, categories)) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("ssd300_vgg16", 35_641_826), ("ssdlite320_mobilenet_v3_large", 3_440_060)]
)
def test_parameter_counts_of_the_public_weights(name: str, expected: int) -> None:
    """As torchvision's metadata say."""
    with torch.device("meta"):
        assert num_parameters(build_detector(CONFIGS[name], IDS)) == expected


def test_ssd300_and_512_part_by_part() -> None:
    small, large = build("voc/ssd300.yaml", VOC), build("voc/ssd512.yaml", VOC)
    for detector, trunk, head in ((small, 22_943_936, 3_341_550), (large, 23_501_376, 3_687_300)):
        assert detector.neck is not None
        assert num_parameters(detector.backbone) + num_parameters(detector.neck) == trunk
        assert num_parameters(detector.head) == head
    assert num_parameters(build("coco/ssd300.yaml", COCO).head) == 11_361_270
    assert num_parameters(build("coco/ssd512.yaml", COCO).head) == 12_536_820


@pytest.mark.parametrize(
    ("file", "size", "maps", "expected"),
    [
        ("voc/ssd300.yaml", 300, [38, 19, 10, 5, 3, 1], 8_732),
        ("coco/ssd300.yaml", 300, [38, 19, 10, 5, 3, 1], 8_732),
        ("voc/ssd512.yaml", 512, [64, 32, 16, 8, 4, 2, 1], 24_564),
        ("coco/ssd512.yaml", 512, [64, 32, 16, 8, 4, 2, 1], 24_564),
        ("voc/mobilenet_ssd.yaml", 300, [19, 10, 5, 3, 2, 1], 1_917),
        ("coco/ssdlite320.yaml", 320, [20, 10, 5, 3, 2, 1], 3_234),  # 6 a cell
    ],
)
def test_published_maps_and_numbers_of_priors(file: str, size: int, maps: list[int], expected: int) -> None:
    detector = build(file, VOC)
    assert detector.neck is not None
    levels = detector.neck(detector.backbone(torch.empty(1, 3, size, size, device="meta")))
    assert [level.shape[2] for level in levels] == maps
    assert len(detector.head.priors([(side, side) for side in maps], (size, size))) == expected


def test_ssd512_stores_whole_sizes() -> None:
    """The fractions 7, 15, 30, 45, 60, 75, 90 and 105 % of 512, cut to whole numbers by Caffe's prior layer."""
    config = load_config(ROOT / "configs/voc/ssd512.yaml", RunConfig).model
    assert isinstance(config, SSDConfig)
    sizes = [int(512 * percent / 100) for percent in (7, 15, 30, 45, 60, 75, 90, 105)]
    assert config.head.priors.min_sizes == tuple(sizes[:-1])
    assert config.head.priors.max_sizes == tuple(sizes[1:])


def test_fc6_and_fc7_are_subsampled_from_vggs_fully_connected_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit 4 k, and of fc6's 7 x 7 inputs rows and columns 0, 3, 6."""
    public = vgg16(init_weights=False)

    def download(model: str, weights: str) -> dict[str, torch.Tensor]:
        assert (model, weights) == ("vgg16", "IMAGENET1K_V1")
        return public.state_dict()

    monkeypatch.setattr("detkit.nn.backbones.staged.download_classifier", download)
    backbone = build_ssd_vgg(SSDVGGConfig(weights="IMAGENET1K_V1"))
    fc6, fc7 = public.classifier[0], public.classifier[3]
    weight = backbone.get_submodule("fc6").weight
    assert weight[5, 7, 1, 2] == fc6.weight[20, 7 * 49 + 3 * 7 + 6]
    assert backbone.get_submodule("fc6").bias[1023] == fc6.bias[4092]
    assert backbone.get_submodule("fc7").weight[3, 9, 0, 0] == fc7.weight[12, 36]


RESNET = ResNetConfig(name="resnet18", norm="bn", frozen_stages=0, strides=(8, 16, 32))


@pytest.mark.long
@pytest.mark.parametrize(
    ("neck", "num_levels"),
    [
        (ExtraLevelsConfig(out_channels=(64, 32), reduce=("stride",) * 2, l2_norm=None, norm=True), 5),
        (FPNConfig(out_channels=32), 4),
        (None, 3),
    ],
)
def test_the_head_learns_behind_another_trunk_and_any_neck(neck: object, num_levels: int) -> None:
    """A few steps on one batch, an image without objects in it, halve the loss."""
    torch.manual_seed(0)
    sizes = (16.0, 32.0, 64.0, 96.0, 128.0, 160.0)
    priors = PriorConfig(
        min_sizes=sizes[:num_levels],
        max_sizes=sizes[1 : num_levels + 1],
        ratios=((2,),) * num_levels,
        steps=None,
    )
    head = SSDHeadConfig(priors=priors)
    input_config = SSDInputConfig(resize=StretchConfig(size=128), std=(58, 57, 57))
    detector = build_ssd(SSDConfig(backbone=RESNET, neck=neck, head=head, input=input_config), VOC).train()
    batch = make_batch(detector, [3, 0])
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3, fused=True)
    history = []
    for _ in range(8):
        assert batch.targets
        loss = torch.stack(list(detector.criterion(detector(batch), batch.targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 2


def test_mobilenet_ssd_has_relu_throughout() -> None:
    """Not ReLU6: chuanqi305's network, unlike torchvision's and TensorFlow's."""
    detector = build("voc/mobilenet_ssd.yaml", VOC)
    activations = [type(m) for m in detector.modules() if isinstance(m, torch.nn.ReLU | torch.nn.ReLU6)]
    assert activations == [torch.nn.ReLU] * (27 + 8)  # conv0 and 13 separable ones; four levels of two


@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages_of_ssds_vgg(frozen_stages: int) -> None:
    with torch.device("meta"):
        backbone = build_ssd_vgg(SSDVGGConfig(frozen_stages=frozen_stages))
    convs = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    expected = sum((2, 2, 3, 3, 3)[:frozen_stages])  # of VGG16's stages
    assert [conv.weight.requires_grad for conv in convs] == [False] * expected + [True] * (15 - expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone": SSDVGGConfig(weights="IMAGENET1K_V1")},
            "input.std: backbone.weights IMAGENET1K_V1 need ImageNet",
        ),
        ({"neck": None}, "head.priors.min_sizes: expected 2 entries, one for each feature level, found 6"),
        (
            {"backbone": ResNetConfig()},
            "head.priors.min_sizes: expected 8 entries, one for each feature level, found 6",
        ),
        ({"neck": FPNConfig()}, "head.priors.min_sizes: expected 3 entries, one for each feature level, found 6"),
        ({"input": SSDInputConfig(resize=ShortSideConfig())}, "input.resize: priors are laid out for one input size"),
        (
            {"input": SSDInputConfig(resize=StretchConfig(size=300, train_sizes=(300, 512)))},
            "input.resize.train_sizes: head.priors.steps are those of one input size; use steps: null",
        ),
        (
            {"neck": ExtraLevelsConfig(out_channels=(8,), reduce=("stride",))},
            "head.priors.min_sizes: expected 3 entries, one for each feature level, found 6",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SSDConfig(**fields)  # type: ignore[arg-type]
