"""`detkit configs`, `detkit init` and `detkit schema`: where a configuration comes from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import SOURCE, run_command


def configs(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "configs", description="List the configurations that come with detkit: detector, data, score, time to train."
    )
    parser.add_argument("name", nargs="?", help="print this one instead, to be copied into a file")
    return run_command(parser, _configs, arguments)


def _configs(options: argparse.Namespace) -> None:
    from detkit.engine.config_files import find_config, list_configs

    print(find_config(options.name).read_text(encoding="utf-8") if options.name else list_configs())


def init(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "init", description="Write a first configuration for a folder of pictures and annotations: VOC, COCO or YOLO."
    )
    parser.add_argument("output", type=Path, metavar="FILE", help="the YAML file to write")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="the folder, or its YAML or JSON file")
    parser.add_argument(
        "--from", dest="base", default="faster_rcnn", metavar="NAME", help="of `detkit configs` (faster_rcnn)"
    )
    parser.add_argument("--init", metavar="SOURCE", help=f"weights to start from: {SOURCE}")
    return run_command(parser, _init, arguments)


def _init(options: argparse.Namespace) -> None:
    from detkit.engine.init_config import init_config

    for sentence in init_config(options.output, options.base, options.data, options.init):
        print(sentence)
    print(f"-> {options.output}; next: detkit train {options.output}")


def schema(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("schema", description="Print the JSON schema of a configuration, for editors.")
    return run_command(parser, _schema, arguments)


def _schema(_: argparse.Namespace) -> None:
    from detkit.engine.config_schema import config_schema

    print(config_schema())
