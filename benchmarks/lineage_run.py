"""One training of the fair table, in a process of its own, written as JSON; `benchmarks/lineage.py` starts it.

python benchmarks/lineage_run.py CONFIG DATA SEED SECONDS FILE
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detkit.engine.speed import prepare_process

if __name__ == "__main__":
    prepare_process()  # as the tools do, before torch is imported

import torch
from picture_seconds import median_seconds
from timing import peak_memory
from typing_extensions import override

from detkit.config import load_config, parse_config
from detkit.data.build import build_dataset
from detkit.detectors.build import learned_columns
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.environment import describe_environment
from detkit.engine.evaluate import detection_store, evaluate
from detkit.engine.loaders import evaluation_loader
from detkit.engine.proposal_search import proposals_for
from detkit.engine.run_folder import claim_folder
from detkit.engine.settings import RunConfig, TrainConfig
from detkit.engine.speed import for_prediction
from detkit.engine.stopping import Stopping
from detkit.engine.train import Run, TrainingData, new_detector
from detkit.evaluation.build import build_evaluators
from detkit.files import write_text

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DETKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
SIDE = 224  # px, the longer side of every input
ENDLESS = 1_000_000  # epochs: the time ends a run
PICTURES = 20  # of which the seconds are the median


def voc(folder: str, classes: list[str] | str) -> dict[str, Any]:
    root = str(SHARED / folder / "VOCdevkit")
    splits = {"train": ["2007_train"], "val": ["2007_val"]}
    return {"name": "voc", "root": root, "classes": classes, "on_bad_label": "drop_box", **splits}


# None: the data of the configuration, the built-in shapes
DATA = {"shapes": None, "bccd": voc("bccd", ["RBC", "WBC", "Platelets"]), "fod-a-mini": voc("fod-a-mini", "auto")}


class ProcessorTime(Stopping):
    """Ends a run, and its schedule, by the time that the processor has worked for it since `start`."""

    def __init__(self, config: TrainConfig, start: float) -> None:
        super().__init__(config)
        self.start = start

    @property
    @override
    def minutes(self) -> float:
        return (time.process_time() - self.start) / 60


def main() -> None:
    path, data, seed, seconds, file = sys.argv[1:]
    config = fair_config(Path(path), data, int(seed), float(seconds))
    with TemporaryDirectory() as folder:
        result = train_and_measure(config, Path(folder))
    about = {"detector": Path(path).stem, "data": data, "seed": int(seed), "budget": float(seconds)}
    write_text(Path(file), json.dumps(about | result, indent=1) + "\n")


def fair_config(path: Path, data: str, seed: int, seconds: float) -> RunConfig:
    """The configuration with what is the same for all: data, input size, time, seed, and one process."""
    tree = load_config(path, RunConfig).model_dump(mode="json")
    resize = tree["model"]["input"]["resize"]
    if resize["name"] != "keep":
        resize |= {"size": SIDE, "train_sizes": ()} | ({"max_size": SIDE} if resize["name"] == "short_side" else {})
    tree["data"] = DATA[data] or tree["data"]
    tree["train"] |= {"epochs": ENDLESS, "eval_every": ENDLESS, "max_minutes": seconds / 60, "seed": seed}
    tree["train"] |= {"schedule": {"name": "cosine"}, "init": None, "patience": None}
    tree["loader"] |= {"workers": 0}
    tree["device"] = "cpu"
    return parse_config(tree, RunConfig)


def train_and_measure(config: RunConfig, folder: Path) -> dict[str, Any]:
    clock = time.perf_counter()
    with distributed.process_group(config.device) as device, claim_folder(folder):
        trained = train(config, folder, device)
        peak = peak_memory()
        detector = for_prediction(trained.run.evaluated)
        scores = measure(detector, config, folder, device)
    proposing, detecting = picture_seconds(detector, config)
    return {
        "scores": scores,
        "steps": trained.run.step,
        "epochs": trained.run.images_seen / len(trained.run.data.train),
        "training_seconds": trained.seconds,
        "before_seconds": trained.before,
        "after_seconds": trained.after,
        "proposal_seconds_a_picture": proposing,
        "detection_seconds_a_picture": detecting,
        "parameters": sum(parameter.numel() for parameter in trained.run.detector.parameters()),
        "peak_mib": peak,
        "clock_seconds": time.perf_counter() - clock,
        "environment": describe_environment(device),
    }


@dataclass(frozen=True)
class Trained:
    """
    seconds  of the processor for the whole training
    before   of these until the first step: the search for proposals, where there is one
    after    of these after the last step: R-CNN's regressors and SVMs, the last checkpoint
    """

    run: Run
    seconds: float
    before: float
    after: float


def train(config: RunConfig, folder: Path, device: torch.device) -> Trained:
    columns = learned_columns(config.model)
    train_set = build_dataset(config.data, "train", columns=columns)
    start = time.process_time()
    detector = new_detector(config, train_set.categories)
    run = Run(detector, TrainingData(train_set, None, folder, columns), config, folder, device)
    begin = time.process_time()
    minutes = max(config.train.max_minutes - (begin - start) / 60, 1e-3)  # what is left; the rate falls over these
    run.stopping = ProcessorTime(config.train.model_copy(update={"max_minutes": minutes}), begin)
    run.run()
    end = time.process_time()
    return Trained(run, end - start, begin - start, end - begin - 60 * minutes * run.stopping.elapsed)


def measure(detector: AnyDetector, config: RunConfig, folder: Path, device: torch.device) -> dict[str, float]:
    """VOC's and COCO's scores of boxes, by detkit's own evaluators."""
    dataset = build_dataset(config.data, "val", columns=())
    store = detection_store(dataset)
    proposals = proposals_for(detector, dataset, folder, workers=0, chosen=config.loader.proposals)
    loader = evaluation_loader(dataset, detector, batch_size=config.eval.batch_size, workers=0, proposals=proposals)
    evaluation = evaluate(
        detector, loader, store, build_evaluators(["voc07", "coco"], store), device=device, progress=False
    )
    results = evaluation.results
    coco = results["coco"].metrics
    return {"voc07_map": results["voc07"].metrics["mAP"], "coco_ap": coco["AP"], "coco_ap50": coco["AP50"]}


def picture_seconds(detector: AnyDetector, config: RunConfig) -> tuple[float, float]:
    """Seconds of the processor for the proposals of one picture, and for the detections."""
    dataset = build_dataset(config.data, "val", columns=())
    images = (dataset.load(index).image for index in range(min(PICTURES + 1, len(dataset))))
    return median_seconds([detector], images, time.process_time)[0]


if __name__ == "__main__":
    main()
