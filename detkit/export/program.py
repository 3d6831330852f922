"""A detector as a program of torch.export: which inputs it has, and which of their sides may change."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from detkit.config import UserError
from detkit.detectors.detector import AnyDetector
from detkit.export.graph import Whole
from detkit.export.metadata import Pictures
from detkit.nn.input import KeepConfig, LetterboxConfig, ShortSideConfig, StretchConfig
from detkit.structures import Size

DEFAULT_CANVAS = (640, 640)  # (h, w) px, where neither the input spec nor the user says one
PROPOSALS = 300  # of each image, where their number must not change


@dataclass(frozen=True)
class Form:
    """What the program takes and gives.

    pictures  exact: on their canvas, with their sizes; resize: as they are, resized by the program
    raw       the outputs of the network instead of detections, and nothing of a shape that may change
    batch     pictures at once; None: any number
    canvas    (h, w) px of `images`; None: any, where the input spec allows it
    """

    pictures: Pictures = "exact"
    raw: bool = False
    batch: int | None = None
    canvas: Size | None = None


def complete_form(form: Form, detector: AnyDetector) -> Form:
    """The form with the batch and canvas that follow from the detector and from `raw`."""
    if form.pictures == "resize" and detector.input.clip is not None:
        raise UserError("--input resize: this detector takes clips, which a file cannot resize; leave it out")
    rule, fixed = detector.input.resize, form.raw or detector.needs_fixed_canvas
    batch = form.batch or (1 if form.raw else None)
    if form.pictures == "resize" and not isinstance(rule, KeepConfig):
        return replace(form, batch=batch, canvas=form.canvas or (DEFAULT_CANVAS if fixed else None))
    match rule:
        case StretchConfig() | LetterboxConfig():
            own: Size | None = (rule.size, rule.size)
            if form.canvas is not None and form.canvas != own:
                raise UserError(
                    f"--size {form.canvas[0]}x{form.canvas[1]}: this detector takes pictures on {rule.size} x "
                    f"{rule.size} px; leave --size out"
                )
        case ShortSideConfig():
            own = (rule.size, rule.max_size) if fixed else None
        case _:
            own = DEFAULT_CANVAS if fixed else None
    canvas = form.canvas or own
    if canvas is not None:
        height, width = (-(-side // detector.input.stride) * detector.input.stride for side in canvas)
        canvas = (height, width)
    return replace(form, batch=batch, canvas=canvas)


def export_program(detector: AnyDetector, form: Form, *, raw_too: bool = False) -> ExportedProgram:
    """The detector, in evaluation mode, as a program; `form` is one of `complete_form`.

    raw_too  the outputs of the network beside the detections

    Raises UserError if it has no form without suppression.
    """
    module = Whole(detector.eval(), form.pictures, detections=not form.raw, raw=form.raw or raw_too)
    inputs = example_inputs(detector, form)
    dims = _dynamic_dims(form, inputs["images"].ndim)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's, about torch
        program = torch.export.export(
            module, (), inputs, dynamic_shapes={name: dims.get(name, {}) for name in inputs}, strict=False
        )
    if form.raw:
        program.graph_module.graph.eliminate_dead_code()
        if any(node.target is torch.ops.detkit.suppress.default for node in program.graph_module.graph.nodes):
            raise UserError(
                f"--raw: {type(detector).__name__} suppresses proposals inside its network; export it without --raw"
            )
    return program


def output_names(detector: AnyDetector, form: Form, *, raw_too: bool = False) -> tuple[str, ...]:
    """The names of what `export_program` with these arguments gives, in its order."""
    module = Whole(detector.eval(), form.pictures, detections=not form.raw, raw=form.raw or raw_too)
    with torch.no_grad():
        return tuple(module(**example_inputs(detector, form)))


def example_inputs(detector: AnyDetector, form: Form) -> dict[str, Tensor]:
    """Inputs by name with which the program is traced."""
    batch = form.batch or 2  # torch.export takes a size of 1 for one that never changes
    stride = detector.input.stride
    height, width = form.canvas or (-(-256 // stride) * stride, -(-320 // stride) * stride)
    frames = () if detector.input.clip is None else (detector.input.clip.frames,)
    inputs = {"images": torch.zeros(batch, 3, *frames, height, width, dtype=torch.uint8)}
    if form.pictures == "exact":
        inputs["sizes"] = torch.tensor([[height, width]]).repeat(batch, 1)
        if not form.raw:
            inputs["original_sizes"] = inputs["sizes"].clone()
    if detector.proposals is not None:
        inputs["proposals"] = torch.tensor([0.0, 0.0, 64.0, 64.0]).repeat(batch, PROPOSALS, 1)
    return inputs


def _dynamic_dims(form: Form, image_dims: int) -> dict[str, dict[int, object]]:
    batch = {} if form.batch else {0: Dim("batch")}
    sides = {} if form.canvas else {image_dims - 2: Dim.AUTO, image_dims - 1: Dim.AUTO}
    count = {} if form.raw else {1: Dim("proposals")}
    return {"images": batch | sides, "sizes": batch, "original_sizes": batch, "proposals": batch | count}
