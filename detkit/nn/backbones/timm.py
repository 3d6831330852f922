"""Any classifier of timm (the extra `timm`) that gives feature levels: CNNs, ViT, Swin, HGNetV2 and others.

The levels are those of timm's `features_only`, without a norm of their own. A transformer such as ViT has a level after
each of its blocks, all at one stride: `strides: [16]` is the last of them.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import UserError
from detkit.nn.backbones.staged import StagedBackbone, StagedConfig, find_stages

# Arguments by which networks with windows or position embeddings take pictures of any size; others do not have them.
# As in the authors' detectors, Swin always shifts its windows.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False, "always_partition": True}


class TimmConfig(StagedConfig):
    """The pixels that pre-trained weights need are `mean` and `std` of timm's `pretrained_cfg`: set `input` to them."""

    name: Literal["timm"] = "timm"
    model: str
    strides: tuple[int, ...] = (8, 16, 32)
    weights: str | None = None  # a tag of timm, e.g. ssld_stage1_in22k_in1k; default: timm's choice; null: random
    norm: Literal["frozen_bn", "bn"] = "bn"
    options: dict[str, Any] = Field(default_factory=dict)  # of timm.create_model too, e.g. {drop_path_rate: 0.1}

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return tuple(level["reduction"] for level in _describe(self.model, json.dumps(self.options))[0])

    @model_validator(mode="after")
    def _weights_exist(self) -> TimmConfig:
        if self.weights not in (None, "default"):
            names = (name.partition(".") for name in _timm().list_pretrained(f"{self.model}.*"))
            known = [tag for model, _, tag in names if model == self.model]
            if self.weights not in known:
                raise ValueError(f"weights: {self.model} has no {self.weights!r}; known: {', '.join(known) or 'none'}")
        return self


def build_timm(config: TimmConfig) -> StagedBackbone:
    """Raises UserError if the weights cannot be downloaded."""
    levels, any_size = _describe(config.model, json.dumps(config.options))
    indices = find_stages(config.model, config.stage_strides, config.strides)
    name = config.model if config.weights in (None, "default") else f"{config.model}.{config.weights}"
    options = {**any_size, **config.options, "features_only": True, "out_indices": indices}
    try:
        network = _timm().create_model(name, pretrained=config.weights is not None, **options)
    except Exception as error:  # of the hub's client, of the network or of the file
        if config.weights is None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"backbone.weights: timm cannot load {name}: {reason}") from error
    if config.norm == "frozen_bn":
        network = _timm().layers.freeze_batch_norm_2d(network)
    for module in network.modules():
        if hasattr(module, "dynamic_img_pad"):  # to whole patches
            module.dynamic_img_pad = True
    ends = [level["module"] for level in levels[: indices[-1] + 1]]
    return TimmBackbone(network, [levels[index] for index in indices], ends, config.frozen_stages)


class TimmBackbone(StagedBackbone):
    """
    network  of timm's `features_only`
    levels   timm's description of each level that `network` returns
    ends     the last module of each stage in it, by the name that it has in the classifier
    """

    def __init__(
        self, network: nn.Module, levels: Sequence[dict[str, Any]], ends: Sequence[str], frozen_stages: int
    ) -> None:
        nn.Module.__init__(self)
        self.network = network
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self.out_channels = tuple(level["num_chs"] for level in levels)
        self.out_strides = tuple(level["reduction"] for level in levels)
        self.frozen = self._freeze(ends, frozen_stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.network(images)
        return [level.permute(0, 3, 1, 2).contiguous() for level in levels] if self.channels_last else levels

    def _freeze(self, ends: Sequence[str], frozen_stages: int) -> tuple[str, ...]:
        """The names of the modules that stay in evaluation mode; parameters up to the last of them get no gradient.

        timm registers modules in the order in which they run.
        """
        if frozen_stages == 0:
            return ()
        modules = list(self.network.named_modules(prefix="network"))
        last = [number + sum(1 for _ in module.modules()) - 1 for number, (_, module) in enumerate(modules)]
        stage_ends = {_plain(name): end for (name, _), end in zip(modules, last, strict=True)}
        end = last[0] if frozen_stages >= len(ends) else stage_ends.get(_plain(ends[frozen_stages - 1]))
        if end is None:
            raise UserError("backbone.frozen_stages: the stages of this model of timm are no modules of it; expected 0")
        for _, module in modules[: end + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        return tuple(name for (name, _), own in zip(modules, last, strict=True) if own <= end)


def _plain(name: str) -> str:
    """One name for a module of the classifier and of the network of levels, where timm writes `stages_0`."""
    return name.removeprefix("network.").removeprefix("model.").replace(".", "_")


@lru_cache
def _describe(model: str, options: str) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """timm's description of each level of a model, and those of `ANY_SIZE` that it has.

    options  JSON
    Raises ValueError for a model that timm does not have, or one without levels.
    """
    timm = _timm()
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"model: timm has no {model!r}; nearest: {', '.join(close) or 'none, see timm.list_models()'}")
    try:
        with torch.device("meta"):
            network = timm.create_model(model, **json.loads(options))
    except Exception as error:  # whatever the network makes of options that do not fit
        raise ValueError(f"options: timm's {model} cannot be built with {options}: {error}") from error
    levels = getattr(network, "feature_info", None)
    if not isinstance(levels, list) or not levels:
        raise ValueError(f"model: timm's {model} gives no feature levels")
    known = inspect.signature(type(network).__init__).parameters
    return levels, {name: value for name, value in ANY_SIZE.items() if name in known}


def _timm() -> Any:
    """The package, which takes seconds to import."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"for a backbone of timm, {error.name} must be installed: pip install -e '.[timm]'") from error
    return timm
