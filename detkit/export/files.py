"""Programs as files: ONNX, torch.export and OpenVINO, each with its metadata inside."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import ExportedProgram

from detkit.config import UserError
from detkit.export.metadata import KEY, Metadata
from detkit.files import writing
from detkit.ops.suppress import decomposed_suppress

Format = Literal["onnx", "torch_export", "openvino"]
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch_export", ".xml": "openvino"}
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "export": ("write and run ONNX files", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ("write and run OpenVINO files", ("openvino",)),
    "serve": ("serve a detector", ("starlette", "uvicorn", "prometheus_client")),
}
AXES = {  # names of the sides of an input, for those that may change
    "images": ("batch", "channels", "height", "width"),
    "clips": ("batch", "channels", "frames", "height", "width"),  # in the place of images
    "sizes": ("batch", "sides"),
    "original_sizes": ("batch", "sides"),
    "proposals": ("batch", "proposals", "corners"),
}


def format_of(path: Path) -> Format:
    """Raises UserError if the suffix is that of no format."""
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
        raise UserError(
            f"{path}: the format follows from the suffix; expected {known}, found {path.suffix or 'none'!r}"
        )
    return SUFFIXES[path.suffix.lower()]


def require_extra(extra: str) -> None:
    """Raises UserError if a package of the extra is not installed."""
    purpose, packages = PACKAGES[extra]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"to {purpose}, {' and '.join(missing)} must be installed: pip install -e '.[{extra}]'")


def require_packages(format: Format) -> None:
    """Raises UserError if what a format needs is not installed; OpenVINO's is made from an ONNX file."""
    for extra in {"onnx": ("export",), "torch_export": (), "openvino": ("export", "openvino")}[format]:
        require_extra(extra)


def write_torch_export(program: ExportedProgram, metadata: Metadata, path: Path) -> None:
    """The file loads with torch and torchvision alone: detkit's own operator becomes some of theirs."""
    with torch.no_grad(), _quietly():
        plain = program.run_decompositions({torch.ops.detkit.suppress.default: decomposed_suppress})
        archive = io.BytesIO()  # torch's own writer ends the process when a disk is full
        torch.export.save(plain, archive, extra_files={KEY: metadata.to_text()})
    with writing(path):
        path.write_bytes(archive.getbuffer())


def write_onnx(program: ExportedProgram, metadata: Metadata, path: Path) -> None:
    """`metadata.outputs` are those of the program."""
    from detkit.export.onnx_ops import OPSET, TRANSLATIONS

    with torch.no_grad(), _quietly():
        model: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            output_names=list(metadata.outputs),
            dynamic_shapes=_names_of_axes(program),
            verbose=False,
        )
    model.model.metadata_props[KEY] = metadata.to_text()
    with writing(path):
        model.save(path)


def _names_of_axes(program: ExportedProgram) -> dict[str, dict[int, str]]:
    """By input and place, of those that may change."""
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in AXES}
    names = {**AXES, "images": AXES["clips"]} if len(shapes["images"]) == 5 else AXES
    return {
        name: {place: names[name][place] for place, side in enumerate(shape) if not isinstance(side, int)}
        for name, shape in shapes.items()
    }


def take_outputs(source: Path, metadata: Metadata, path: Path) -> None:
    """Writes the ONNX file `source` with `metadata.outputs` alone, and without what only others need."""
    import onnx

    model = onnx.load(source)
    graph, used = model.graph, set(metadata.outputs)
    for place in reversed(range(len(graph.node))):  # each stands behind those whose outputs it takes
        node = graph.node[place]
        if used.isdisjoint(node.output):
            del graph.node[place]
        else:
            used |= _values_taken(node)
    for values in (graph.initializer, graph.value_info):
        for place in reversed(range(len(values))):
            if values[place].name not in used:
                del values[place]
    outputs = {value.name: value for value in map(_copy, graph.output)}
    del graph.output[:]
    graph.output.extend(outputs[name] for name in metadata.outputs)
    onnx.helper.set_model_props(model, {KEY: metadata.to_text()})
    with writing(path):
        onnx.save(model, path)


def _values_taken(node: Any) -> set[str]:
    """The names of the inputs of a node of ONNX, those too that only a graph within it takes, as that of a loop."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {value.name for value in graph.output}
            for inner in graph.node:
                names |= _values_taken(inner)
    return names


def _copy(value: Any) -> Any:
    copied = type(value)()
    copied.CopyFrom(value)
    return copied


def write_openvino(onnx: Path, metadata: Metadata, path: Path) -> None:
    """From an ONNX file; the weights lie beside the `.xml` in a `.bin`, as float32."""
    import openvino

    model = openvino.Core().read_model(onnx)  # convert_model does the same and sends statistics to its makers
    model.set_rt_info(metadata.to_text(), KEY)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO does not hand on what the system told it
        raise UserError(
            f"{path}: OpenVINO cannot write this file and its .bin ({error}); is there space left?"
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that torch and its exporter address to each other's authors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
