"""A detector that starts from the weights of another: by name and shape, and rows of a class by the class's name.

Legend: K classes of the detector, R rows (the first dimension) of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import DetectorConfig
from detkit.detectors.detector import AnyDetector
from detkit.engine.class_match import UNUSED, listed, match_classes
from detkit.engine.sources import Weights, read_weights, strides_of
from detkit.nn.heads.class_rows import BACKGROUND, NO_CLASS, HasClassRows

NEW_CLASS_PRIOR = 0.01  # part of the background's probability that all new classes together start with
ABSENT = "not in the source"


@dataclass(frozen=True)
class Transfer:
    """What went over. Tensors are named; those of whole numbers, such as counters, are not among them.

    source      where the weights come from, and as what they were read
    loaded      taken from the source, some as far as their classes are there
    new         initialised at random, with the reason
    left_out    in the source only
    classes     sentences about the classes
    warnings    what the weights were trained with and the detector does not do
    """

    source: str
    loaded: tuple[str, ...]
    new: Mapping[str, str]
    left_out: tuple[str, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """A table of the parts of the detector (backbone, neck, head ...), and what is not as in the source."""
        lines = [f"starts from {self.source}"]
        names = [*self.loaded, *self.new, *self.left_out]
        parts = list(dict.fromkeys(_part(name) for name in names))
        columns = (self.loaded, self.new, self.left_out)
        for part in parts[:12]:
            loaded, new, left_out = (sum(_part(name) == part for name in column) for column in columns)
            lines.append(f"  {part:10} {loaded:5} tensors kept {new:5} new {left_out:5} left out")
        other_shape = [f"{name} ({reason})" for name, reason in self.new.items() if reason != ABSENT]
        absent = [name for name, reason in self.new.items() if reason == ABSENT]
        for title, some in (("new", other_shape), (f"new, {ABSENT}", absent), ("left out", list(self.left_out))):
            if some:
                lines.append(f"  {title}: {listed(some)}")
        if not any(_part(name) == "backbone" for name in self.loaded) and "backbone" in parts:
            lines.append("  nothing of the backbone fits: it starts anew, as model.backbone.weights is not read")
        return "\n".join([*lines, *(f"  {sentence}" for sentence in (*self.classes, *self.warnings))])


def without_public_weights(config: DetectorConfig) -> DetectorConfig:
    """The detector with a backbone at random: `initialise` fills it, so nothing need be downloaded for it."""
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"weights": None})})


def initialise(detector: AnyDetector, source: str) -> Transfer:
    """Fills a detector with the weights of `source` as far as they fit, and says in `detector.notes` what fitted.

    source  what `load_detector` takes, or a file of tensors alone (`.pt`, `.pth`, `.safetensors`)

    A tensor of the same name and shape is taken. Of one that has rows for each class (see
    `detkit.nn.heads.class_rows`) the rows of each class are those of the class of the same name or of a synonym (see
    `match_classes`). Rows of other classes stay as they are; but in a softmax with background, if any class is shared,
    they become copies of the background's rows and together get `NEW_CLASS_PRIOR` of its probability, so that the
    probabilities of the shared classes do not change. Raises UserError if the source cannot be read, is not finite or
    fits nowhere.
    """
    transfer = take_over(detector, read_weights(source, detector), source)
    if not transfer.loaded:
        own, other = (listed(sorted(names)[:3]) for names in (transfer.new, transfer.left_out))
        raise UserError(
            f"train.init: nothing of {transfer.source} fits this {type(detector).__name__}: here are {own}, ..., there "
            f"{other or 'other shapes'}, ...; choose the configuration that the weights belong to"
        )
    detector.notes.append(transfer.describe())
    return transfer


@torch.no_grad()
def take_over(detector: AnyDetector, weights: Weights, source: str) -> Transfer:
    """The work of `initialise`, without its check and its note."""
    names, state = detector.categories.names, detector.state_dict()
    matches: list[int] | None = None
    rows: dict[str, Tensor] = {}
    source_rows: dict[str, Tensor] = {}
    if weights.categories and weights.categories.names != names:
        matches = match_classes(names, weights.categories.names)
        rows = rows_by_name(detector, len(names))
        source_rows = rows_by_name(detector, len(weights.categories))
    reasons: dict[str, str | None] = {}
    for name, tensor in state.items():
        given = weights.state.get(name)
        if given is None:
            reasons[name] = ABSENT
        elif not given.isfinite().all():
            raise UserError(f"train.init: {source}: {name} is infinite; take weights from before they diverged")
        elif matches is not None and name in rows:
            reasons[name] = copy_rows(tensor, given, rows[name], source_rows[name], matches)
        elif given.shape != tensor.shape:
            reasons[name] = _shapes(tensor, given)
        else:
            tensor.copy_(given)
            reasons[name] = None
    counted = {name: reason for name, reason in reasons.items() if state[name].is_floating_point()}
    return Transfer(
        f"{source}, {weights.reading}",
        tuple(name for name, reason in counted.items() if reason is None),
        {name: reason for name, reason in counted.items() if reason is not None},
        tuple(name for name, given in weights.state.items() if name not in state and given.is_floating_point()),
        _describe_classes(detector, weights, matches),
        tuple(_warnings(detector, weights, [name for name, reason in counted.items() if reason is None])),
    )


def rows_by_name(detector: AnyDetector, num_classes: int) -> dict[str, Tensor]:
    """int64 `[R]` for each tensor with rows for each class: the label or mark of each row, had it `num_classes`."""
    state = detector.state_dict()
    rows: dict[str, Tensor] = {}
    for module_name, module in detector.named_modules():
        if isinstance(module, HasClassRows):
            for name, labels in module.class_rows(num_classes).items():
                layer = f"{module_name}.{name}"
                rows |= {key: labels for key in state if key == layer or key.startswith(f"{layer}.")}
    return rows


def copy_rows(tensor: Tensor, given: Tensor, rows: Tensor, given_rows: Tensor, matches: Sequence[int]) -> str | None:
    """Copies rows of `given` to those of `tensor` that belong to the same class, and those that serve all classes.

    rows, given_rows  int64 `[R]`: the label or mark of each row; the n-th of a class becomes the n-th of the class
    matches           for each of the K labels that of the source, -1 for a new class

    Returns why nothing could be copied, or None.
    """
    pairs = [(label, other) for label, other in enumerate(matches) if other >= 0]
    if pairs:
        pairs.append((BACKGROUND, BACKGROUND))  # of use only beside classes that it was trained with
    masks = [(rows == label, given_rows == other) for label, other in [(NO_CLASS, NO_CLASS), *pairs]]
    fits = len(given) == len(given_rows) and tensor.shape[1:] == given.shape[1:]
    if not fits or any(here.sum() != there.sum() for here, there in masks):
        return _shapes(tensor, given)
    if not any(here.any() for here, _ in masks):
        return "none of its classes is in the source"
    for here, there in masks:
        tensor[here] = given[there].to(tensor)
    new = [label for label, other in enumerate(matches) if other < 0]
    if pairs and new and (rows == BACKGROUND).any():
        _split_background(tensor, rows, new)
    return None


def _split_background(tensor: Tensor, rows: Tensor, new: Sequence[int]) -> None:
    """Gives new classes a part of the background's probability (Cermelli et al., arXiv 2002.00718, section 3.3, where
    all parts are equal; here they are small, so that no new class is detected everywhere at first)."""
    background = rows == BACKGROUND
    is_bias = tensor.ndim == 1
    for label in new:
        tensor[rows == label] = tensor[background] + (math.log(NEW_CLASS_PRIOR / len(new)) if is_bias else 0.0)
    if is_bias:
        tensor[background] += math.log1p(-NEW_CLASS_PRIOR)


def _describe_classes(detector: AnyDetector, weights: Weights, matches: Sequence[int] | None) -> tuple[str, ...]:
    names = detector.categories.names
    if weights.categories is None:
        return ("classes: the file names none; rows of classes are taken in order where it has as many",)
    if matches is None:
        return (f"classes: the same {len(names)}, all kept",)
    others = weights.categories.names
    shared = [
        name if name == others[match] else f"{name} <- {others[match]}"
        for name, match in zip(names, matches, strict=True)
        if match >= 0
    ]
    new = [name for name, match in zip(names, matches, strict=True) if match < 0]
    left_out = [name for index, name in enumerate(others) if index not in matches and name != UNUSED]
    sentences = [
        f"classes {title}: {len(some)} ({listed(some)})"
        for title, some in (("kept", shared), ("new", new), ("left out", left_out))
        if some
    ]
    if not any(isinstance(module, HasClassRows) for module in detector.modules()):
        sentences.append("no head says which rows belong to which class (class_rows): they go over by shape alone")
    return tuple(sentences)


def _warnings(detector: AnyDetector, weights: Weights, loaded: Sequence[str]) -> Iterator[str]:
    """Where the weights were trained on other pixels, or with other strides, than the detector has."""
    own, other = detector.input.config, weights.input
    parts = ("channel_order", "mean", "std")
    if other and any(_part(name) == "backbone" for name in loaded):
        different = [part for part in parts if getattr(own, part) != getattr(other, part)]
        settings = (f"model.input.{part}={_as_setting(getattr(other, part))}" for part in different)
        here = (f"{part} {_as_setting(getattr(own, part))}" for part in different)
        if different:
            yield (
                f"warning: these weights were trained on other pixels than model.input gives ({', '.join(here)}): "
                f"--set {' '.join(settings)}"
            )
    strides = strides_of(detector)
    first = next(
        (name for name in loaded if name in strides and weights.strides.get(name, strides[name]) != strides[name]), None
    )
    if first is not None:
        there = weights.strides[first]
        yield (
            f"warning: {first} has the stride {list(strides[first])}, and in the source {list(there)}: of a ResNet "
            f"--set model.backbone.stride_in_1x1={'true' if max(there) > 1 else 'false'}"
        )


def _as_setting(value: str | tuple[float, ...]) -> str:
    return value if isinstance(value, str) else f"[{','.join(f'{number:g}' for number in value)}]"


def _part(name: str) -> str:
    return name.partition(".")[0]


def _shapes(tensor: Tensor, given: Tensor) -> str:
    return f"{list(tensor.shape)} here, {list(given.shape)} there"
