"""`detkit train | eval | predict | anchors | proposals | compress`, and the same six as scripts in `tools/`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from detkit.config import UserError
from detkit.engine.speed import prepare_process
from detkit.evaluation.protocols import PROTOCOLS

SOURCE = (
    "a run (its last.pt), a checkpoint, or public weights: torchvision:NAME[:FILE], detr:NAME[:FILE], "
    "darknet:CFG[:WEIGHTS[:NAMES]] or NAME.cfg with NAME.weights beside it"
)
TOP = "Object detection from the sliding window to DETR: train, evaluate, predict."


def train(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("train", description="Train a detector and validate it as it learns.")
    parser.add_argument("config", type=Path, nargs="?", help="a YAML file of configs/; with --resume: the run's own")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting; repeatable"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME of the config)"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run from its last checkpoint")
    return _run(parser, _train, arguments)


def _train(options: argparse.Namespace) -> None:
    import detkit

    detkit.train(options.config, output=options.output, set=options.set, resume=options.resume)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("eval", description="Measure a detector on validation data.")
    parser.add_argument("source", nargs="?", metavar="RUN", help=f"{SOURCE} (default: the newest run)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take the data from this configuration")
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="repeatable (default: all)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--detections", type=Path, metavar="FILE", help="write the detections here, as COCO results")
    return _run(parser, _evaluate, arguments)


def _evaluate(options: argparse.Namespace) -> None:
    from detkit.engine.evaluate import evaluate_source
    from detkit.engine.run import create_folder, newest_run
    from detkit.evaluation.report import detections_to_coco, format_table, to_json

    for path in filter(None, (options.json, options.detections)):
        create_folder(path.parent)  # rather now than after an hour of evaluation
    source = options.source or newest_run()
    evaluation, store = evaluate_source(
        source, options.protocol or PROTOCOLS, config=options.config, overrides=options.set
    )
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process speaks for all
    print(f"{source}\n")
    for protocol in evaluation.results:
        print(format_table(evaluation, protocol), end="\n\n")
    if options.json:
        _write_json(options.json, to_json(evaluation))
    if options.detections:
        _write_json(options.detections, detections_to_coco(store.detections, store.categories))


def predict(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("predict", description="Detect on pictures and videos; write drawings and JSON.")
    parser.add_argument("source", metavar="RUN", help=SOURCE)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="pictures, videos, or folders of them")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for drawings and detections.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, metavar="S", help="draw from here on (0.5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return _run(parser, _predict, arguments)


def _predict(options: argparse.Namespace) -> None:
    from detkit.engine.predict import predict_files

    results = predict_files(
        options.source, options.files, options.output, score_threshold=options.score_threshold, device=options.device
    )
    _write_json(options.output / "detections.json", results)
    print(f"{len(results)} pictures and frames -> {options.output}")


def anchors(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("anchors", description="Find anchors that fit the boxes of your data: k-means.")
    parser.add_argument("config", type=Path, help="a YAML file of configs/; its data and model.input are read")
    parser.add_argument("--k", type=int, default=9, metavar="K", help="how many anchors (9)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first guess (0)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting")
    return _run(parser, _anchors, arguments)


def _anchors(options: argparse.Namespace) -> None:
    from detkit.config import load_config
    from detkit.engine.anchor_report import describe_anchors
    from detkit.engine.run import RunConfig

    if options.k < 1:
        raise UserError(f"--k: expected at least 1, found {options.k}")
    if options.seed < 0:
        raise UserError(f"--seed: expected at least 0, found {options.seed}")
    print(describe_anchors(load_config(options.config, RunConfig, options.set), options.k, options.seed))


def proposals(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("proposals", description="Proposals for your data, kept beside it, and judged.")
    parser.add_argument("config", type=Path, help="a YAML file of configs/; its data and model.proposals are read")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="(val)")
    parser.add_argument("--mode", choices=("fast", "quality"), help="selective search as in its paper")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to keep them in (default: ROOT/proposals)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting")
    return _run(parser, _proposals, arguments)


def _proposals(options: argparse.Namespace) -> None:
    from detkit.config import load_config
    from detkit.data.build import build_dataset
    from detkit.engine.distributed import process_group
    from detkit.engine.proposal_search import describe_proposals, proposal_folder, proposal_source
    from detkit.engine.run import RunConfig
    from detkit.nn.proposals.selective_search import QUALITY, SelectiveSearchConfig

    config = load_config(options.config, RunConfig, options.set)
    modes = {"fast": SelectiveSearchConfig(), "quality": QUALITY}
    proposals_config = modes.get(options.mode) or getattr(config.model, "proposals", None) or modes["fast"]
    dataset = build_dataset(config.data, options.split)
    with process_group(config.device) as device:
        source = proposal_source(proposals_config, device)
        folder = proposal_folder(source, Path(config.data.root), options.output)
        print(describe_proposals(dataset, source, folder, workers=config.loader.workers))


def compress(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "compress", description="Cut fully connected layers of a trained R-CNN, Fast or Faster R-CNN by truncated SVD."
    )
    parser.add_argument("source", metavar="RUN", help="a run (its last.pt) or a checkpoint")
    parser.add_argument(
        "--ranks", type=int, nargs="+", required=True, metavar="R", help="one a layer; the paper: 1024 256 for VGG16"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint for eval and predict")
    return _run(parser, _compress, arguments)


def _compress(options: argparse.Namespace) -> None:
    from detkit.engine.compress import compress

    print(compress(options.source, options.ranks, options.output))


def main(arguments: Sequence[str] | None = None) -> int:
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "train": train,
        "eval": evaluate,
        "predict": predict,
        "anchors": anchors,
        "proposals": proposals,
        "compress": compress,
    }
    parser = argparse.ArgumentParser("detkit", description=TOP)
    parser.add_argument("command", choices=commands, help="each explains itself with --help")
    given = sys.argv[1:] if arguments is None else arguments
    return commands[parser.parse_args(given[:1]).command](given[1:])


def _run(
    parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> int:
    """Status 0, 2 for a user's mistake (one message, no stack trace), 130 when interrupted."""
    options = parser.parse_args(arguments)
    prepare_process()
    try:
        action(options)
    except UserError as error:
        traceback.clear_frames(error.__traceback__)  # ends the progress bars: the message stands on its own line
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        traceback.clear_frames(interrupt.__traceback__)
        print("interrupted; a training run goes on with --resume", file=sys.stderr)
        return 130
    return 0


def _write_json(path: Path, value: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from error
