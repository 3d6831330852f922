"""Faster forms of torchvision's blocks; see `modules.py`."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation

from detkit.accelerate.folding import run_in_order


class FastConv2dNormActivation(Conv2dNormActivation):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return run_in_order(self, x)


class FastBasicBlock(BasicBlock):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        y = run_in_order((self.conv1, self.bn1, self.relu, self.conv2, self.bn2), x)
        return _joined(self, x, y)


class FastBottleneck(Bottleneck):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        layers = (self.conv1, self.bn1, self.relu, self.conv2, self.bn2, self.relu, self.conv3, self.bn3)
        return _joined(self, x, run_in_order(layers, x))


FASTER: dict[type[nn.Module], type[nn.Module]] = {
    Conv2dNormActivation: FastConv2dNormActivation,
    BasicBlock: FastBasicBlock,
    Bottleneck: FastBottleneck,
}


def _joined(block: BasicBlock | Bottleneck, x: Tensor, y: Tensor) -> Tensor:
    y += x if block.downsample is None else block.downsample(x)
    joined: Tensor = block.relu(y)
    return joined
