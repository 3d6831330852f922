"""What a detector can be loaded from: a run, a checkpoint, or public weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from detkit.config import UserError, override, parse_config, parse_yaml
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine.checkpoint import (
    CheckpointError,
    check_mark,
    check_numbers,
    check_parts,
    is_marked,
    load_checkpoint,
)
from detkit.engine.overrides import change_model
from detkit.engine.run import LAST, load_last
from detkit.engine.settings import RunConfig
from detkit.engine.upgrade import upgrade_config, upgrade_state
from detkit.nn.input import InputConfig
from detkit.structures import Categories
from detkit.weights.files import Change, read_archive, state_in, unchanged
from detkit.weights.plain import convert_plain

PUBLISHERS = ("torchvision", "hf", "detr", "detectron2", "yolox", "yolov5", "yolov7", "darknet")


def load_detector(source: str | Path, overrides: Sequence[str] = ()) -> tuple[AnyDetector, RunConfig | None]:
    """A detector in evaluation mode, and the configuration it was trained with.

    `overrides` change its `model` where that needs no new weights, in that configuration too: thresholds, limits,
    suppression, the size of the input.

    `source` is a run (its last checkpoint), a checkpoint, or a public one: `torchvision:NAME`, `detr:NAME` or
    `yolox:NAME`, with `:FILE` for weights that are already on disk, `yolov5:NAME:FILE`, `yolov7:NAME:FILE`,
    `detectron2:FILE`, `hf:FOLDER` or `hf:OWNER/NAME` of Hugging Face, or a darknet model, `NAME.cfg` with
    `NAME.weights` beside it or `darknet:CFG:WEIGHTS:NAMES`; those have no configuration. It may also be a file that
    `detkit export` wrote, which cannot be trained. A checkpoint's weights come from the file: none are downloaded.
    Raises UserError if it is none of these, or its weights are not numbers, and for other overrides.
    """
    change = partial(change_model, overrides=overrides, source=source)
    if public := _load_public(str(source), change):
        check_numbers(public.state_dict(), source)
        return public, None
    path = _checkpoint_file(source)
    if is_exported(path):
        return _load_exported(path, overrides)
    _refuse_hugging_face(path, source)
    state = upgrade_state(load_last(path.parent) if Path(source).is_dir() else load_checkpoint(path))
    check_parts(state, path)
    check_numbers(state["model"], path)
    tree = _configuration(state["config"], f"{path}: its configuration")
    if "model" not in tree:
        raise CheckpointError(
            f"{path}: its detector was built in Python, so there is no configuration to build it from; build it as "
            "the training did and load the weights that stand under 'model'"
        )
    # The checkpoint has the weights of the backbone too. Their public name is not checked again, because only
    # torchvision knows it, which takes seconds to import.
    backbone = tree["model"].get("backbone") if isinstance(tree["model"], dict) else None
    weights = {"weights": backbone["weights"]} if isinstance(backbone, dict) and "weights" in backbone else {}
    plain = override(tree, ["model.backbone.weights=null"]) if weights else tree
    config = parse_config(plain, RunConfig, where=f"{path}: its configuration")
    model = change(config.model)
    detector = build_detector(model, Categories.from_plain(state["categories"]))
    load_weights(detector, state["model"], path)
    model = model.model_copy(update={"backbone": model.backbone.model_copy(update=weights)})
    return detector.eval(), config.model_copy(update={"model": model})


def _configuration(text: str, where: str) -> dict[str, Any]:
    """The sections of a configuration that a file brings, in their present form."""
    tree = parse_yaml(text, where)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{where}: expected a mapping of sections at the top, found {tree!r}")
    return upgrade_config(tree)


@dataclass(frozen=True)
class Weights:
    """What a detector can start from.

    state       tensors under detkit's names
    categories  the classes that they have rows for; None: the file does not say
    reading     what the source turned out to be
    input       the pixels that they were trained on; None: not known
    strides     of convolutions, by the name of their weight
    """

    state: Mapping[str, Tensor]
    categories: Categories | None
    reading: str
    input: InputConfig | None = None
    strides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_weights(source: str, detector: AnyDetector) -> Weights:
    """The weights of what `load_detector` takes, or of a file of tensors alone, under the names that `detector` has.

    Raises UserError if there are none, or if they are darknet's and `detector` is not one of its networks.
    """
    if public := _load_public(source):
        check_numbers(public.state_dict(), source)
        state = _public_state(public, detector, source)
        reading = "; ".join(["public weights", *public.notes])
        return Weights(state, public.categories, reading, public.input.config, strides_of(public))
    path = _checkpoint_file(source)
    _refuse_exported(path)
    content = read_archive(path, "detkit")
    if is_marked(content):
        check_mark(content, path)
        checkpoint = upgrade_state(cast(dict[str, Any], content))
        check_parts(checkpoint, path)
        check_numbers(checkpoint["model"], path)
        return Weights(checkpoint["model"], Categories.from_plain(checkpoint["categories"]), "a run of detkit")
    own = detector.state_dict()

    def fitting(state: Mapping[str, Tensor]) -> int:
        return sum(name in own and own[name].shape == tensor.shape for name, tensor in state.items())

    whose, state = convert_plain(state_in(content, path, "detkit"), fitting)
    check_numbers(state, path)
    return Weights(state, None, f"tensors of {whose}", _input_of(whose))


def _input_of(whose: str) -> InputConfig | None:
    """The pixels that tensors with the names of a publisher were trained on, where these are always the same."""
    if whose != "a detector of Detectron2":
        return None
    from detkit.weights.detectron2 import INPUT

    return INPUT


def strides_of(detector: AnyDetector) -> dict[str, tuple[int, ...]]:
    """The stride of each convolution, by the name of its weight."""
    layers = detector.named_modules()
    return {f"{name}.weight": layer.stride for name, layer in layers if isinstance(layer, nn.Conv2d)}


def check_source(source: str) -> None:
    """Raises UserError if nothing can start from `source`, being exported or not there, which costs no time to say."""
    path = _checkpoint_file(source)
    _refuse_exported(path)
    if not _is_public(source) and not path.exists():
        raise UserError(f"{path}: no such checkpoint; expected a run, a checkpoint or public weights")


def _refuse_exported(path: Path) -> None:
    if is_exported(path):
        raise UserError(
            f"{path}: an exported file has no weights to start from; name the run that it was exported from"
        )


def _refuse_hugging_face(path: Path, source: str | Path) -> None:
    """Raises UserError for a folder or file of Hugging Face that is named without saying so."""
    beside = (path.parent / "config.json").is_file()
    if beside and (not path.exists() or path.suffix in (".safetensors", ".bin")):
        raise UserError(f"{source}: weights of Hugging Face, by the config.json beside them; name them hf:{source}")


def is_exported(path: Path) -> bool:
    """Whether its suffix is one that `detkit export` writes."""
    return path.suffix.lower() in (".onnx", ".pt2", ".xml")


def _load_exported(path: Path, overrides: Sequence[str]) -> tuple[AnyDetector, RunConfig | None]:
    from detkit.export.runtime import load_exported

    if overrides:
        raise UserError(
            f"--set {overrides[0]}: {path} is an exported file, which has its thresholds, limits and sizes built in; "
            "export the run again with this option"
        )

    detector = load_exported(path)
    text = detector.metadata.configuration
    if text is None:
        return detector, None
    where = f"{path}: its configuration"
    return detector, parse_config(_configuration(text, where), RunConfig, where=where)


def _is_public(source: str) -> bool:
    is_cfg = Path(source).suffix == ".cfg" and not Path(source).is_dir()
    return is_cfg or (source.partition(":")[0] in PUBLISHERS and ":" in source)


def _load_public(source: str, change: Change = unchanged) -> AnyDetector | None:
    """The detector of public weights; None if `source` names none."""
    if not _is_public(source):
        return None
    publisher, _, rest = source.partition(":")
    name, _, file = rest.partition(":")
    match publisher:
        case "torchvision":
            from detkit.weights.torchvision import load_torchvision

            return load_torchvision(name, Path(file) if file else None, change)
        case "hf":
            from detkit.weights.hugging_face import load_hugging_face

            return load_hugging_face(rest, change)
        case "detr":
            from detkit.weights.detr import load_detr

            return load_detr(name, Path(file) if file else None, change)
        case "yolox":
            from detkit.weights.yolox import load_yolox

            return load_yolox(name, Path(file) if file else None, change)
        case "yolov5":
            from detkit.weights.yolov5 import load_yolov5

            return load_yolov5(name, Path(file) if file else None, change)
        case "yolov7":
            from detkit.weights.yolov7 import load_yolov7

            return load_yolov7(name, Path(file) if file else None, change)
        case "detectron2":
            from detkit.weights.detectron2 import load_detectron2

            return load_detectron2(source.removeprefix("detectron2:"), change)
        case _:
            from detkit.weights.darknet import load_darknet_source

            return load_darknet_source(source.removeprefix("darknet:"), change)


def _public_state(public: AnyDetector, detector: AnyDetector, source: str) -> Mapping[str, Tensor]:
    from detkit.weights.darknet import DarknetDetector, convert_network

    return convert_network(public, detector, source) if isinstance(public, DarknetDetector) else public.state_dict()


def _checkpoint_file(source: str | Path) -> Path:
    return Path(source) / LAST if Path(source).is_dir() else Path(source)


def load_weights(detector: AnyDetector, weights: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError if they do not fit."""
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path}: its weights do not fit this detector: {lines[min(1, len(lines) - 1)].strip()}"
        ) from error
