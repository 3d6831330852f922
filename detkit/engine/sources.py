"""What a detector can be loaded from: a run, a checkpoint, or public weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detkit.config import override, parse_config, parse_yaml
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine.checkpoint import CheckpointError, load_checkpoint
from detkit.engine.run import LAST
from detkit.engine.settings import RunConfig
from detkit.engine.upgrade import upgrade_config, upgrade_state
from detkit.structures import Categories


def load_detector(source: str | Path) -> tuple[AnyDetector, RunConfig | None]:
    """A detector in evaluation mode, and the configuration it was trained with.

    `source` is a run (its last checkpoint), a checkpoint, or a public one: `torchvision:NAME` or `detr:NAME`, with
    `:FILE` for weights that are already on disk, or a darknet model, `NAME.cfg` with `NAME.weights` beside it or
    `darknet:CFG:WEIGHTS:NAMES`; those have no configuration. A checkpoint's weights come from the file: none are
    downloaded. Raises UserError if it is none of these.
    """
    if str(source).startswith("torchvision:"):
        from detkit.weights.torchvision import load_torchvision

        _, name, *file = str(source).split(":", 2)
        return load_torchvision(name, Path(file[0]) if file else None), None
    if str(source).startswith("detr:"):
        from detkit.weights.detr import load_detr

        _, name, *file = str(source).split(":", 2)
        return load_detr(name, Path(file[0]) if file else None), None
    if str(source).startswith("darknet:") or (Path(source).suffix == ".cfg" and not Path(source).is_dir()):
        from detkit.weights.darknet import load_darknet_source

        return load_darknet_source(str(source).removeprefix("darknet:")), None
    path = Path(source) / LAST if Path(source).is_dir() else Path(source)
    state = upgrade_state(load_checkpoint(path))
    tree = upgrade_config(parse_yaml(state["config"], f"{path}: its configuration"))
    if "model" not in tree:
        raise CheckpointError(
            f"{path}: its detector was built in Python, so there is no configuration to build it from; build it as "
            "the training did and load the weights that stand under 'model'"
        )
    # The checkpoint has the weights of the backbone too. Their public name is not checked again, because only
    # torchvision knows it, which takes seconds to import.
    plain = override(tree, ["model.backbone.weights=null"])
    config = parse_config(plain, RunConfig, where=f"{path}: its configuration")
    detector = build_detector(config.model, Categories.from_plain(state["categories"]))
    load_weights(detector, state["model"], path)
    backbone = config.model.backbone.model_copy(update={"weights": tree["model"]["backbone"].get("weights")})
    model = config.model.model_copy(update={"backbone": backbone})
    return detector.eval(), config.model_copy(update={"model": model})


def load_weights(detector: AnyDetector, weights: dict[str, Any], path: Path) -> None:
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path}: its weights do not fit this detector: {lines[min(1, len(lines) - 1)].strip()}"
        ) from error
