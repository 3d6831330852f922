"""8-bit integers in place of float32: static quantisation by onnxruntime, with ranges measured on training pictures.

Weights are whole numbers from -64 to 64 with a scale for each channel; activations are uint8 with a scale for each
tensor. The file stays an ONNX file of standard operators: pairs of QuantizeLinear and DequantizeLinear say what the
integers stand for, and a runtime, OpenVINO as well as onnxruntime, runs what lies between two pairs in integers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.data.build import build_dataset
from detkit.data.collate import collate
from detkit.detectors.detector import AnyDetector
from detkit.engine.proposal_search import proposals_for
from detkit.engine.settings import RunConfig
from detkit.export.canvas import on_canvas
from detkit.export.files import require_extra
from detkit.export.program import Form
from detkit.files import writing
from detkit.nn.input import ImageInput, KeepConfig
from detkit.structures import Sample

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what takes the time, where its second input is weights
BETWEEN = ("Relu", "Clip", "LeakyRelu", "MaxPool", "Add", "Concat", "Resize")  # as quick in integers


def calibration_inputs(
    detector: AnyDetector, form: Form, settings: RunConfig, count: int
) -> Iterator[dict[str, np.ndarray]]:
    """The first `count` training pictures as inputs of the program, one after the other and without augmentation.

    form  one of `complete_form`. Where it has a batch, each picture stands in all places of it
    Raises UserError for data that are not in order, or a picture that is larger than the canvas of the form.
    """
    dataset = build_dataset(settings.data, "train", columns=detector.columns)
    dataset = dataset.take(range(min(count, len(dataset))))
    folder, workers = settings.loader.proposals, settings.loader.workers
    proposals = proposals_for(detector, dataset, Path(settings.data.root), workers=workers, chosen=folder)
    boxes = (proposals.load(dataset.path(index)) if proposals else None for index in range(len(dataset)))
    samples = (dataset.load(index, None, part, detector.input.clip) for index, part in enumerate(boxes))
    return (_inputs(detector, form, sample) for sample in samples)


def _inputs(detector: AnyDetector, form: Form, sample: Sample) -> dict[str, np.ndarray]:
    placing = detector.input
    if form.pictures == "resize":
        placing = ImageInput(placing.config.model_copy(update={"resize": KeepConfig()}), stride=1)
    info = placing.place(sample.image_id, sample.size)
    batch = collate([(sample, info)], placing.stride, with_targets=False)
    inputs = {"images": on_canvas(batch.images.contiguous(), form.canvas, form.pictures)}
    if form.pictures == "exact":
        inputs |= {"sizes": torch.tensor([info.input_size]), "original_sizes": torch.tensor([info.orig_size])}
    if batch.proposals is not None:
        inputs["proposals"] = batch.proposals[0][None]
    return {name: value.repeat_interleave(form.batch or 1, dim=0).numpy() for name, value in inputs.items()}


def quantise(source: Path, path: Path, inputs: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Writes the ONNX file `source` as one of 8 bits; its inputs, outputs and metadata stay.

    Normalisation, decoding, suppression and the last layers stay as they are: their numbers are the result.

    inputs  of the program, to measure the range of each tensor on: from the mean of their smallest values to that of
            their largest, which a few outliers do not widen. They are taken one by one, and of each no more than
            the two values stays in memory
    """
    require_extra("export")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(source)
    nodes = nodes_to_quantise(model.graph)
    add_pre_process_metadata(model)  # else a warning: shapes are inferred and norms folded already
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".quantise-") as folder:
        prepared = Path(folder) / "model.onnx"
        onnx.save(model, prepared)
        quantize_static(
            prepared,
            path,
            _Reader(inputs),
            op_types_to_quantize=[*LAYERS, *BETWEEN],
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # 7 bits of a weight: processors without VNNI add two products in 16 bits
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},  # a plain mean where all inputs are read at once, as here
        )


class _Reader:
    """Inputs in the form that onnxruntime's calibration asks for."""

    def __init__(self, inputs: Iterable[Mapping[str, np.ndarray]]) -> None:
        self.inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        inputs = next(self.inputs, None)
        return None if inputs is None else dict(inputs)


def nodes_to_quantise(graph: Any) -> list[str]:
    """Names of the layers of an ONNX graph, without the last ones, and of the operators in `BETWEEN` that follow them.

    The last layers are those from which a way leads to an output that no other layer lies on.
    """
    weights = {tensor.name for tensor in graph.initializer}
    layers = {node.name for node in graph.node if node.op_type in LAYERS and node.input[1] in weights}
    chosen: list[str] = []
    integers: set[str] = set()  # tensors
    last = _last(graph, layers)
    for node in graph.node:  # each after those that it depends on
        inputs = node.input if node.op_type in ("Add", "Concat") else node.input[:1]  # the others are its settings
        follows = node.op_type in BETWEEN and integers.issuperset(inputs)
        if node.name in layers - last or follows:
            chosen.append(node.name)
            integers.update(node.output)
    return chosen


def _last(graph: Any, layers: set[str]) -> set[str]:
    producers = {name: node for node in graph.node for name in node.output}
    last, seen, names = set(), set(), [output.name for output in graph.output]
    while names:
        name = names.pop()
        if name in seen or name not in producers:
            continue
        seen.add(name)
        node = producers[name]
        if node.name in layers:
            last.add(node.name)
        else:
            names.extend(node.input)
    return last
