"""A block that trains as parallel layers is one convolution in evaluation."""

import pytest
import torch
from torch import nn

from detkit.nn.csp import conv
from detkit.nn.reparam import RepConv, deploy


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def with_statistics(module: nn.Module) -> nn.Module:
    """Norms as after a training."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return module.eval()


@pytest.mark.parametrize(
    "block", [lambda: RepConv(4, 6), lambda: RepConv(4, 6, 2, act="relu"), lambda: RepConv(4, 4, identity=True)]
)
def test_the_deployed_form_computes_the_same(block: type[RepConv]) -> None:
    module, x = with_statistics(block()), torch.randn(2, 4, 9, 7)
    before = module(x)
    network = deploy(nn.Sequential(module))
    assert [type(layer) for layer in network.modules()].count(nn.Conv2d) == 1
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    torch.testing.assert_close(network(x), before, atol=1e-5, rtol=1e-5)


def test_deploy_reaches_blocks_within_blocks_and_leaves_the_others() -> None:
    plain = conv(4, 4, 3)
    network = with_statistics(nn.Sequential(nn.Sequential(RepConv(4, 4, identity=True), plain), RepConv(4, 2)))
    x = torch.randn(1, 4, 6, 5)
    before = network(x)
    torch.testing.assert_close(deploy(network)(x), before, atol=1e-5, rtol=1e-5)
    assert network[0][1] is plain  # type: ignore[index]
    assert not any(isinstance(layer, RepConv) for layer in network.modules())


def test_the_identity_needs_the_shape_of_the_input() -> None:
    with pytest.raises(ValueError, match="identity: expected"):
        RepConv(4, 6, identity=True)
