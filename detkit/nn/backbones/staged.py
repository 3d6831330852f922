"""What every backbone is: blocks that run one after the other, grouped into stages, some of which give a feature level.

Shapes: images `[B, 3, H, W]` -> levels, finest first, `[B, out_channels[l], H / out_strides[l], W / out_strides[l]]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config, UserError

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


class StagedConfig(Config):
    """The fields that all backbones share.

    A stride stands for the last stage that has it. The same stride twice stands for the last two stages that have it.
    """

    name: str
    strides: tuple[int, ...]  # of the feature levels to return, in input px, finest first
    frozen_stages: int = Field(0, ge=0)  # the first n stages get no gradient, nor new batch statistics; 0: none

    @property
    def stage_strides(self) -> tuple[int | None, ...]:
        """The stride of the level that each stage can give, in order; None for a stage that gives none."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _stages_exist(self) -> StagedConfig:
        find_stages(self.name, self.stage_strides, self.strides)
        if self.frozen_stages > len(self.stage_strides):
            raise ValueError(
                f"frozen_stages: {self.name} has {len(self.stage_strides)} stages, found {self.frozen_stages}"
            )
        return self


def find_stages(name: str, stage_strides: Sequence[int | None], strides: Sequence[int]) -> list[int]:
    """The index of the stage that each of `strides` stands for, as `StagedConfig` defines it.

    Raises ValueError, which names the strides of the backbone, if there are not as many stages of a stride, or if
    `strides` are not finest first.
    """
    missing, indices = list(strides), []
    for index in reversed(range(len(stage_strides))):
        stride = stage_strides[index]
        if stride in missing:
            missing.remove(stride)
            indices.append(index)
    if missing or not strides or list(strides) != sorted(strides):
        existing = ", ".join(str(stride) for stride in stage_strides if stride is not None)
        raise ValueError(
            f"strides: {name} has {existing}, found {list(strides)}; expected at least one of these, finest first"
        )
    return indices[::-1]


def consecutive(strides: Sequence[int]) -> bool:
    """Whether each stride is double the one before it, or equal to it."""
    return all(second in (first, 2 * first) for first, second in pairwise(strides))


@dataclass(frozen=True, eq=False)
class Stage:
    """Blocks that run one after the other, and the feature level that one of them gives.

    blocks        by their names in the state dict of the backbone
    stride        of the level in input px; None: the stage gives no level
    out_channels  of the level
    tap           name of the block whose output is the level; None: the last
    output        applied to the level before it is returned, but not to the input of the next block: a norm, or a
                  change of layout to `[B, C, H, W]`; frozen with its stage
    """

    blocks: Mapping[str, nn.Module]
    stride: int | None
    out_channels: int
    tap: str | None = None
    output: nn.Module | None = None


def split(blocks: Mapping[str, nn.Module], ends: Sequence[int]) -> list[dict[str, nn.Module]]:
    """Consecutive parts of `blocks`, one for each of `ends`: the position after the part's last block. Blocks after the
    last part are dropped."""
    items = list(blocks.items())
    return [dict(items[start:end]) for start, end in pairwise([0, *ends])]


class StagedBackbone(nn.Module):
    """Runs the blocks of all stages and returns the levels of `strides`, finest first.

    Blocks after the last level are left out. The first `frozen_stages` stages get no gradient and stay in evaluation
    mode, so that their batch statistics do not change.
    """

    def __init__(self, stages: Sequence[Stage], strides: Sequence[int], frozen_stages: int = 0) -> None:
        super().__init__()
        indices = find_stages("this backbone", [stage.stride for stage in stages], strides)
        tapped = {stages[index].tap or list(stages[index].blocks)[-1]: stages[index] for index in indices}
        blocks = {name: block for stage in stages for name, block in stage.blocks.items()}
        names = list(blocks)
        self.block_names = names[: names.index(list(tapped)[-1]) + 1]
        self.taps = tuple(tapped)
        self.out_channels = tuple(stage.out_channels for stage in tapped.values())
        self.out_strides = tuple(strides)
        for name in self.block_names:
            self.add_module(name, blocks[name])
        outputs = {name: stage.output for name, stage in tapped.items() if stage.output is not None}
        self.outputs = nn.ModuleDict(outputs)
        frozen = [name for stage in stages[:frozen_stages] for name in stage.blocks if name in self.block_names]
        frozen_outputs = [f"outputs.{name}" for name in frozen if name in outputs]
        self.frozen = (*frozen, *frozen_outputs)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = []
        x = images
        blocks: list[nn.Module] = []  # since the last level
        for name in self.block_names:
            blocks.append(self.get_submodule(name))
            if name in self.taps:
                x, blocks = self.run(blocks, x), []
                levels.append(self.outputs[name](x) if name in self.outputs else x)
        return levels

    def run(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    def train(self, mode: bool = True) -> StagedBackbone:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def check_weights(model: str, weights: str | None) -> None:
    """Raises ValueError unless torchvision has this weights entry of the model, such as IMAGENET1K_V1."""
    if weights is not None:
        known = list(public_weights(model).__members__)
        if weights not in known:
            close = difflib.get_close_matches(weights, known, n=1, cutoff=0.3)
            raise ValueError(
                f"{weights!r} is not a torchvision weights entry of {model}; known: {', '.join(close or known)}"
            )


def public_weights(model: str) -> type[WeightsEnum]:
    """The weights that torchvision has for its model of this name."""
    from torchvision.models import get_model_weights  # seconds to import, so not at the head

    weights: type[WeightsEnum] = get_model_weights(model)
    return weights


def torchvision_classifier(model: str, weights: str | None, **options: Any) -> Any:
    """torchvision's classifier of this name with its public weights, or with random ones if `weights` is None.

    options  for its constructor
    """
    from torchvision.models import get_model  # seconds to import, so not at the head

    network = get_model(model, weights=None, **options)
    if weights:
        network.load_state_dict(download_classifier(model, weights))
    return network


def set_drop_path(network: nn.Module, last: float) -> None:
    """Sets how often training leaves out torchvision's residual blocks: from 0 for the first up to `last`, evenly."""
    from torchvision.ops import StochasticDepth  # seconds to import, so not at the head

    blocks = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    for number, block in enumerate(blocks):
        block.p = last * number / max(1, len(blocks) - 1)


def norm_layer(norm: Literal["frozen_bn", "bn"]) -> type[nn.Module]:
    """torchvision's batch norm of constants, or torch's that learns."""
    from torchvision.ops import FrozenBatchNorm2d  # seconds to import, so not at the head

    return FrozenBatchNorm2d if norm == "frozen_bn" else nn.BatchNorm2d


def download_classifier(model: str, weights: str) -> dict[str, Tensor]:
    """The state dict of a public classifier of torchvision."""
    public = public_weights(model)[weights]
    return download(public.url, str(public))


def download(url: str, name: str) -> dict[str, Any]:
    """The checkpoint at `url`, from torch hub's folder or else downloaded to it, and checked by the hash in its name.

    Raises UserError, which begins with `name`, if the download fails or the hash differs.
    """
    try:
        state: dict[str, Any] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
        return state
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name}: cannot download {url}: {error}; "
            f"or fetch it by other means and put it into {torch.hub.get_dir()}/checkpoints"
        ) from error
