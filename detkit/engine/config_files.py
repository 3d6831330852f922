"""Configurations by name: those that come with the package, as `faster_rcnn` or `coco/yolov3`, and one's own files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from detkit.config import UserError, load_config, read_yaml
from detkit.engine.settings import RunConfig

PACKAGED = Path(__file__).parents[1] / "configs"
SCORE = r"(?:COCO AP50|voc07 mAP|video-mAP@0\.5|box AP|mAP|AP50|AP) \d+\.\d+|\d+\.\d+ AP\b"


@dataclass(frozen=True, slots=True)
class ConfigSummary:
    """What the header and the content of a packaged configuration say.

    name      without folder of the package and suffix
    detector  `model.name` and `model.backbone.name`
    data      `data.name`, and the folder where it is not built in
    score     the first score of the header
    time      how long the training was seen to take; "published" for a score that is not from here
    """

    name: str
    detector: str
    data: str
    score: str
    time: str


def packaged_names() -> list[str]:
    """The names of all packaged configurations, those of the built-in data first."""
    names = [path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.yaml")]
    return sorted(names, key=lambda name: ("/" in name, name))


def find_config(name: str | Path) -> Path:
    """The file of this name, else the packaged configuration: `coco/yolov3`, also as `configs/coco/yolov3.yaml`.

    Raises UserError with the nearest names if there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    plain = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    known = packaged_names()
    if plain in known:
        return PACKAGED / f"{plain}.yaml"
    if path.exists():
        return path  # a folder: the reader says so
    close = difflib.get_close_matches(plain, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`detkit configs` lists those that come with detkit"
    raise UserError(f"{name}: no such configuration file, and none of that name comes with detkit; {hint}")


def load_named(name: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The checked configuration of this file or name. Raises ConfigError with every problem in it."""
    return load_config(find_config(name), RunConfig, overrides)


def header(path: Path) -> str:
    """The comment with which a configuration begins, as one text without its commands and editor settings."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if not text.startswith(("python tools/", "yaml-language-server:")):
            lines.append(text)
    return " ".join(lines)


def summarise_config(name: str) -> ConfigSummary:
    """What the packaged configuration `name` is, and what it was seen to reach."""
    path = PACKAGED / f"{name}.yaml"
    tree, text = read_yaml(path), header(path)
    model, data = tree["model"], tree["data"]
    seen = text.partition("Seen to reach ")[2]
    score, minutes = re.search(SCORE, seen or text), re.search(r"\d+ (minutes|s)\b", seen)
    backbone = model.get("backbone", {}).get("name", "")
    return ConfigSummary(
        name,
        " ".join(filter(None, (model["name"], backbone))),
        " ".join(filter(None, (data["name"], data.get("root", "")))),
        score.group() if score else "",
        minutes.group() if minutes else "published" if score else "",
    )


def list_configs() -> str:
    """A table of all packaged configurations."""
    rows = [("name", "detector", "data", "score", "time")]
    for name in packaged_names():
        item = summarise_config(name)
        rows.append((item.name, item.detector, item.data, item.score, item.time))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
