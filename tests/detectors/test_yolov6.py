"""YOLOv6 in its published sizes, its deployed form, its parts, and that it learns."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from detkit.detectors.build import build_detector
from detkit.detectors.yolov6 import YOLOv6, YOLOv6Config
from detkit.nn.backbones.efficient_rep import EfficientRepConfig, Pools
from detkit.nn.csp import conv
from detkit.nn.heads.yolo_v6 import YOLOv6HeadConfig
from detkit.nn.input import LetterboxConfig
from detkit.nn.necks.rep_pan import BiConcat, RepPANConfig
from detkit.nn.reparam import FORMS, FormName, RepBottleneck, RepConv, RepCSP, deploy
from detkit.structures import Categories
from tests.detectors.batches import enliven, make_batch
from tests.detectors.export import check_export
from tests.detectors.overfit import overfit
from tests.nn.heads.support import make_target
from tests.nn.test_reparam import with_statistics

COCO = Categories.of_names([f"class {i}" for i in range(80)])
# Published files have the numbers 0 to 16, by which the mean of a distribution is taken, twice among their weights,
# also those of n and s, which have no distributions. Nothing learns them; here they are no weights.
CONSTANTS = 2 * 17


def yolov6(form: FormName, depth: float, width: float, blocks: int, **head: Any) -> YOLOv6Config:
    return YOLOv6Config(
        backbone=EfficientRepConfig(form=form, depth=depth, width=width),
        neck=RepPANConfig(form=form, blocks=blocks),
        head=YOLOv6HeadConfig(**head),
    )


N = yolov6("rep", 1 / 3, 0.25, 4, box_loss="siou")
M = yolov6("csp_rep", 0.6, 0.75, 7, reg_max=16)
L = yolov6("csp_conv", 1, 1, 12, reg_max=16)
SMALL = [  # every form, with few channels
    yolov6("rep", 1 / 6, 0.125, 2),
    yolov6("csp_rep", 1 / 6, 0.125, 2, reg_max=4),
    yolov6("csp_conv", 1 / 6, 0.125, 2, reg_max=4),
]


def build(config: YOLOv6Config) -> YOLOv6:
    detector = build_detector(config, COCO)
    assert isinstance(detector, YOLOv6)
    return detector


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "trained", "deployed"),
    [  # release 0.4, 80 classes
        (N, 5_058_270, 4_649_246),
        (YOLOv6Config(), 20_147_358, 18_541_854),
        (M, 37_740_982, 34_866_230),
        (L, 59_638_731, 59_638_731),
    ],
    ids=list("nsml"),
)
def test_published_parameter_counts(config: YOLOv6Config, trained: int, deployed: int) -> None:
    with torch.device("meta"):
        detector = build(config)
        assert num_parameters(detector) + CONSTANTS == trained
        assert num_parameters(deploy(detector)) + CONSTANTS == deployed


@pytest.mark.parametrize("config", SMALL, ids=FORMS)
def test_the_deployed_detector_computes_the_same(config: YOLOv6Config) -> None:
    torch.manual_seed(0)
    detector = build(config)
    with_statistics(detector)
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):  # the published start of the last layers, zero, would hide all others
            nn.init.kaiming_normal_(module.weight)
    images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96]] * 2)
    deployed = deploy(copy.deepcopy(detector))
    assert not any(isinstance(module, RepConv) for module in deployed.modules())
    with torch.no_grad():
        before, after = detector.network(images, sizes), deployed.network(images, sizes)
    for name in ("sides", "logits"):
        expected = getattr(before, name)
        assert expected.std() > 0.1
        scale = expected.abs().amax().item()
        torch.testing.assert_close(getattr(after, name), expected, atol=1e-5 * scale, rtol=1e-5)


def test_levels_of_the_three_coarser_strides() -> None:
    outputs = build(SMALL[0]).eval().network(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]))
    assert outputs.logits.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 80)
    assert outputs.strides.unique().tolist() == [8, 16, 32]


def test_the_warm_up_counts_the_images_of_the_detector() -> None:
    detector = build(SMALL[0].model_copy(update={"head": YOLOv6HeadConfig(warmup_images=10)}))
    outputs = detector.network(torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]]))
    targets = [make_target([(3.0, 2.0, 58.0, 49.0)])]
    for seen in (9, 10):
        detector.images_seen = seen
        expected = detector.head.criterion(outputs, targets, seen)
        torch.testing.assert_close(detector.criterion(outputs, targets), expected)
    assert detector.head.criterion(outputs, targets, 9) != expected


@pytest.mark.parametrize("strides", [(8, 16), (4, 16, 32), (8, 16, 16)])
def test_levels_without_a_gap(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"strides: .*expected|backbone.strides: expected"):
        YOLOv6Config.model_validate({"backbone": {"name": "efficient_rep", "strides": strides}})


def test_other_backbones_take_part() -> None:
    config = YOLOv6Config.model_validate(
        {"backbone": {"name": "resnet18", "weights": None, "strides": (4, 8, 16, 32)}, "neck": {"blocks": 1}}
    )
    detector = build(config)
    assert detector.neck is not None
    assert detector.neck.out_channels == (64, 128, 256)


def test_a_join_takes_the_coarser_level_the_level_and_the_finer_one() -> None:
    torch.manual_seed(0)
    block = BiConcat(3, 5, 4)
    with_statistics(block)
    coarser, level, finer = torch.randn(1, 4, 2, 3), torch.randn(1, 3, 4, 6), torch.randn(1, 5, 8, 12)
    joined = torch.cat([block.up(coarser), block.level(level), block.down(block.finer(finer))], dim=1)
    torch.testing.assert_close(block(coarser, level, finer), block.merge(joined))
    # a transposed convolution of 2 x 2 gives each cell four of its own
    weight, bias = block.up.weight, block.up.bias
    cell = torch.einsum("c,cokl->okl", coarser[0, :, 1, 2], weight) + bias[:, None, None]  # type: ignore[index]
    torch.testing.assert_close(block.up(coarser)[0, :, 2:4, 4:6], cell)


@pytest.mark.parametrize("csp", [False, True])
def test_pools_are_of_one_map(csp: bool) -> None:
    torch.manual_seed(0)
    block, x = Pools(4, csp=csp, act="relu"), torch.randn(1, 4, 20, 20)
    with_statistics(block)
    y = block.before(x)
    main = block.after(torch.cat([y, *(F.max_pool2d(y, size, 1, size // 2) for size in (5, 9, 13))], dim=1))
    if not csp:
        torch.testing.assert_close(block(x), main)
        return
    assert block.side is not None
    assert block.merge is not None
    torch.testing.assert_close(block(x), block.merge(torch.cat([block.side(x), main], dim=1)))


def test_a_bottleneck_adds_its_input_times_a_learned_factor() -> None:
    double, half = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    nn.init.constant_(half.weight, 0.5)
    block, x = RepBottleneck(double, half), torch.randn(1, 1, 3, 3)
    torch.testing.assert_close(block(x), 2 * x)
    nn.init.constant_(block.factor, -3.0)
    torch.testing.assert_close(block(x), -2 * x)


def test_main_and_side_of_a_cross_stage_partial_block() -> None:
    torch.manual_seed(0)
    block = RepCSP(4, 6, 3, [conv(3, 3, 3) for _ in range(4)], act="relu")
    with_statistics(block)
    x = torch.randn(1, 4, 5, 5)
    y: Tensor = block.main(x)
    for bottleneck in block.blocks:
        y = bottleneck(y)
    assert len(block.blocks) == 2
    torch.testing.assert_close(block(x), block.merge(torch.cat([y, block.side(x)], dim=1)))


@pytest.mark.long
@pytest.mark.parametrize("config", SMALL[:2], ids=["rep", "csp_rep"])
def test_the_core_is_exported(config: YOLOv6Config) -> None:
    torch.manual_seed(0)
    small = LetterboxConfig(size=64, fill=114)
    detector = build(config.model_copy(update={"input": config.input.model_copy(update={"resize": small})}))
    enliven(detector)
    for layer in detector.head.regressor:
        nn.init.constant_(layer.bias, 3.0)  # type: ignore[arg-type]  # distances below 0 detect nothing
    check_export(detector, make_batch(detector, [3, 2], [(120, 160), (96, 100)], targets=False))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "head"), [("rep", "{}"), ("csp_rep", "{reg_max: 4}")])
def test_a_few_pictures_are_learned_by_heart(form: str, head: str, tmp_path: Path) -> None:
    file = tmp_path / "yolov6.yaml"
    file.write_text(
        f"model: {{name: yolov6, backbone: {{name: efficient_rep, form: {form}, depth: 0.1, width: 0.125}}, "
        f"neck: {{form: {form}, blocks: 1}}, head: {head}, "
        f"input: {{resize: {{name: letterbox, size: 96, fill: 114}}}}}}\n"
        "data: {name: shapes}\naugment: flip\neval: {protocol: voc07}\n"
        "train: {epochs: 1, batch_size: 4, optimizer: {name: adamw, lr: 1e-3}, schedule: {name: cosine}}\n"
    )
    assert overfit(file, tmp_path, [], pictures=4, steps=200, lr=3e-3) > 0.8
