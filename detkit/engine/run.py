"""The folder of a run: its configuration, and the state from which it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from detkit.config import ConfigError, UserError, dump_config, override, parse_config, read_yaml
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.checkpoint import CheckpointError, load_checkpoint
from detkit.engine.config_files import load_named
from detkit.engine.run_folder import claim_folder, claim_new_folder
from detkit.engine.settings import RunConfig, RunSettings
from detkit.engine.upgrade import upgrade_config, upgrade_state
from detkit.files import write_text
from detkit.structures import Categories

LAST, BEST, CONFIG = "last.pt", "best.pt", "config.yaml"


# what may differ when a run is resumed: how long, on what machine and by what means
RESUMABLE = (
    "train.epochs",
    "train.eval_every",
    "train.patience",
    "train.max_minutes",
    "loader.workers",
    "loader.proposals",
    "device",
    "data.root",
    "eval.coco_backend",
)


@contextmanager
def prepare_run(
    config: str | Path | RunConfig | None,
    *,
    output: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: str | Path | None = None,
) -> Iterator[tuple[RunConfig, Path]]:
    """The configuration and the folder of a run that starts or, with `resume`, goes on; see `detkit.train`.

    Within the block no other process can train in the folder.
    """
    if resume is not None and output is not None:
        raise UserError("train: --resume goes on in the folder of the run; leave --output out")
    if resume is None and config is None:
        raise UserError("train: name a configuration, such as configs/faster_rcnn.yaml, or a run with --resume RUN")
    resolved = load_run_config(Path(str(resume)), overrides) if config is None else _resolve(config, overrides)
    with distributed.process_group(resolved.device):
        if resume is not None:
            run_config_file(Path(resume))
            with claim_folder(Path(resume)):
                yield resumed_config(Path(resume), resolved), Path(resume)
        elif output is not None:
            with claim_folder(Path(output)):
                _check_no_run(Path(output))
                yield resolved, Path(output)
        else:
            name = config.model.name if isinstance(config, RunConfig) else Path(str(config)).stem
            with claim_new_folder(_default_folders(name)) as folder:
                yield resolved, folder


def _resolve(config: str | Path | RunConfig, overrides: Iterable[str]) -> RunConfig:
    if isinstance(config, RunConfig):
        return parse_config(override(config.model_dump(mode="json"), overrides, RunConfig), RunConfig)
    return load_named(config, overrides)


def _check_no_run(folder: Path) -> None:
    if (folder / CONFIG).exists():
        raise UserError(
            f"{folder}: holds a run already; choose another --output, or continue it with --resume {folder}"
        )


def _default_folders(name: str) -> Iterator[Path]:
    """`runs/NAME`, `runs/NAME-2`, `runs/NAME-3`, ..."""
    yield Path("runs") / name
    for number in count(2):
        yield Path("runs") / f"{name}-{number}"


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
        if (folder / LAST).exists():
            fix = f"for other settings start a new run from its weights: train CONFIG --init {folder}"
        else:
            fix = f"it has no checkpoint yet: remove {folder} and start anew"
        raise ConfigError(
            "\n  ".join([f"--resume {folder}: this run was started with another configuration", *differences, fix])
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
    return parse_config(override(tree, overrides, RunConfig), RunConfig, where=str(path))


def save_config(folder: Path, settings: RunSettings) -> None:
    write_text(folder / CONFIG, dump_config(settings))


def detector_state(settings: RunSettings, detector: AnyDetector) -> dict[str, Any]:
    """The part of a checkpoint from which `load_detector` builds the detector again."""
    return {
        "config": dump_config(settings),
        "categories": detector.categories.to_plain(),
        "model": detector.state_dict(),
    }


def has_checkpoint(folder: Path) -> bool:
    """Whether a run that is resumed has a checkpoint. Says so if it has none, as it starts from the beginning then.

    Raises CheckpointError if the last one is gone and starting would overwrite the best one.
    """
    if (folder / LAST).exists():
        return True
    if (folder / BEST).exists():
        raise CheckpointError(f"{folder / LAST}: no such checkpoint{_best_instead(folder)}")
    if distributed.rank() == 0:
        print(f"{folder}: no checkpoint yet, the run ended in its first epoch; it starts from the beginning")
    return False


def load_last(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run. The CheckpointError for one that cannot be read says whether the best one can."""
    try:
        return load_checkpoint(folder / LAST)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_best_instead(folder)}") from error


def _best_instead(folder: Path) -> str:
    try:
        load_checkpoint(folder / BEST)
    except CheckpointError:
        return ""
    return f"; {folder / BEST} is whole: name it instead of the run, or train on from its weights with --init"


def load_training_state(folder: Path, categories: Categories, epochs: int) -> dict[str, Any]:
    """The last checkpoint of a run.

    Raises CheckpointError if training cannot go on from it to `epochs` with these categories.
    """
    state = upgrade_state(load_last(folder))
    if "optimizer" not in state:
        raise CheckpointError(f"{folder / LAST}: holds no training state; resume needs a checkpoint written as {LAST}")
    names = state["categories"]["names"]
    if names != list(categories.names):
        raise CheckpointError(
            f"{folder / LAST}: trained on the classes {', '.join(names)}; the data has {', '.join(categories.names)}"
        )
    if state["epoch"] > epochs:
        raise CheckpointError(
            f"--resume {folder}: the run has done {state['epoch']} epochs, asked for {epochs}; train.epochs is how "
            "many there are in all: give at least as many"
        )
    return state


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
