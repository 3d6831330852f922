"""The names of classes that a file of weights does not have."""

from __future__ import annotations

from pathlib import Path

from detkit.config import UserError
from detkit.nn.backbones.staged import public_weights
from detkit.structures import Categories


def coco_categories() -> Categories:
    """The 80 classes of COCO, with its ids, which have gaps."""
    names = public_weights("fasterrcnn_resnet50_fpn")["COCO_V1"].meta["categories"]  # by id; the first is background
    ids = [number for number, name in enumerate(names) if number > 0 and name != "N/A"]
    return Categories(tuple(names[number] for number in ids), tuple(ids))


def read_names(path: Path, count: int) -> tuple[str, ...]:
    """From a text file, one a line. Raises UserError unless there are `count` different ones."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; expected class names, one a line") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read these class names: {error.strerror}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count or len(set(names)) != count:
        raise UserError(
            f"{path}: expected {count} class names, one a line, as the network has classes; found {len(names)}, "
            f"{len(set(names))} of them different"
        )
    return names


def categories_of_count(count: int) -> Categories:
    """COCO's if there are as many, else "class 0" and so on."""
    coco = coco_categories()
    return coco if count == len(coco) else Categories.of_names([f"class {label}" for label in range(count)])
