"""Thinner fully connected layers for a trained detector (Fast R-CNN, arXiv 1504.08083, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from detkit.config import UserError, override, parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.region_based import RegionBasedDetector
from detkit.engine.checkpoint import save_checkpoint
from detkit.engine.run import detector_state
from detkit.engine.run_folder import create_folder
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.nn.heads.regions import LayeredRegionHead


def compress(source: str | Path, ranks: Sequence[int], output: Path) -> str:
    """Cuts each hidden layer of a trained region head to its rank and writes the detector as a checkpoint.

    source  run folder or checkpoint
    ranks   one for each layer of `model.roi.hidden`
    Returns a sentence with the number of parameters before and after.
    """
    detector, config = load_detector(source)
    if config is None:
        raise UserError(f"{source}: public weights; only a detector that was trained here can be compressed")
    roi = detector.roi if isinstance(detector, RegionBasedDetector) else None
    if not isinstance(roi, LayeredRegionHead) or config.model.name == "sliding_window":
        raise UserError(f"{source}: {type(detector).__name__} has no region head with fully connected layers to cut")
    if roi.config.ranks:
        raise UserError(f"{source}: its layers are cut already, to ranks {list(roi.config.ranks)}")
    highest = [min(layer.weight.shape) for layer in roi.hidden]  # type: ignore[arg-type]
    if len(ranks) != len(highest) or not all(1 <= rank <= most for rank, most in zip(ranks, highest, strict=True)):
        raise UserError(f"--ranks: expected {len(highest)}, each of at least 1 and at most {highest}, found {[*ranks]}")
    tree = override(config.model_dump(mode="json"), [f"model.roi.ranks={list(ranks)}", "model.backbone.weights=null"])
    thin_config = parse_config(tree, RunConfig, where="--ranks")
    thin = build_detector(thin_config.model, detector.categories)
    state = detector.state_dict()
    for number, rank in enumerate(ranks):
        weight, bias = state.pop(f"roi.hidden.{number}.weight"), state.pop(f"roi.hidden.{number}.bias")
        first, second = truncated_svd(weight, rank)
        state |= {f"roi.hidden.{number}.0.weight": first, f"roi.hidden.{number}.1.weight": second}
        state[f"roi.hidden.{number}.1.bias"] = bias
    thin.load_state_dict(state)
    create_folder(output.parent)
    save_checkpoint(output, detector_state(thin_config, thin))
    before, after = (sum(p.numel() for p in model.parameters()) for model in (detector, thin))
    return f"{before:,} parameters -> {after:,} in {output}"


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A matrix `[M, N]` as the best product `second @ first`, `[M, rank]` and `[rank, N]`; the first has the values."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return values[:rank, None] * right[:rank], left[:, :rank].contiguous()
