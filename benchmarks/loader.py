"""Training batches beside torchvision's transforms: JPEG 640 x 480 -> augmented 640 x 640, 16 a batch, epochs in turn.

python benchmarks/loader.py [--images N] [--workers N] [--repeats N] [--recipe scale|darknet|flip|mosaic]

The same recipe on either side: horizontal flip, colours in HSV, a window of the picture or a larger canvas around it,
stretched bilinearly without antialiasing to uint8 batches; darknet and mosaic have no peer. detkit's side is
`build_loader`, as training uses it; torchvision's is a DataLoader over `transforms.v2` on uint8 tensors, with boxes
beside the picture and persistent workers. Each worker is one thread. An epoch is timed from its first batch on, so that
no start of a worker counts, and one pixel of each batch is read. The pictures are drawn in a temporary folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from detkit.accelerate.memory import keep_memory
from detkit.data.checks import RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.data.loader import build_loader
from detkit.data.transforms import Augment, parse_augment
from detkit.nn.input import ImageInput, InputConfig, StretchConfig
from detkit.structures import Categories

WIDTH, HEIGHT, SIDE, BATCH, OBJECTS = 640, 480, 640, 16, 8
HUE, FACTOR, SCALES = 0.1, 1.5, (0.5, 2.0)  # colours of darknet's recipes; objects from half to twice their size
RECIPES: dict[str, Any] = {
    "flip": "flip",
    "darknet": "yolov3",
    "scale": ["flip", {"name": "hsv", "hue": HUE, "saturation": FACTOR, "exposure": FACTOR}, {"name": "scale_jitter"}],
    "mosaic": [{"name": "mosaic", "size": SIDE}, {"name": "random_affine", "size": SIDE}, "flip"],
}
Epoch = Callable[[int], Iterable[torch.Tensor]]  # the images of each batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed epochs of each, after one that is not counted")
    parser.add_argument("--recipe", choices=RECIPES, default="scale")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as the tools; the workers of both are forked after it
    with tempfile.TemporaryDirectory() as folder:
        images = draw_pictures(Path(folder), args.images)
        size = sum(Path(image.path).stat().st_size for image in images) / len(images) / 1024
        sides: dict[str, Epoch] = {"detkit": detkit_epochs(images, args.recipe, args.workers)}
        if args.recipe in ("flip", "scale"):
            sides["torchvision v2"] = torchvision_epochs(images, args.recipe, args.workers)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):
            for name, epoch in sides.items():
                rate = images_per_second(epoch(repeat))
                if repeat:
                    rates[name].append(rate)
    print(
        f"{len(images)} JPEG of {WIDTH} x {HEIGHT}, {size:.0f} KiB each, recipe {args.recipe}, {args.workers} workers; "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, OpenCV {cv2.__version__}\n"
    )
    print(f"| loader | images/s, median of {args.repeats} | least to most | ms a batch |\n|---|---|---|---|")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"| {name} | {rate:.0f} | {min(values):.0f} to {max(values):.0f} | {1000 * BATCH / rate:.1f} |")
    if importlib.util.find_spec("ultralytics") is None:
        print("\nultralytics: skipped, it is not installed")


def images_per_second(batches: Iterable[torch.Tensor]) -> float:
    start, seen = math.nan, 0
    for number, images in enumerate(batches):
        images[0, 0, 0, 0].item()
        if number:
            seen += len(images)
        else:
            start = time.perf_counter()
    return seen / (time.perf_counter() - start)


def draw_pictures(folder: Path, count: int) -> list[RawImage]:
    """Rectangles and ellipses on a texture of several scales, about as many bytes as a photograph has."""
    images = []
    for number in range(count):
        rng = np.random.default_rng(number)
        texture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for cells, strength in ((3, 90), (12, 40), (60, 22), (240, 16)):
            grid = rng.uniform(-strength, strength, (cells * 3 // 4, cells, 3)).astype(np.float32)
            texture += cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture = np.clip(texture + 120, 0, 255).astype(np.uint8)
        objects = []
        for index in range(OBJECTS):
            w, h = (int(side) for side in rng.integers(20, 200, 2))
            x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
            colour = [int(value) for value in rng.integers(0, 256, 3)]
            if index % 2:
                cv2.rectangle(picture, (x, y), (x + w, y + h), colour, -1)
            else:
                cv2.ellipse(picture, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, colour, -1)
            objects.append(RawObject(f"object {index}", 0, (x, y, x + w, y + h)))
        path = str(folder / f"{number:04d}.jpg")
        cv2.imwrite(path, picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append(RawImage(number, path, path, (HEIGHT, WIDTH), objects))
    return images


def detkit_epochs(images: list[RawImage], recipe: str, workers: int) -> Epoch:
    place = ImageInput(InputConfig(resize=StretchConfig(size=SIDE)), stride=32).place
    loader = build_loader(
        ImageDataset(images, name="drawn", categories=Categories.of_names(["object"]), decode=False),
        place=place,
        stride=32,
        batch_size=BATCH,
        augment=Augment(parse_augment(RECIPES[recipe])),
        seed=0,
        workers=workers,
        shuffle=True,
        aspect_grouping=True,
        with_targets=True,
    )

    def epoch(number: int) -> Iterable[torch.Tensor]:
        loader.set_epoch(number)
        return (batch.images for batch in loader)

    return epoch


class Window(v2.Transform):
    """`scale_jitter` for torchvision: a window with objects up to twice as large, or the picture on a larger canvas."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = math.exp(float(torch.empty(1).uniform_(math.log(SCALES[0]), math.log(SCALES[1]))))
        height, width = round(HEIGHT / factor), round(WIDTH / factor)
        top, left = (round(float(torch.rand(1)) * free) for free in (HEIGHT - height, WIDTH - width))
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """`crop` with its padding, which is black: `fill` of the canvas costs torchvision another pass."""
        return F.resized_crop(inpt, **params, size=[SIDE, SIDE], antialias=False)


class Pictures(Dataset[tuple[torch.Tensor, dict[str, Any]]]):
    def __init__(self, images: list[RawImage], transforms: v2.Transform) -> None:
        self.paths = [image.path for image in images]
        self.boxes = [torch.tensor([item.box for item in image.objects]) for image in images]
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        picture = tv_tensors.Image(decode_jpeg(read_file(self.paths[index])))
        boxes = tv_tensors.BoundingBoxes(self.boxes[index], format="XYXY", canvas_size=(HEIGHT, WIDTH))  # type: ignore[call-arg]
        target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)}
        image, target = self.transforms(picture, target)
        return image, target


def torchvision_epochs(images: list[RawImage], recipe: str, workers: int) -> Epoch:
    factors = (1 / FACTOR, FACTOR)
    chain: list[v2.Transform] = [v2.RandomHorizontalFlip(0.5)]
    if recipe == "flip":
        chain.append(v2.Resize((SIDE, SIDE), antialias=False))
    else:
        chain += [v2.ColorJitter(brightness=factors, saturation=factors, hue=HUE), Window()]
    chain.append(v2.SanitizeBoundingBoxes())
    loader = DataLoader(
        Pictures(images, v2.Compose(chain)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=stack,
    )
    return lambda number: (images for images, _ in loader)


def stack(items: list[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The pictures stacked, as the detection recipes of torchvision do; targets stay a list."""
    return torch.stack([image for image, _ in items]), [target for _, target in items]


if __name__ == "__main__":
    main()
