"""`detkit anchors` and `detkit proposals`: commands that look at the data of a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import CONFIG, add_set, run_command
from detkit.config import UserError


def anchors(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("anchors", description="Find anchors that fit the boxes of your data: k-means.")
    parser.add_argument("config", type=Path, help=f"{CONFIG}; its data and model.input are read")
    parser.add_argument("--k", type=int, default=9, metavar="K", help="how many anchors (9)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first guess (0)")
    add_set(parser)
    return run_command(parser, _anchors, arguments)


def _anchors(options: argparse.Namespace) -> None:
    from detkit.engine.anchor_report import describe_anchors
    from detkit.engine.config_files import load_named

    if options.k < 1:
        raise UserError(f"--k: expected at least 1, found {options.k}")
    if options.seed < 0:
        raise UserError(f"--seed: expected at least 0, found {options.seed}")
    print(describe_anchors(load_named(options.config, options.set), options.k, options.seed))


def proposals(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "proposals", description="Proposals for your data, stored beside it, and their recall."
    )
    parser.add_argument("config", type=Path, help=f"{CONFIG}; its data and model.proposals are read")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="(val)")
    parser.add_argument("--mode", choices=("fast", "quality"), help="selective search as in its paper")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to keep them (default: loader.proposals)")
    add_set(parser)
    return run_command(parser, _proposals, arguments)


def _proposals(options: argparse.Namespace) -> None:
    from detkit.data.build import build_dataset
    from detkit.engine.config_files import load_named
    from detkit.engine.distributed import process_group
    from detkit.engine.proposal_search import describe_proposals, proposal_folder, proposal_source
    from detkit.nn.proposals.selective_search import QUALITY, SelectiveSearchConfig

    config = load_named(options.config, options.set)
    modes = {"fast": SelectiveSearchConfig(), "quality": QUALITY}
    proposals_config = modes.get(options.mode) or getattr(config.model, "proposals", None) or modes["fast"]
    dataset = build_dataset(config.data, options.split, columns=())
    with process_group(config.device) as device:
        source = proposal_source(proposals_config, device)
        folder = proposal_folder(source, Path(config.data.root), options.output or config.loader.proposals)
        if options.output:
            print(f"train and eval find them with --set loader.proposals={options.output}")
        print(describe_proposals(dataset, source, folder, workers=config.loader.workers))
