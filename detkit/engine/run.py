"""The folder of a run: its configuration, and the state from which it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detkit.config import ConfigError, UserError, dump_config, load_config, override, parse_config, read_yaml
from detkit.detectors.detector import AnyDetector
from detkit.engine.checkpoint import CheckpointError, load_checkpoint
from detkit.engine.settings import RunConfig, RunSettings
from detkit.engine.upgrade import upgrade_config, upgrade_state
from detkit.structures import Categories

LAST, BEST, CONFIG = "last.pt", "best.pt", "config.yaml"


# what may differ when a run is resumed: how long, on what machine and by what means
RESUMABLE = ("train.epochs", "train.eval_every", "loader.workers", "device", "data.root", "eval.coco_backend")


def prepare_run(
    config: str | Path | RunConfig | None,
    *,
    output: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: str | Path | None = None,
) -> tuple[RunConfig, Path]:
    """The configuration and the folder of a run that starts or, with `resume`, goes on; see `detkit.train`."""
    if resume is not None:
        if output is not None:
            raise UserError("train: --resume goes on in the folder of the run; leave --output out")
        folder = Path(resume)
        asked = load_run_config(folder, overrides) if config is None else _resolve(config, overrides)
        return resumed_config(folder, asked), folder
    if config is None:
        raise UserError("train: name a configuration, such as configs/faster_rcnn.yaml, or a run with --resume RUN")
    name = config.model.name if isinstance(config, RunConfig) else Path(config).stem
    return _resolve(config, overrides), create_run_folder(Path(output) if output is not None else None, name)


def _resolve(config: str | Path | RunConfig, overrides: Iterable[str]) -> RunConfig:
    if isinstance(config, RunConfig):
        return parse_config(override(config.model_dump(mode="json"), overrides), RunConfig)
    return load_config(config, RunConfig, overrides)


def create_run_folder(output: Path | None, name: str) -> Path:
    """A folder for a new run: `output`, which must hold none yet, or the first free of `runs/NAME`, `runs/NAME-2`."""
    if output is not None:
        if (output / CONFIG).exists():
            raise UserError(
                f"{output}: holds a run already; choose another --output, or continue it with --resume {output}"
            )
        folder = output
    else:
        folder, number = Path("runs") / name, 2
        while folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            folder, number = Path("runs") / f"{name}-{number}", number + 1
    create_folder(folder)
    return folder


def create_folder(folder: Path) -> None:
    """Makes a folder to write in. Raises UserError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this output folder: {error.strerror}; choose another") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: this output folder is not writable; choose another")


def newest_run(root: Path = Path("runs")) -> Path:
    """The run whose last checkpoint is the newest."""
    checkpoints = sorted(root.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UserError(f"{root}: no run with a checkpoint here; train one first, or name a run or a checkpoint")
    return checkpoints[-1].parent


def run_config_file(folder: Path) -> Path:
    """The configuration of the run in `folder`. Raises UserError if there is none."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"--resume {folder}: no run here ({CONFIG} is missing); name the folder of a run")
    return folder / CONFIG


def resumed_config(folder: Path, config: RunConfig) -> RunConfig:
    """`config`, if the run in `folder` was started with the same. Raises ConfigError naming every difference."""
    started = _flat(load_run_config(folder).model_dump(mode="json"))
    asked = _flat(config.model_dump(mode="json"))
    differences = [
        f"{key}: the run has {started.get(key)!r}, asked for {asked.get(key)!r}"
        for key in {**started, **asked}
        if started.get(key) != asked.get(key) and key not in RESUMABLE
    ]
    if differences:
        raise ConfigError(
            "\n  ".join([f"--resume {folder}: this run was started with another configuration", *differences])
        )
    return config


def load_run_config(folder: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of the run in `folder`, also of one that an earlier detkit wrote."""
    path = run_config_file(folder)
    tree = upgrade_config(read_yaml(path))
    if "model" not in tree:
        raise UserError(
            f"--resume {folder}: this run was started from Python, so its detector and data are not known here; go on "
            "with train(detector, data, settings, folder, resume=True)"
        )
    return parse_config(override(tree, overrides), RunConfig, where=str(path))


def save_config(folder: Path, settings: RunSettings) -> None:
    (folder / CONFIG).write_text(dump_config(settings), encoding="utf-8")


def detector_state(settings: RunSettings, detector: AnyDetector) -> dict[str, Any]:
    """The part of a checkpoint from which `load_detector` builds the detector again."""
    return {
        "config": dump_config(settings),
        "categories": detector.categories.to_plain(),
        "model": detector.state_dict(),
    }


def load_training_state(folder: Path, categories: Categories) -> dict[str, Any]:
    """The last checkpoint of a run. Raises CheckpointError if training cannot go on from it with these categories."""
    if not (folder / LAST).exists():
        raise CheckpointError(f"{folder}: no checkpoint yet, the run ended in its first epoch; start it anew")
    state = upgrade_state(load_checkpoint(folder / LAST))
    if "optimizer" not in state:
        raise CheckpointError(f"{folder / LAST}: holds no training state; resume needs a checkpoint written as {LAST}")
    names = state["categories"]["names"]
    if names != list(categories.names):
        raise CheckpointError(
            f"{folder / LAST}: trained on the classes {', '.join(names)}; the data has {', '.join(categories.names)}"
        )
    return state


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
