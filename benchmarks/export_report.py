"""Exports every configuration and every public detector, and writes what the files do beside PyTorch as a page.

python benchmarks/export_report.py [--only NAME ...] [--runs DIR] [--darknet CFG] [--output FILE]      CPU

Each is exported as ONNX and by torch.export, and both files are compared with the detector as `detkit export` does; the
publishers' own models are exported beside them by torch alone. The status is 1 if a row misses the bar.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from export_page import FORMATS, Row, page
from export_sources import CONFIGURATIONS, DETR, Source, prepare
from torch import nn

from detkit.config import UserError
from detkit.export.export import ExportOptions, export_source
from detkit.export.program import Form
from detkit.export.report import Report
from detkit.files import write_text
from detkit.weights.torchvision import CONFIGS as TORCHVISION

DARKNET = Path("../shared/data/weights/yolo-fastest-1.0-voc.cfg")
BATCH_SIZES = {1, 2, 7}  # that a file must have taken
FORMS = {"sliding_window": Form(canvas=(352, 352))}  # the built-in pictures are not larger, and 640 takes very long
MAX_SENTENCE = 160  # characters of an error in the table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these alone; the page is printed")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="trained runs by name (runs)")
    parser.add_argument("--darknet", type=Path, default=DARKNET, metavar="CFG", help=f"a darknet model ({DARKNET})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the page (docs/export_table.md)")
    options = parser.parse_args()
    names = (*CONFIGURATIONS, *TORCHVISION, DETR, options.darknet.stem)
    if unknown := set(options.only) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not known; known: {', '.join(names)}")
    rows = []
    for name in options.only or names:
        rows.append(examine(name, options.runs, options.darknet))
        print(f"{name}: {'; '.join(rows[-1].problems) or 'meets the bar'}", file=sys.stderr, flush=True)
        gc.collect()
    text = page(rows)
    if options.output or not options.only:
        write_text(options.output or Path("docs/export_table.md"), text)
    else:
        print(text)
    return int(any(row.problems for row in rows))


def examine(name: str, runs: Path, darknet: Path) -> Row:
    row = Row(name)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        try:
            source = prepare(name, runs, darknet, folder)
        except UserError as error:
            row.problems.append(str(error))
            return row
        row.weights = source.weights
        for suffix, format in FORMATS.items():
            try:
                report = export_source(
                    source.source, folder / f"model{suffix}", ExportOptions(FORMS.get(name, Form()), accept=True)
                )
            except Exception as error:  # one detector that cannot be exported does not hide the others
                if not isinstance(error, UserError):
                    traceback.print_exc()
                row.problems.append(f"{format}: {described(error)}")
            else:
                row.reports[suffix] = report
                row.problems += [f"{format}: {problem}" for problem in missed(report)]
        row.own = own_exports(source, folder)
    return row


def missed(report: Report) -> list[str]:
    """Why the report misses the bar, which is that of `detkit export` and what a table needs to say anything."""
    problems = list(report.problems)
    if missing := BATCH_SIZES - set(report.batch_sizes):
        problems.append(f"batches of {', '.join(map(str, sorted(missing)))} were not run")
    if report.matches is None or report.matches.torch + report.matches.file == 0:
        problems.append("there was no detection to compare")
    return problems


def own_exports(source: Source, folder: Path) -> tuple[str, ...]:
    if source.own is None:
        return ()
    model, inputs = source.own
    return attempt(lambda: own_program(model, inputs)), attempt(lambda: own_onnx(model, inputs, folder / "own.onnx"))


def own_program(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    torch.export.export(model, inputs, strict=False)


def own_onnx(model: nn.Module, inputs: tuple[Any, ...], path: Path) -> None:
    """Also runs the file: one that no runtime takes is no export."""
    torch.onnx.export(model, inputs, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tensors = torch.utils._pytree.tree_leaves(inputs)
    session.run(None, {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), tensors, strict=True)})


def attempt(action: Callable[[], None]) -> str:
    """`yes`, or the error with which it ends."""
    unread = io.StringIO()  # torch prints the program as far as it came
    with contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                action()
        except Exception as error:  # whatever it is, it is the answer
            return described(error)
    return "yes"


def described(error: BaseException) -> str:
    """The class of an error, its first sentence, and the class of what caused it."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # torch writes in colours
    sentence = re.split(r"(?<=[.!?])\s|\n", text, maxsplit=1)[0].rstrip(".")
    if len(sentence) > MAX_SENTENCE:
        sentence = f"{sentence[: MAX_SENTENCE - 3]}..."
    if isinstance(error, UserError):
        return sentence
    cause = f" (from {type(error.__cause__).__name__})" if error.__cause__ else ""
    return f"{type(error).__name__}: {sentence}{cause}"


if __name__ == "__main__":
    sys.exit(main())
