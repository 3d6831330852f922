"""A first configuration for one's own data: a packaged one with the data of a folder and anchors that fit its boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import UserError, parse_config, parse_yaml, to_yaml
from detkit.data.anchor_kmeans import kmeans_anchors, mean_iou
from detkit.data.build import DataConfig, build_dataset
from detkit.data.checks import DataError, NoValidation
from detkit.data.dataset import ImageDataset
from detkit.data.shapes import ShapesConfig
from detkit.data.transforms import used_columns
from detkit.detectors.build import learned_columns
from detkit.detectors.faster_rcnn import TwoStageConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.detectors.ssd import PriorBasedConfig
from detkit.detectors.yolov2 import YOLOv2Config
from detkit.detectors.yolov3 import YOLOv3Config
from detkit.engine.anchor_report import anchor_cell, box_shapes
from detkit.engine.checks import check_columns
from detkit.engine.config_files import find_config, load_named
from detkit.engine.recognise import recognise
from detkit.engine.settings import RunConfig
from detkit.engine.sources import check_source
from detkit.engine.yaml_text import set_value
from detkit.nn.input import KeepConfig
from detkit.structures import Column

QUANTILES = (0.05, 0.95)  # shares of the boxes that are smaller than the smallest and than the largest anchor
EPOCHS = (3, 100)  # fewest and most that are written
Changes = dict[str, Any]  # path of a setting -> its value


def init_config(output: Path, base: str, data: Path, init: str | None = None) -> list[str]:
    """Writes a configuration to `output` that trains the packaged `base` on the folder `data`.

    init  weights to start from (`train.init`); their anchors stay

    Returns what was assumed, a sentence each. Raises UserError if `output` exists, if the folder has no format that
    detkit reads, if its annotations cannot be used, or if they lack the masks or keypoints that `base` learns.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; name another file, or remove it")
    if init is not None:
        check_source(init)
    config = load_named(base)
    recognised = recognise(data)
    columns = learned_columns(config.model)
    train, val, readable, problems = _read(recognised.data, {*columns, *used_columns(config.augment)})
    check_columns(train, config.model.name, columns)
    sides = box_shapes(train, config.model.input)
    anchors, fit = _anchors(config, sides) if init is None else ({"train.init": init}, f"starts from {init}")
    length, duration = _length(config, len(train))
    assumed = [*recognised.assumed, *problems, train.summary, val.summary if val else "", _size(config, sides)]
    assumed = [sentence for sentence in [*assumed, fit, duration] if sentence]
    text = _without_header(find_config(base).read_text(encoding="utf-8"))
    text = set_value(text, ["data"], "\n" + textwrap.indent(_data(readable, train), "  ")).replace(
        "data: \n", "data:\n"
    )
    protocol = config.eval.protocol if config.eval.protocol.startswith("coco") else "coco"
    for path, value in {**anchors, **length, "eval.protocol": protocol}.items():
        text = set_value(text, path.split("."), _line(value))
    text = _header(output, base, assumed) + text
    parse_config(parse_yaml(text, str(output)), RunConfig, where=str(output))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot write this configuration: {error.strerror}") from error
    return assumed


def _read(
    data: DataConfig, columns: Collection[Column]
) -> tuple[ImageDataset, ImageDataset | None, DataConfig, list[str]]:
    """Both splits, the configuration with which they can be read, and a sentence if boxes or images are dropped."""
    try:
        return (*_splits(data, columns), data, [])
    except DataError as error:
        first = str(error).splitlines()[:2][-1].strip()
        for policy, what in (("drop_box", "objects"), ("drop_image", "images")):
            lenient = data.model_copy(update={"on_bad_label": policy})
            try:
                splits = _splits(lenient, columns)
            except DataError:
                continue
            reason = f"on_bad_label: {policy}, because some {what} cannot be used, such as: {first}"
            return (*splits, lenient, [reason])
        raise


def _splits(data: DataConfig, columns: Collection[Column]) -> tuple[ImageDataset, ImageDataset | None]:
    train = build_dataset(data, "train", columns=columns)
    try:
        return train, build_dataset(data, "val", columns=columns)
    except NoValidation:
        return train, None


def _data(config: DataConfig, train: ImageDataset) -> str:
    """The section `data` as YAML: what differs from the defaults, and the classes by name."""
    tree = config.model_dump(mode="json", exclude_defaults=True) | {"classes": list(train.categories.names)}
    return to_yaml({"name": config.name, **tree}, flow=None, width=100).rstrip()


def _anchors(config: RunConfig, sides: np.ndarray) -> tuple[Changes, str]:
    """Anchors that fit boxes of these sides, `[N, 2]` in input px; nothing for a detector without anchors."""
    model = config.model
    try:
        match model:
            case TwoStageConfig(rpn=rpn):
                levels, each = len(rpn.anchors.sizes), len(rpn.anchors.sizes[0])
                sizes = _spread(sides, levels * each).reshape(levels, each).tolist()
                return {"model.rpn.anchors.sizes": sizes}, f"anchors from {sizes[0][0]:g} to {sizes[-1][-1]:g} px"
            case RetinaNetConfig(head=head):
                levels = len(head.anchors.sizes)
                smallest = _spread(sides, levels + 1)[:levels].tolist()  # of each level, before its octave scales
                changes = {"model.head.anchors.sizes": [[size] for size in smallest]}
                return changes, f"anchors from {smallest[0]:g} px; those of the last level begin at {smallest[-1]:g} px"
            case PriorBasedConfig(head=head):
                edges = _spread(sides, len(head.priors.min_sizes) + 1).tolist()
                priors = {"model.head.priors.min_sizes": edges[:-1], "model.head.priors.max_sizes": edges[1:]}
                return priors, f"priors from {edges[0]:g} to {edges[-1]:g} px"
            case YOLOv2Config(head=head):
                anchors = kmeans_anchors(sides, len(head.anchors))
                cells = (anchors / anchor_cell(config)).round(2).tolist()
                return {"model.head.anchors": cells}, _fit(sides, anchors)
            case YOLOv3Config(head=head):
                anchors = kmeans_anchors(sides, sum(map(len, head.anchors)))
                levels_of = [level.round(1).tolist() for level in np.split(anchors, len(head.anchors))]
                return {"model.head.anchors": levels_of}, _fit(sides, anchors)
    except UserError as error:
        return {}, f"anchors stay as they are: {error}"
    return {}, ""


def _spread(sides: np.ndarray, count: int) -> np.ndarray:
    """float64 `[count]`, whole px: sizes at equal ratios, from small boxes to large ones."""
    if not len(sides):
        raise UserError("there is no box to fit them to")
    smallest, largest = np.quantile(np.sqrt(sides.prod(axis=1)), QUANTILES)
    smallest = max(smallest, 4.0)
    return np.asarray(np.geomspace(smallest, max(largest, 2 * smallest), count).round())


def _fit(sides: np.ndarray, anchors: np.ndarray) -> str:
    return f"anchors by k-means: the mean IoU of a box with the best of them is {mean_iou(sides, anchors):.2f}"


def _length(config: RunConfig, images: int) -> tuple[Changes, str]:
    """About as many pictures in all as in the run on built-in data; published recipes keep their length."""
    if not isinstance(config.data, ShapesConfig):
        return {}, ""
    train, (fewest, most) = config.train, EPOCHS
    epochs = min(most, max(fewest, round(train.epochs * config.data.num_train / images)))
    changes = {"train.epochs": epochs, "train.eval_every": max(1, epochs // 3)}
    return changes, f"{epochs} epochs: about as many pictures in all as on the built-in data; more may reach more"


def _size(config: RunConfig, sides: np.ndarray) -> str:
    rule = config.model.input.resize
    if not len(sides) or isinstance(rule, KeepConfig):
        return ""
    tenth, half = np.quantile(np.sqrt(sides.prod(axis=1)), (0.1, 0.5))
    return (
        f"input of {rule.size} px ({rule.name}): half of the boxes are smaller than {half:.0f} px there (root of the "
        f"area), a tenth smaller than {tenth:.0f} px; raise model.input.resize.size if boxes below 16 px matter"
    )


def _line(value: Any) -> str:
    """A value as YAML on one line."""
    return to_yaml(value, flow=True, width=10**6).removesuffix("...\n").strip()


def _without_header(text: str) -> str:
    lines = text.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "".join(lines[first:])


def _header(output: Path, base: str, assumed: list[str]) -> str:
    """The comment above the configuration: where it is from, what was assumed, and what to type next."""
    lines = [f"Made from {base} by detkit init. What was assumed:"]
    for sentence in assumed:
        lines += textwrap.wrap(sentence, 116, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
    lines += [
        "Next: detkit show to look at the training pictures, detkit overfit for a first try, then",
        f"detkit train {output}",
    ]
    return "".join(f"# {line}\n" for line in lines)
