"""The YOLOs beside the implementations that others have of them: the same weights, the same input, in turn.

python benchmarks/yolo.py [--repeats N] [--models NAME ...] [--objects N]

Peers are YOLOX's authors and LibreYOLO, where they are installed (`benchmarks/yolo_peers.py` says how). Each runs in a
process of its own, detkit as its tools run it, on CUDA if there is one. Inference is from a normalised picture (detkit:
from uint8) to detections, with a few hundred candidates; a training step is the network, its losses and the gradients
of all weights. LibreYOLO has no losses of YOLOv4, and trains YOLOv7 with YOLOX's assignment and losses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from batches import random_batch
from timing import Remote, head, row
from torch import Tensor
from yolo_peers import BUILDERS, FOLDERS, OVERLAP, SCORE, Pair, build_pair, is_there

from detkit.accelerate import accelerate
from detkit.detectors.detector import Detector
from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.structures import Batch

CASES = {"YOLOX-s": (640, 4), "YOLOv4": (608, 2), "YOLOv7": (640, 2)}  # side in px, images of a training step
TRAINED = {("YOLOX's authors", "YOLOX-s"), ("LibreYOLO", "YOLOX-s"), ("LibreYOLO", "YOLOv7")}
CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--objects", type=int, default=8, help="of each image")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peers = [peer for peer in FOLDERS if is_there(peer)]
    if not peers:
        parser.error(f"no peer: set {' or '.join(FOLDERS.values())} to the folder of one; see benchmarks/yolo_peers.py")
    memory = []
    for peer in peers:
        head(["detkit", peer, f"{peer} / detkit"], [], device, args.repeats)
        for model in args.models:
            if (peer, model) in BUILDERS:
                for training in (False, True) if (peer, model) in TRAINED else (False,):
                    memory += compare(peer, model, training, args.objects, args.repeats, device)
        print()
    print("| peak memory of a training step, MiB | detkit | peer |\n|---|---|---|")
    print("\n".join(memory))


def compare(peer: str, model: str, training: bool, objects: int, repeats: int, device: torch.device) -> list[str]:
    """Prints the row of one work. The row of its memory, if it is a training step."""
    size, count = CASES[model]
    work = f"training step, {count}" if training else "inference, 1"
    ways = {
        "detkit": Remote(detkit_work, peer, model, training, objects, device, as_tools=True),
        peer: Remote(peer_work, peer, model, training, objects, device),
    }
    row(f"{model}, {work} x {size} x {size}", ways, repeats, device)
    peaks = [str(way.end()) for way in ways.values()]
    return [f"| {model}, {peer} | {' | '.join(peaks)} |"] if training else []


def detkit_work(peer: str, model: str, training: bool, objects: int, device: torch.device) -> Callable[[], None]:
    pair, batch = build(peer, model, training, objects, device)
    detector = accelerate(pair.detector, constant=not training)
    return partial(train_detkit if training else infer_detkit, detector, batch)


def peer_work(peer: str, model: str, training: bool, objects: int, device: torch.device) -> Callable[[], None]:
    pair, batch = build(peer, model, training, objects, device)
    images = pair.detector.input(batch.images, batch.sizes())
    if training:
        return partial(train_peer, pair, images, labels_of(batch))
    return partial(infer_peer, pair, images)


def build(peer: str, model: str, training: bool, objects: int, device: torch.device) -> tuple[Pair, Batch]:
    size, count = CASES[model]
    pair = build_pair(peer, model, size, device)
    selection = {"score_threshold": SCORE, "nms_threshold": OVERLAP}
    change_selection(pair.detector, selection)
    return pair, random_batch([(size, size)] * (count if training else 1), objects, CLASSES).to(device)


def change_selection(detector: Any, values: dict[str, float]) -> None:
    """The thresholds of all, in place of those of the published evaluation of each."""
    detector.head.config = detector.head.config.model_copy(
        update={"selection": detector.head.config.selection.model_copy(update=values)}
    )
    if hasattr(detector.head, "selection"):
        detector.head.selection = detector.head.config.selection


def labels_of(batch: Batch) -> Tensor:
    """`[B, M, 5]` class and cx, cy, w, h."""
    targets = [target.objects for target in batch.targets or ()]
    return torch.stack([torch.cat([each.labels[:, None], xyxy_to_cxcywh(each.boxes)], dim=1) for each in targets])


@torch.inference_mode()
def infer_detkit(detector: Detector[Any], batch: Batch) -> None:
    detector.eval()
    detector.postprocess(detector(batch), batch.infos)


@torch.inference_mode()
def infer_peer(pair: Pair, images: Tensor) -> None:
    pair.peer.eval()
    pair.detect(images)


def train_detkit(detector: Detector[Any], batch: Batch) -> None:
    detector.train()
    assert batch.targets
    torch.stack(list(detector.criterion(detector(batch), batch.targets).values())).sum().backward()
    detector.zero_grad(set_to_none=True)


def train_peer(pair: Pair, images: Tensor, labels: Tensor) -> None:
    pair.peer.train()
    assert pair.losses
    pair.losses(images, labels).backward()
    pair.peer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
