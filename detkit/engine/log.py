"""The records of a run: `metrics.jsonl`, TensorBoard events, `curves.png`, and the progress bar."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from detkit.files import replacing, write_text, writing

Item = TypeVar("Item")
RECORDS = "metrics.jsonl"


class RunLog:
    """One line of `metrics.jsonl` per logged training step (`kind: train`) and per validation (`kind: val`).

    A resumed run keeps the lines up to the step it resumes from, so every step stands once. Only the first process of a
    distributed run writes (`enabled`), and the losses are its own.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0, enabled: bool = True, log_every: int = 20) -> None:
        self.path = folder / RECORDS
        self.enabled = enabled
        self.log_every = log_every
        self.records: list[dict[str, Any]] = []
        self.recent: dict[str, list[float]] = defaultdict(list)
        if not enabled:
            return
        from detkit.engine.events import EventFile

        self.records = read_records(self.path, resume_step)
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self.board = EventFile(folder, purge_step=resume_step + 1)

    def progress(self, items: Iterable[Item], *, done: int, total: int, title: str) -> Iterator[Item]:
        """Shows where the whole run stands and how long it will still take, with the latest losses."""
        self.bar = tqdm(items, initial=done, total=total, desc=title, disable=not self.enabled, dynamic_ncols=True)
        self.bar._time = time.monotonic  # type: ignore[attr-defined]  # else the clock on the wall, which may jump
        self.bar.start_t = self.bar.last_print_t = time.monotonic()
        yield from self.bar

    def passes(self, items: Iterable[Item], title: str) -> Iterable[Item]:
        """The same items with a progress bar for each pass over them."""
        return _Passes(items, title, self.enabled)

    def losses(self, values: dict[str, float]) -> None:
        """The losses of one batch, by name."""
        for name, value in {"loss": sum(values.values()), **values}.items():
            self.record(name, value)

    def record(self, name: str, value: float) -> None:
        """A number of one batch or step; means over several are written down."""
        self.recent[name].append(value)

    def step(self, step: int, epoch: int, lr: float, *, last: bool) -> None:
        """After an optimizer step (from 1): the mean losses since are written down every `log_every` of them, and after
        the `last` of an epoch, so that no mean reaches back beyond the checkpoint that a run is resumed from."""
        if step % self.log_every == 0 or last:
            means = {name: sum(values) / len(values) for name, values in self.recent.items()}
            self.recent.clear()
            self._write({"kind": "train", "step": step, "epoch": epoch, "lr": lr, **means})
            if self.enabled:
                self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)

    def validation(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        self._write({"kind": "val", "step": step, "epoch": epoch, **metrics})
        if self.enabled:
            draw_curves(self.records, self.path.with_name("curves.png"))

    def message(self, text: str | None) -> None:
        """None: there is nothing to say."""
        if self.enabled and text:
            tqdm.write(text)

    def close(self) -> None:
        if self.enabled:
            self.board.close()

    def _write(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self.enabled:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            values = {f"{record['kind']}/{name}": record[name] for name in record if name not in ("kind", "step")}
            self.board.add(record["step"], values)


def read_records(path: Path, step: int) -> list[dict[str, Any]]:
    """The records of a run up to this step; none without the file."""
    if not step or not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    records = (json.loads(line) for line in lines if line.endswith("\n"))  # a killed writer may cut the last
    return [record for record in records if record["step"] <= step]


class _Passes(Iterable[Item]):
    def __init__(self, items: Iterable[Item], title: str, enabled: bool) -> None:
        self.items, self.title, self.enabled, self.number = items, title, enabled, 0

    def __iter__(self) -> Iterator[Item]:
        self.number += 1
        title = f"{self.title}, pass {self.number}"
        return iter(tqdm(self.items, desc=title, leave=False, disable=not self.enabled, dynamic_ncols=True))


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Losses and scores over the steps of a run, side by side, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, 2), ("train", "val"), strict=True):
        rows = [record for record in records if record["kind"] == kind]
        names = [name for name in (rows[-1] if rows else {}) if name not in ("kind", "step", "epoch", "lr")]
        for name in names:
            axes.plot(
                [row["step"] for row in rows], [row[name] for row in rows], label=name, marker="." * (kind == "val")
            )
        axes.set(xlabel="step", title="training losses" if kind == "train" else "validation")
        if kind == "val":
            axes.set_ylim(0, 1)
        if names:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
