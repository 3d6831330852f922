"""What the folder of a run tells of its training: configuration, data, curves, time, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.config import UserError, dump_config
from detkit.data.build import build_dataset
from detkit.data.checks import NoValidation
from detkit.detectors.build import learned_columns
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.environment import git_revision, read_environments
from detkit.engine.run import LAST
from detkit.engine.settings import RunConfig
from detkit.inspect.report.charts import Chart, line_chart

NO_LOSS = ("kind", "step", "epoch", "lr", "grad_norm")


@dataclass(frozen=True)
class RunRecord:
    """
    config       YAML, with every default
    facts        what else is known, as (name, value): seed, time, versions, ...
    data         a sentence about each split, or why it cannot be read
    charts       of the training; empty without its records
    """

    config: str
    facts: Sequence[tuple[str, str]]
    data: Sequence[str]
    charts: Sequence[Chart]


def read_run(source: Path, config: RunConfig) -> RunRecord:
    """Of the run in the folder `source`, or of a checkpoint, whose folder may have the rest."""
    folder = source if source.is_dir() else source.parent
    facts = [
        ("model", config.model.name),
        ("seed", str(config.train.seed)),
        *_progress(folder / LAST if source.is_dir() else source),
        *_environment(folder),
    ]
    records, num_broken = _records(folder)
    if num_broken:
        facts.append(("metrics.jsonl", f"{num_broken} broken lines left out of the curves"))
    return RunRecord(dump_config(config), facts, _data(config), training_charts(records))


def _progress(checkpoint: Path) -> list[tuple[str, str]]:
    """How far the training is; nothing of an exported file."""
    if checkpoint.suffix != ".pt":
        return []
    state = load_checkpoint(checkpoint)
    facts = [("trained", f"{state['epoch']} epochs, {state['step']:,} steps")] if "step" in state else []
    if "images_seen" in state:
        facts.append(("images seen", f"{state['images_seen']:,}"))
    return facts


def _environment(folder: Path) -> list[tuple[str, str]]:
    """Of the last start of the training, where one is recorded; else only the checkout in which the folder lies now."""
    environments = read_environments(folder)
    if not environments:
        git = git_revision(folder)
        return [("git revision", f"{_git_text(git)}: now, of the folder of the run")] if git else []
    last: dict[str, Any] = environments[-1]
    facts = [
        ("started", ", ".join(str(environment.get("started")) for environment in environments)),
        ("device", f"{last.get('processes')} x {last.get('device')}, {last.get('threads')} CPU threads"),
        ("system", f"{last.get('system')}, Python {last.get('python')}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in (last.get("packages") or {}).items())),
    ]
    minutes = [environment["minutes"] for environment in environments if "minutes" in environment]
    if minutes:
        part = "" if len(minutes) == len(environments) else f", without {len(environments) - len(minutes)} cut short"
        facts.insert(1, ("time", f"{sum(minutes):.1f} minutes{part}"))
    if last.get("git"):
        facts.append(("git revision", f"{_git_text(last['git'])}: when the training was started"))
    return facts


def _git_text(git: Mapping[str, Any]) -> str:
    return f"{git.get('revision')}{', with changes' if git.get('changed') else ''}"


def _data(config: RunConfig) -> list[str]:
    summaries = []
    for split in ("train", "val"):
        try:
            summaries.append(build_dataset(config.data, split, columns=learned_columns(config.model)).summary)
        except NoValidation:
            summaries.append("no validation data")
        except UserError as error:
            summaries.append(f"{split}: the data cannot be read now: {error}")
    return summaries


def _records(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of `metrics.jsonl` that are whole, and how many are not; none without the file."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], 0
    records, num_broken = [], 0
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # a killed writer may cut the last
            record = None
        if isinstance(record, dict) and {"kind", "step", "epoch"} <= record.keys():
            records.append(record)
        else:
            num_broken += bool(line.strip())
    return records, num_broken


def training_charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Losses and learning rate by step, scores by epoch; those of them that were recorded."""
    train = [record for record in records if record["kind"] == "train"]
    val = [record for record in records if record["kind"] == "val"]
    losses = [name for name in (train[-1] if train else {}) if name not in NO_LOSS]
    scores = [name for name in (val[-1] if val else {}) if name not in NO_LOSS]
    charts = []
    if losses:
        charts.append(line_chart("Training loss", ("step", "loss"), _series(train, "step", losses)))
        charts.append(line_chart("Learning rate", ("step", "learning rate"), _series(train, "step", ["lr"])))
    if scores:
        series = _series(val, "epoch", scores)
        charts.append(line_chart("Validation", ("epoch", "score"), series, y_range=(0, 1)))
    return charts


def _series(
    records: Sequence[Mapping[str, Any]], x: str, names: Sequence[str]
) -> dict[str, tuple[list[float], list[float]]]:
    rows = {name: [record for record in records if name in record] for name in names}
    return {name: ([row[x] for row in rows[name]], [row[name] for row in rows[name]]) for name in names}
