"""What every backbone is: named blocks in a row, some of them tapped as feature levels, the first of them frozen.

Shapes: images `[B, 3, H, W]` -> levels, finest first, `[B, out_channels[l], H / out_strides[l], W / out_strides[l]]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkit.config import UserError


class StagedBackbone(nn.Module):
    """Runs `blocks` in order and returns the outputs of those named in `taps`.

    Blocks after the last tap are left out. Blocks named in `frozen` get no gradient and stay in evaluation mode, so
    that their batch statistics stand still too.
    """

    def __init__(
        self,
        blocks: Mapping[str, nn.Module],
        taps: Sequence[str],
        out_channels: Sequence[int],
        out_strides: Sequence[int],
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        last = max(list(blocks).index(tap) for tap in taps)
        for name, block in list(blocks.items())[: last + 1]:
            self.add_module(name, block)
        self.taps = frozenset(taps)
        self.out_channels = tuple(out_channels)
        self.out_strides = tuple(out_strides)
        self.frozen = tuple(name for name in frozen if name in self._modules)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = []
        x = images
        for name, block in self.named_children():
            x = block(x)
            if name in self.taps:
                levels.append(x)
        return levels

    def train(self, mode: bool = True) -> StagedBackbone:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def check_weights(model: str, weights: str | None) -> None:
    """Raises ValueError unless torchvision has this weights entry, such as IMAGENET1K_V1; loads nothing."""
    if weights is not None:
        from torchvision.models import get_model_weights

        known = list(get_model_weights(model).__members__)
        if weights not in known:
            close = difflib.get_close_matches(weights, known, n=1, cutoff=0.3)
            raise ValueError(
                f"{weights!r} is not a torchvision weights entry of {model}; known: {', '.join(close or known)}"
            )


def check_levels(levels: Sequence[int]) -> None:
    """Raises ValueError unless the levels are in the order in which they come out."""
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError(f"levels: expected at least one level, finest first and each once, got {list(levels)}")


def load_weights(network: nn.Module, model: str, weights: str) -> None:
    """Loads torchvision's public classification weights into its own network."""
    from torchvision.models import get_model_weights

    public = get_model_weights(model)[weights]
    network.load_state_dict(download(public.url, str(public)))


def download(url: str, name: str) -> dict[str, Any]:
    """The checkpoint at `url`, downloaded once, checked by the hash in its name. Raises UserError if that cannot be."""
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
