"""An exported file as a detector: whatever evaluates, draws or serves a detector runs the file in the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from detkit.config import UserError
from detkit.detectors.detector import Detector
from detkit.export.canvas import on_canvas
from detkit.export.files import format_of, require_extra
from detkit.export.graph import DETECTIONS, FURTHER
from detkit.export.metadata import KEY, Metadata, parse_metadata
from detkit.export.signal_stack import own_signal_stack
from detkit.nn.input import ImageInput, KeepConfig
from detkit.nn.selection import DetectionRows
from detkit.structures import Batch, Column, Detections, ImageInfo, Target

UNREADABLE = "not a file that can be run: it is damaged, cut short, or of another kind"


class Runner(ABC):
    """
    metadata  the text under `KEY`; None: there is none
    names     of the outputs
    """

    metadata: str | None
    names: Sequence[str]

    @abstractmethod
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, from inputs by name."""


class OnnxRunner(Runner):
    def __init__(self, path: Path) -> None:
        require_extra("export")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.names = [output.name for output in self.session.get_outputs()]
        self.metadata = self.session.get_modelmeta().custom_metadata_map.get(KEY)

    @override
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, dict(inputs)), strict=True))


class TorchRunner(Runner):
    def __init__(self, path: Path) -> None:
        import torchvision  # noqa: F401, registers the operators of the program

        texts = {KEY: ""}
        program = torch.export.load(path, extra_files=texts)
        self.module = program.module()
        self.names = list(program.call_spec.out_spec.context or ())  # the keys, if it gives a dict
        self.metadata = texts[KEY] or None

    @override
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}


class OpenVinoRunner(Runner):
    """precision  f32, so that it computes what PyTorch does; OpenVINO's own choice is bfloat16 on some processors"""

    def __init__(self, path: Path, precision: str = "f32") -> None:
        require_extra("openvino")
        import openvino

        with path.open("rb") as file:
            if b"<net" not in file.read(200):  # other XML makes OpenVINO's readers complain on the terminal
                raise ValueError("not OpenVINO's XML")
        core = openvino.Core()
        model = core.read_model(path)
        self.metadata = str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.model: Any = core.compile_model(model, "CPU", settings)
        own_signal_stack()
        self.names = [output.any_name for output in model.outputs]

    @override
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = self.model(dict(inputs))
        return {name: results[index] for index, name in enumerate(self.names)}


RUNNERS = {"onnx": OnnxRunner, "torch_export": TorchRunner, "openvino": OpenVinoRunner}


def open_runner(path: Path) -> tuple[Runner, Metadata]:
    """Raises UserError if the file is not there, cannot be run, or is none of detkit's."""
    kind = RUNNERS[format_of(path)]
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        runner = kind(path)
    except UserError:
        raise
    except Exception as error:  # each runtime has errors of its own for a file that it cannot read
        raise UserError(f"{path}: {UNREADABLE}") from error
    metadata = parse_metadata(runner.metadata, path)
    if set(metadata.outputs) != set(runner.names):
        raise UserError(
            f"{path}: its outputs are {', '.join(runner.names)}, but its metadata name {', '.join(metadata.outputs)}; "
            "export the detector again"
        )
    return runner, metadata


class ExportedDetector(Detector[DetectionRows]):
    """Detects by running a file; it has no weights, cannot be trained, and runs where the runtime runs."""

    def __init__(self, runner: Runner, metadata: Metadata) -> None:
        config = metadata.input
        inside = ImageInput(config, metadata.stride)
        if metadata.pictures == "resize":
            config = config.model_copy(update={"resize": KeepConfig()})
        super().__init__(ImageInput(config, metadata.stride), metadata.categories)
        self.input.clip = metadata.clip
        self.runner, self.metadata = runner, metadata
        self.inside = inside if metadata.pictures == "resize" else None  # how the file itself resizes pictures
        self.further = {name: column for name, column in FURTHER.items() if name in metadata.outputs}
        learned: dict[Column, str] = {"masks": "masks", "keypoints": "heatmaps"}
        self.columns = tuple(column for column, rows in learned.items() if rows in self.further.values())
        self.proposals = metadata.proposals
        self.needs_fixed_canvas = metadata.canvas is not None

    @override
    def forward(self, batch: Batch) -> DetectionRows:
        groups = self._groups(batch)
        parts = [self._run(batch, rows) for rows in groups]
        order = torch.tensor([row for rows in groups for row in rows]).argsort()
        columns = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        return DetectionRows(
            *(columns[name] for name in DETECTIONS),
            **{column: columns[name] for name, column in self.further.items()},
        )

    def _groups(self, batch: Batch) -> list[list[int]]:
        """The rows of the batch that the file takes at once: as many as it does, and of one size if it resizes them."""
        rows = list(range(len(batch.infos)))
        groups = [rows]
        if self.metadata.pictures == "resize":
            sizes = [info.orig_size for info in batch.infos]
            groups = [[row for row in rows if sizes[row] == size] for size in dict.fromkeys(sizes)]
        if self.metadata.batch is None:
            return groups
        limit = self.metadata.batch
        return [group[start : start + limit] for group in groups for start in range(0, len(group), limit)]

    def _run(self, batch: Batch, rows: Sequence[int]) -> dict[str, Tensor]:
        infos, metadata = [batch.infos[row] for row in rows], self.metadata
        images = batch.images[list(rows)].cpu().contiguous()
        if metadata.pictures == "resize":
            height, width = infos[0].orig_size
            images = images[:, :, :height, :width].contiguous()
        inputs = {"images": on_canvas(images, metadata.canvas, metadata.pictures)}
        if metadata.pictures == "exact":
            inputs["sizes"] = torch.tensor([info.input_size for info in infos])
            inputs["original_sizes"] = torch.tensor([info.orig_size for info in infos])
        if self.proposals is not None:
            assert batch.proposals is not None
            inputs["proposals"] = _as_rows([batch.proposals[row].cpu() for row in rows])
        missing = (metadata.batch or len(rows)) - len(rows)
        arrays = {name: torch.cat([value, *[value[:1]] * missing]).numpy() for name, value in inputs.items()}
        outputs = self.runner(arrays)
        names = (*DETECTIONS, *self.further)
        return {name: torch.from_numpy(np.array(outputs[name]))[: len(rows)] for name in names}

    @override
    def network(self, images: Tensor, sizes: Tensor) -> DetectionRows:
        raise UserError("an exported file is run from uint8 pictures to detections; it has no network of its own")

    @override
    def criterion(self, outputs: DetectionRows, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise UserError("an exported file cannot be trained; train the run that it was exported from")

    @override
    def detect(self, outputs: DetectionRows, sizes: Tensor) -> DetectionRows:
        return outputs

    @override
    def postprocess(self, outputs: DetectionRows, infos: Sequence[ImageInfo]) -> list[Detections]:
        """The file gives original pixels already. Heat maps are those of boxes in input pixels, as in PyTorch."""
        if outputs.heatmaps is None:
            in_place = [ImageInfo(info.image_id, info.orig_size, info.orig_size, (1.0, 1.0)) for info in infos]
            return outputs.to_detections(in_place, self.categories)
        if self.inside is not None:
            infos = [self.inside.place(info.image_id, info.orig_size) for info in infos]
        scale, offset = (torch.tensor([getattr(info, name) * 2 for info in infos]) for name in ("scale", "offset"))
        boxes = outputs.boxes * scale[:, None] + offset[:, None]
        return replace(outputs, boxes=boxes).to_detections(infos, self.categories)


def _as_rows(boxes: Sequence[Tensor]) -> Tensor:
    """`[B, P, 4]` of boxes `[P_i, 4]`; an image with fewer has rows without area at its end."""
    most = max(1, *map(len, boxes))
    return torch.stack([F.pad(part, (0, 0, 0, most - len(part))) for part in boxes])


def load_exported(path: Path, *, trusted: bool = False) -> ExportedDetector:
    """Raises UserError for a file that is not there, is damaged, is none of detkit's, or gives no detections.

    trusted  it may be a `.pt2`, of which torch.export.load runs any code that somebody has put into it
    """
    if format_of(path) == "torch_export" and not trusted:
        raise UserError(
            f"{path}: not loaded, as torch.export.load runs any code that a .pt2 file brings; take the .onnx or .xml "
            "of this detector, or, for a file of your own, detkit.export.runtime.load_exported(path, trusted=True)"
        )
    runner, metadata = open_runner(path)
    if metadata.raw:
        raise UserError(f"{path}: was exported with --raw and gives no detections; export the detector without it")
    return ExportedDetector(runner, metadata).eval()
