"""`detkit export`: a detector becomes a file, which stays if it does what the detector does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

import detkit
from detkit.config import UserError, dump_config
from detkit.detectors.detector import AnyDetector
from detkit.engine.evaluate import check_effect, evaluation_settings
from detkit.engine.overrides import split_overrides
from detkit.engine.run_folder import create_folder
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.speed import deployed_copy
from detkit.evaluation.protocols import PROTOCOLS
from detkit.export.comparison_data import comparison_data
from detkit.export.files import (
    Format,
    format_of,
    require_packages,
    take_outputs,
    write_onnx,
    write_openvino,
    write_torch_export,
)
from detkit.export.metadata import Metadata
from detkit.export.program import Form, complete_form, export_program, output_names
from detkit.export.quantise import calibration_inputs, quantise
from detkit.export.report import Report, compare
from detkit.export.runtime import ExportedDetector
from detkit.files import write_text, writing

LICENCES = {
    "torchvision": "BSD-3-Clause (torchvision's)",
    "detr": "Apache-2.0 (facebookresearch/detr)",
    "hf": "Apache-2.0, if the authors of the detector published the weights; see their page on Hugging Face",
    "yolox": "Apache-2.0 (Megvii-BaseDetection/YOLOX)",
    "yolov5": "AGPL-3.0, formerly GPL-3.0 (ultralytics/yolov5)",
    "yolov7": "GPL-3.0 (WongKinYiu/yolov7)",
}
UNKNOWN_LICENCE = "not stated: that of the training data and of the weights that the training started from"


@dataclass(frozen=True)
class ExportOptions:
    """
    form         what the file takes and gives
    int8         weights and computations in 8 bits, calibrated on training data
    calibration  pictures for that
    config       where pictures to compare on come from; None: those of the run, else drawn ones
    overrides    of its data, and of the detector what needs no new weights
    num_pictures to compare on
    accept       the file stays, whatever the comparison says
    licence      of the weights; None: what is known of the source
    """

    form: Form
    int8: bool = False
    calibration: int = 128
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    num_pictures: int = 16
    accept: bool = False
    licence: str | None = None


class DifferenceError(UserError):
    """A file that was not written, because it does something else than the detector; `report` has the numbers."""

    def __init__(self, output: Path, report: Report) -> None:
        super().__init__(
            f"{output}: not written, as it differs from the detector: {'; '.join(report.problems)}; --accept writes it "
            "all the same"
        )
        self.report = report


@dataclass(frozen=True)
class Files:
    """
    program   the detector as it is, by torch.export, with the outputs of the network beside the detections
    complete  the same as a file, in the deployed form
    result    the file for the user
    """

    program: ExportedProgram
    complete: Path
    result: Path


def export_source(source: str | Path, output: Path, options: ExportOptions) -> Report:
    """Writes `output`, in the format of its suffix, and a report under its name with `.report.json` added.

    Raises DifferenceError, and leaves only the report, if the file differs from the detector by more than the bounds.
    """
    format = format_of(output)
    require_packages(format)
    if output.is_dir():
        raise UserError(f"--output: {output} is a folder; expected a file")
    if options.int8 and (format == "torch_export" or options.form.raw):
        raise UserError("--int8: expected an .onnx or .xml file with detections, found .pt2 or --raw")
    of_model, others = split_overrides(options.overrides)
    detector, trained = load_detector(source, of_model)
    if isinstance(detector, ExportedDetector):
        raise UserError(f"{source}: is an exported file already; export the run or the weights that it comes from")
    settings = _settings(source, detector, trained, options.config, others)
    if options.int8 and settings is None:
        raise UserError("--int8: needs training pictures to calibrate on; name a configuration with --config")
    form = complete_form(options.form, detector)
    data = comparison_data(detector, settings, options.num_pictures, canvas=form.canvas, pictures=form.pictures)
    metadata = describe(detector, form, trained, options.licence or _licence(source))
    report_file = output.with_name(f"{output.name}.report.json")
    create_folder(output.parent)
    with writing(output), tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        calibration = None
        if options.int8 and settings is not None:
            calibration = calibration_inputs(detector, form, settings, options.calibration)
        files = _write(detector, form, metadata, format, Path(folder), calibration)
        report = compare(detector, files.program, files.complete, files.result, data)
        write_text(report_file, report.to_json())
        if report.problems and not options.accept:
            raise DifferenceError(output, report)
        for file in files.result.parent.iterdir():
            os.replace(file, output if file == files.result else output.with_suffix(file.suffix))
    return report


def _settings(
    source: str | Path,
    detector: AnyDetector,
    trained: RunConfig | None,
    config: Path | None,
    overrides: Sequence[str],
) -> RunConfig | None:
    """Where the pictures to compare on come from; None: they are drawn."""
    if not (config or trained or overrides):
        return None
    check_effect(detector, overrides, PROTOCOLS)
    return evaluation_settings(source, trained, config, overrides, ("data", "loader"))


def describe(detector: AnyDetector, form: Form, trained: RunConfig | None, licence: str) -> Metadata:
    return Metadata(
        version=detkit.__version__,
        detector=type(detector).__name__,
        classes=detector.categories.to_plain(),
        input=detector.input.config,
        stride=detector.input.stride,
        clip=detector.input.clip,
        pictures=form.pictures,
        raw=form.raw,
        batch=form.batch,
        canvas=form.canvas,
        proposals=detector.proposals,
        outputs=output_names(detector, form),
        configuration=dump_config(trained) if trained else None,
        licence=licence,
    )


def _licence(source: str | Path) -> str:
    return LICENCES.get(str(source).partition(":")[0], UNKNOWN_LICENCE)


def _write(
    detector: AnyDetector,
    form: Form,
    metadata: Metadata,
    format: Format,
    folder: Path,
    calibration: Iterable[Mapping[str, np.ndarray]] | None,
) -> Files:
    """calibration  inputs of the program, for a file in 8 bits; None: float32"""
    deployed = deployed_copy(detector)
    program = export_program(deployed, form, raw_too=True)
    expected = program if deployed is detector else export_program(detector, form, raw_too=True)
    everything = metadata.model_copy(update={"outputs": output_names(detector, form, raw_too=True)})
    result = folder / "result"
    result.mkdir()
    if format == "torch_export":
        complete, only = folder / "complete.pt2", result / "model.pt2"
        write_torch_export(program, everything, complete)
        write_torch_export(export_program(deployed, form), metadata, only)
        return Files(expected, complete, only)
    complete, only = folder / "complete.onnx", folder / "model.onnx"
    write_onnx(program, everything, complete)
    if calibration is not None:
        metadata = metadata.model_copy(update={"precision": "int8"})
        quantised = folder / "quantised.onnx"
        quantise(complete, quantised, calibration)
        complete = quantised
    take_outputs(complete, metadata, only)
    if format == "onnx":
        return Files(expected, complete, only.replace(result / "model.onnx"))
    for onnx_file, xml in ((complete, folder / "complete.xml"), (only, result / "model.xml")):
        write_openvino(onnx_file, metadata if xml.parent == result else everything, xml)
    return Files(expected, folder / "complete.xml", result / "model.xml")
