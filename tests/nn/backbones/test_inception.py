"""GoogLeNet and Inception v3 equal torchvision's on pixels normalised by ImageNet's mean and std."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.inception import TransformInput

STRIDES = (2, 4, 8, 16, 32)
# torchvision's node of each level: the output of its block
NODES = {
    "googlenet": ["conv1.relu", "conv3.relu", "inception3b.cat", "inception4e.cat", "inception5b.cat"],
    "inception_v3": ["Conv2d_2b_3x3.relu", "Conv2d_4a_3x3.relu", "Mixed_5d.cat", "Mixed_6e.cat", "Mixed_7c.cat_2"],
}
CHANNELS = {"googlenet": (64, 192, 480, 832, 1024), "inception_v3": (64, 192, 288, 768, 2048)}


def make_config(name: str, **fields: Any) -> Any:
    return TypeAdapter(BackboneConfig).validate_python({"name": name, **fields})


def randomise(network: nn.Module) -> None:
    """Sets random statistics and affine parameters, and weights that preserve the variance of their input."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)


def reference_network(name: str) -> nn.Module:
    """As torchvision builds it for its public weights."""
    network = models.get_model(name, weights=None, transform_input=True, init_weights=False)
    randomise(network)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("name", NODES)
def test_every_level_of_public_weights_is_torchvisions(
    name: str, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    reference = reference_network(name)
    file = models.get_model_weights(name)["IMAGENET1K_V1"].url.rsplit("/", 1)[-1]
    torch.save(reference.state_dict(), tmp_path / "hub" / "checkpoints" / file)  # the auxiliary classifiers are in it

    backbone = build_backbone(make_config(name, weights="IMAGENET1K_V1", strides=STRIDES, norm=norm)).eval()
    images = torch.randn(2, 3, 97, 128, generator=torch.Generator().manual_seed(1))
    expected = create_feature_extractor(reference, NODES[name])(images)
    levels = backbone(images)
    for level, node in zip(levels, NODES[name], strict=True):
        assert level.std() > 0.01
        torch.testing.assert_close(level, expected[node], rtol=1e-4, atol=1e-4)
    scores = reference.fc(levels[-1].mean((2, 3)))
    torch.testing.assert_close(scores, reference(images), rtol=1e-4, atol=1e-4)

    # a checkpoint is loaded into a backbone that is built without weights
    again = build_backbone(make_config(name, strides=STRIDES, norm=norm)).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(images)[-1], levels[-1])


@torch.no_grad()
def test_input_is_transformed_to_minus_one_to_one() -> None:
    rgb = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(TransformInput()((rgb - mean) / std), rgb * 2 - 1)


@torch.no_grad()
@pytest.mark.parametrize("name", NODES)
def test_widths_and_strides(name: str) -> None:
    backbone = build_backbone(make_config(name, strides=STRIDES)).eval()
    assert (backbone.out_channels, backbone.out_strides) == (CHANNELS[name], STRIDES)
    levels = backbone(torch.zeros(1, 3, 224, 224) if name == "googlenet" else torch.zeros(1, 3, 299, 299))
    assert [level.shape[1] for level in levels] == list(CHANNELS[name])
    # the sizes of the papers' tables
    sizes = [112, 56, 28, 14, 7] if name == "googlenet" else [147, 71, 35, 17, 8]
    assert [level.shape[2:] for level in levels] == [(size, size) for size in sizes]
    assert build_backbone(make_config(name)).out_strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", NODES)
def test_auxiliary_classifiers_and_blocks_after_the_last_level_are_left_out(name: str) -> None:
    backbone = build_backbone(make_config(name, norm="bn"))
    bare = {"googlenet": 6_624_904, "inception_v3": 23_834_568}[name]  # torchvision's, without auxiliary classifiers
    width = CHANNELS[name][-1]
    assert sum(p.numel() for p in backbone.parameters()) == bare - (width + 1) * 1000
    names = build_backbone(make_config(name, strides=(2,))).block_names
    stem = ["conv1"] if name == "googlenet" else ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"]
    assert names == ["transform_input", *stem]


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [
        ("googlenet", 0, "nothing"),
        ("googlenet", 1, r"conv1\."),
        ("googlenet", 2, r"conv[123]\."),
        ("googlenet", 4, r"conv|inception[34]"),
        ("googlenet", 5, r"conv|inception"),
        ("inception_v3", 0, "nothing"),
        ("inception_v3", 1, r"Conv2d_[12]"),
        ("inception_v3", 3, r"Conv2d|Mixed_5"),
        ("inception_v3", 5, r"Conv2d|Mixed"),
    ],
)
def test_frozen_stages_get_neither_gradients_nor_statistics(name: str, stages: int, frozen: str) -> None:
    backbone = build_backbone(make_config(name, norm="bn", frozen_stages=stages)).train()
    before = {key: buffer.clone() for key, buffer in backbone.named_buffers()}
    levels: list[Tensor] = backbone(torch.rand(2, 3, 107, 107, generator=torch.Generator().manual_seed(0)))
    loss = sum((level.square().mean() for level in levels), torch.zeros(()))
    if loss.requires_grad:
        loss.backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == bool(re.match(frozen, key)), key
    for key, buffer in backbone.named_buffers():
        if "running" in key:
            assert torch.equal(buffer, before[key]) == bool(re.match(frozen, key)), key


@pytest.mark.parametrize("name", NODES)
def test_frozen_batch_norm_has_nothing_to_train(name: str) -> None:
    backbone = build_backbone(make_config(name, frozen_stages=0)).train()
    assert all(parameter.ndim == 4 for parameter in backbone.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize("name", NODES)
def test_unknown_weights_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"'IMAGENET1K_V9' is not a torchvision weights entry of {name}; known: "):
        make_config(name, weights="IMAGENET1K_V9")
