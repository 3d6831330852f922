"""`detkit convert`: a data set in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import run_command

POLICIES = ("raise", "clip", "drop_box", "drop_image")


def convert(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "convert",
        description="Write a data set as COCO, VOC or YOLO. Read are these three, LabelMe, CVAT, Label Studio, "
        "Supervisely, VIA, CreateML and Open Images.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="the folder, or its annotation file")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder that does not exist yet, or is empty")
    parser.add_argument("--to", choices=("coco", "voc", "yolo"), required=True, help="the format of OUT")
    parser.add_argument("--from", dest="format_name", metavar="FORMAT", help="of IN, where it is not seen rightly")
    parser.add_argument("--on-bad-label", choices=POLICIES, default="raise", help="as data.on_bad_label (raise)")
    parser.add_argument("--copy", action="store_true", help="copy the pictures; otherwise they are hard links to IN's")
    return run_command(parser, _convert, arguments)


def _convert(options: argparse.Namespace) -> None:
    from detkit.data.checks import DataError
    from detkit.engine.convert import convert

    try:
        lines = convert(
            options.source,
            options.output,
            options.to,
            format_name=options.format_name,
            on_bad_label=options.on_bad_label,
            copy=options.copy,
        )
    except DataError as error:  # here the policy is an option, not a setting
        raise DataError(str(error).replace("set data.on_bad_label:", "give --on-bad-label:")) from error
    print("\n".join(lines))
