"""A block that trains as parallel layers is one convolution in evaluation."""

import pytest
import torch
from torch import nn

from detkit.nn.csp import conv
from detkit.nn.reparam import CSPRepLayer, RepConv, deploy


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


def test_the_deployed_form_has_the_eps_of_its_norms() -> None:
    """Variances of 1e-4, beside which the eps matters: 1e-3, unless another is given."""
    x = torch.randn(1, 4, 5, 5)
    for block, eps in ((RepConv(4, 4, identity=True), 1e-3), (RepConv(4, 4, identity=True, norm_eps=1e-5), 1e-5)):
        module = with_statistics(block)
        norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
        for norm in norms:
            norm.running_var.fill_(1e-4)  # type: ignore[union-attr]
        assert [norm.eps for norm in norms] == [eps] * 3
        before = module(x)
        torch.testing.assert_close(deploy(nn.Sequential(module))(x), before, atol=1e-3, rtol=1e-4)


def test_a_fusion_block_adds_its_two_ways() -> None:
    """Without blocks on the main way, and the side way switched off, the 1x1 convolutions are all that is left."""
    layer = with_statistics(CSPRepLayer(6, 4, hidden=2, blocks=0))
    x = torch.randn(1, 6, 3, 3)
    torch.testing.assert_close(layer(x), layer.merge(layer.main(x) + layer.side(x)))  # type: ignore[operator]
    same = with_statistics(CSPRepLayer(6, 4, hidden=4, blocks=2))
    expected = same.blocks(same.main(x)) + same.side(x)  # type: ignore[operator]
    assert torch.equal(same(x), expected), "no convolution follows where the channels are those of the output"


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
