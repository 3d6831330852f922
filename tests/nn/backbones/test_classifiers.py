"""Complete classifiers: published parameter counts, and fc6 and fc7 for the detectors."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from detkit.nn.backbones import BackboneConfig, load_classifier
from detkit.nn.backbones.alexnet import AlexNetConfig, CaffeNetConfig
from detkit.nn.backbones.classifiers import EuclideanRBF, build_classifier
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.vgg import VGGConfig


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "aux", "parameters"),
    [
        ("lenet5", False, 60_000),  # the paper's conclusion of section II-B, and the sum of its layers
        ("lenet5_dense", False, 61_706),  # 156 + 2,416 + 48,120 + 10,164 + 850
        ("caffenet", False, 60_965_224),  # the BVLC prototxt
        ("alexnet", False, 61_100_840),  # from here on torchvision's metadata
        ("vgg16", False, 138_357_544),
        ("googlenet", False, 6_624_904),
        ("googlenet", True, 13_004_888),
        ("inception_v3", False, 23_834_568),
        ("inception_v3", True, 27_161_264),
        ("resnet152", False, 60_192_808),
    ],
)
def test_number_of_parameters(name: str, aux: bool, parameters: int) -> None:
    with torch.device("meta"):
        assert count(build_classifier(name, aux=aux)) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lenet5", [("c1", 156), ("s2", 12), ("c3", 1516), ("s4", 32), ("c5", 48_120), ("f6", 10_164)]),
        ("lenet5_dense", [("c1", 156), ("c3", 2416), ("c5", 48_120), ("f6", 10_164), ("output", 850)]),
    ],
)
def test_the_layers_of_lenet(name: str, parameters: list[tuple[str, int]]) -> None:
    layers = [(layer, count(block)) for layer, block in build_classifier(name).named_children()]
    assert [(layer, number) for layer, number in layers if number] == parameters


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [("lenet5", 1, 32, 10), ("lenet5_dense", 1, 32, 10), ("caffenet", 3, 227, 1000), ("alexnet", 3, 224, 1000)],
)
def test_one_score_for_each_class(name: str, channels: int, size: int, classes: int) -> None:
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    assert build_classifier(name).eval()(images).shape == (2, classes)
    scores = build_classifier(name, 3).eval()(images)
    assert scores.shape == (2, 3)
    assert scores.isfinite().all()
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_auxiliary_classifiers_return_scores_in_training(name: str, size: int) -> None:
    images = torch.rand(2, 3, size, size)
    outputs = build_classifier(name, 4, aux=True).train()(images)
    assert [scores.shape for scores in outputs] == [(2, 4)] * (3 if name == "googlenet" else 2)
    assert build_classifier(name, 4).train()(images).shape == (2, 4)


def test_a_class_is_the_nearest_code() -> None:
    rbf = EuclideanRBF(84, 10)
    assert count(rbf) == 0
    assert rbf.codes.abs().eq(1).all()
    assert torch.equal(rbf.codes, EuclideanRBF(84, 10).codes)
    assert "codes" in rbf.state_dict()
    scores = rbf(rbf.codes)
    assert torch.equal(scores.argmax(1), torch.arange(10))
    assert torch.equal(scores.diagonal(), torch.zeros(10))
    apart = [[-4.0 * int((a != b).sum()) for b in rbf.codes] for a in rbf.codes]  # (1 - -1)^2 for each bit
    assert torch.equal(scores, torch.tensor(apart))


def test_lenet_learns_a_handful_of_images() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(10, 1, 32, 32), torch.arange(10)
    network = build_classifier("lenet5")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert torch.equal(network(images).argmax(1), labels)


def test_unknown_classifiers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'alexnett' is not a classifier; known: alexnet$"):
        build_classifier("alexnett")
    with pytest.raises(ValueError, match=r"'lenet' is not a classifier; known: lenet5$"):
        build_classifier("lenet")
    with pytest.raises(ValueError, match="'fasterrcnn_resnet50_fpn' is not a classifier"):
        build_classifier("fasterrcnn_resnet50_fpn")
    with pytest.raises(ValueError, match=r"aux: expected googlenet or inception_v3, .* found vgg16"):
        build_classifier("vgg16", aux=True)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Saves a tiny classifier (8 -> 6 -> 6 -> 5) where torchvision's loader looks for VGG16's and AlexNet's files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = {"features.0.weight": torch.rand(6, 8)}
    for number, (inputs, outputs) in {0: (8, 6), 3: (6, 6), 6: (6, 5)}.items():
        state |= {f"classifier.{number}.{key}": value for key, value in nn.Linear(inputs, outputs).state_dict().items()}
    for name in ("vgg16", "alexnet"):
        for entry in models.get_model_weights(name):
            torch.save(state, tmp_path / "hub" / "checkpoints" / entry.url.rsplit("/", 1)[-1])
    return state


@pytest.mark.parametrize(
    "config", [VGGConfig(weights="IMAGENET1K_V1"), AlexNetConfig(weights="IMAGENET1K_V1")], ids=["vgg16", "alexnet"]
)
def test_fc6_and_fc7_start_from_the_public_ones(config: BackboneConfig, published: dict[str, Tensor]) -> None:
    for layers, names in (
        (nn.ModuleList([nn.Linear(8, 6), nn.Linear(6, 6)]), "fc6 and fc7"),
        ([nn.Linear(8, 6)], "fc6"),
    ):
        assert load_classifier(config, layers) == f"roi.hidden: {names} of {config.name} IMAGENET1K_V1"
        for layer, number in zip(layers, (0, 3), strict=False):
            assert torch.equal(layer.weight, published[f"classifier.{number}.weight"])
            assert torch.equal(layer.bias, published[f"classifier.{number}.bias"])
            assert layer.weight.requires_grad


VGG = VGGConfig(weights="IMAGENET1K_V1")
SHAPES = "fc6 and fc7 of vgg16 IMAGENET1K_V1 are 8 to 6, 6 to 6"


@pytest.mark.parametrize(
    ("config", "widths", "note"),
    [
        # fc7 has another shape, so that fc6 is not loaded either
        (VGG, [8, 6, 7], f"roi.hidden starts at random: its layers are 8 to 6, 6 to 7, {SHAPES}"),
        (VGG, [9, 6, 6], f"roi.hidden starts at random: its layers are 9 to 6, 6 to 6, {SHAPES}"),
        # the public fc8 is made for ImageNet's classes
        (VGG, [8, 6, 6, 5], f"roi.hidden starts at random: its layers are 8 to 6, 6 to 6, 6 to 5, {SHAPES}"),
        (
            VGGConfig(weights="IMAGENET1K_FEATURES"),
            [8, 6, 6],
            "roi.hidden starts at random: vgg16 IMAGENET1K_FEATURES has no fc6 and fc7",
        ),
        (VGG, [8], None),
        (VGGConfig(), [8, 6, 6], None),
        (AlexNetConfig(), [8, 6, 6], None),
        (CaffeNetConfig(), [8, 6, 6], None),
        (ResNetConfig(name="resnet18", weights="IMAGENET1K_V1"), [8, 6, 6], None),
    ],
)
@pytest.mark.usefixtures("published")
def test_layers_that_do_not_fit_do_not_change(config: BackboneConfig, widths: list[int], note: str | None) -> None:
    layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
    before = {key: value.clone() for key, value in layers.state_dict().items()}
    assert load_classifier(config, layers) == note
    assert all(torch.equal(value, before[key]) for key, value in layers.state_dict().items())


@pytest.mark.usefixtures("published")
def test_layers_of_a_lower_rank_do_not_change() -> None:
    cut = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 6))
    note = load_classifier(VGG, [cut, nn.Linear(6, 6)])
    assert note == f"roi.hidden starts at random: its layers are not linear, 6 to 6, {SHAPES}"
