"""Real darknet models against OpenCV's dnn module, by the scores that it reaches with them on real images.

The reference: a plain stretch to 320 x 320, RGB / 255, score > 0.005, suppression at 0.45 within a class. Its batch
norms have an epsilon of 1e-6, darknet's and ours 1e-5.
"""

import json
from functools import partial
from pathlib import Path

import torch

from detkit.data.build import build_dataset
from detkit.data.coco import COCOConfig
from detkit.data.dataset import ImageDataset
from detkit.data.voc import VOCConfig
from detkit.detectors.detector import AnyDetector
from detkit.engine.evaluate import detection_store, evaluate
from detkit.engine.loaders import evaluation_loader
from detkit.evaluation.build import build_evaluators
from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.protocols import Protocol
from detkit.weights.darknet import load_darknet
from tests.parity.conftest import AsRun, Ledger

REFERENCE = "OpenCV 4.14 dnn"
LIMIT = 0.005


def measure(detector: AnyDetector, dataset: ImageDataset, *protocols: Protocol) -> Evaluation:
    loader = evaluation_loader(dataset, detector, batch_size=8, workers=0)
    store = detection_store(dataset)
    evaluators = build_evaluators(protocols, store)
    return evaluate(detector, loader, store, evaluators, device=torch.device("cpu"), progress=False)


def test_voc(shared_data: Path, compare: Ledger, as_run: AsRun) -> None:
    lists = ("2007_train", "2007_val")
    root = str(shared_data / "voc07-mini" / "VOCdevkit")
    dataset = build_dataset(VOCConfig(root=root, train=lists, val=lists), "val")
    assert len(dataset) == 150
    detector = as_run(load_darknet(shared_data / "weights" / "yolo-fastest-1.0-voc.cfg"))
    results = measure(detector, dataset, "voc07", "voc10").results
    expected = json.loads((shared_data / "weights" / "expected_voc07-mini.json").read_text())["expected"]
    enter = partial(compare, "yolo-fastest-1.0-voc", REFERENCE, limit=LIMIT)
    for protocol, key in (("voc07", "voc07_11point"), ("voc10", "all_point")):
        result, reference = results[protocol], expected[key]
        names = list(result.per_class)
        mean, classes = torch.tensor(result.score), torch.tensor([result.per_class[name] for name in names])
        enter(f"{protocol} mAP, 150 images", [(mean, torch.tensor(reference["mean"]))])
        enter(f"{protocol} AP of 20 classes", [(classes, torch.tensor([reference[name] for name in names]))])


def test_coco(shared_data: Path, compare: Ledger, as_run: AsRun) -> None:
    dataset = build_dataset(COCOConfig(root=str(shared_data / "coco-mini")), "val")
    assert len(dataset) == 48
    detector = as_run(load_darknet(shared_data / "weights" / "yolo-fastest-1.1-coco.cfg"))
    results = measure(detector, dataset, "coco").results
    expected = json.loads((shared_data / "weights" / "expected_dev_coco48.json").read_text())["pycocotools_stats"]
    numbers = torch.tensor(list(results["coco"].metrics.values()))
    compare(
        "yolo-fastest-1.1-coco", REFERENCE, "COCO's 12 numbers, 48 images", [(numbers, torch.tensor(expected))], LIMIT
    )
