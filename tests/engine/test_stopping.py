"""When a run ends, counted by hand; what a resumed run remembers of it; and runs without a score."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from detkit.config import ConfigError, UserError
from detkit.data.build import build_dataset
from detkit.data.checks import NoValidation
from detkit.data.dataset import ImageDataset
from detkit.engine import stopping as stopping_module
from detkit.engine import train as train_module
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.evaluate import evaluate_source
from detkit.engine.log import RunLog
from detkit.engine.optim import SGDConfig
from detkit.engine.run import resumed_config, save_config
from detkit.engine.settings import TrainConfig
from detkit.engine.stopping import Stopping
from detkit.engine.train import Run, train_config
from detkit.engine.validation import Validation
from detkit.evaluation.evaluator import Evaluation, ProtocolResult
from tests.engine.settings import make_config, read_metrics, write_pictures


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 100, "batch_size": 1, "optimizer": SGDConfig(lr=0.1), **changes})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clock shows, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(stopping_module.time, "monotonic", lambda: now[0])
    return now


def stops_at(stopping: Stopping, scores: list[float]) -> int | None:
    """The validation, from 1, after which the run ends."""
    for epoch, score in enumerate(scores, 1):
        stopping.is_best(score)
        if stopping.reason(epoch):
            return epoch
    return None


@pytest.mark.parametrize(
    ("patience", "scores", "end"),
    [
        (2, [0.1, 0.2, 0.2, 0.1, 0.9], 4),  # an equal score is no better one
        (2, [0.1, 0.0, 0.2, 0.1, 0.3, 0.2], None),
        (1, [0.3, 0.2], 2),
        (1, [0.0, 0.0], 2),
        (3, [0.3, 0.2, 0.1], None),
        (None, [0.3, 0.2, 0.1, 0.0, 0.0], None),
    ],
)
def test_the_run_ends_after_so_many_validations_without_a_better_score(
    patience: int | None, scores: list[float], end: int | None
) -> None:
    assert stops_at(Stopping(settings(patience=patience)), scores) == end


def test_the_best_of_scores_that_cannot_be_measured_is_the_last() -> None:
    stopping = Stopping(settings())
    assert [stopping.is_best(score) for score in (math.nan, math.nan, 0.0, math.nan, 0.1, 0.1)] == [
        *(True, True, True),
        *(False, True, False),
    ]


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_remembers_how_long_it_has_waited(every: int) -> None:
    """Best at the second validation of four."""
    resumed = Stopping(settings(patience=3, eval_every=every))
    resumed.resume({"score": 0.5, "epoch": 2 * every}, 4 * every, 0.0)
    assert (resumed.best, resumed.stale) == (0.5, 2)
    assert resumed.reason(4 * every) is None
    resumed.is_best(0.4)
    assert "no score above 0.5000 in 3 validations; raise train.patience" in str(resumed.reason(5 * every))


def test_a_resumed_run_without_a_score_takes_any() -> None:
    for best in (None, {"score": math.nan, "epoch": 1}):
        resumed = Stopping(settings())
        resumed.resume(best, 1, 0.0)
        assert resumed.is_best(0.0)


def test_the_time_of_all_sessions_counts(clock: list[float]) -> None:
    stopping = Stopping(settings(max_minutes=2))
    clock[0] += 60
    assert stopping.reason(1) is None
    assert stopping.elapsed == 0.5
    resumed = Stopping(settings(max_minutes=2))
    clock[0] += 3600  # between the sessions
    resumed.resume(None, 1, stopping.minutes - 60)
    assert resumed.reason(1) is None
    clock[0] += 60
    assert "2 minutes are over in epoch 1; raise train.max_minutes" in str(resumed.reason(1))


def test_a_run_without_a_limit_has_no_time_in_its_checkpoint(clock: list[float]) -> None:
    stopping = Stopping(settings())
    clock[0] += 1e6
    assert stopping.reason(1) is None
    assert (stopping.elapsed, stopping.minutes) == (0.0, 0.0)


def test_what_ends_a_run_may_change_when_it_is_resumed(tmp_path: Path) -> None:
    data = {"name": "shapes", "root": str(tmp_path)}
    save_config(tmp_path, make_config(data, "train.patience=2", "train.max_minutes=3"))
    longer = make_config(data, "train.patience=5", "train.max_minutes=null")
    assert resumed_config(tmp_path, longer) == longer
    with pytest.raises(ConfigError, match=r"train.freeze: the run has \[\], asked for \['neck'\]"):
        resumed_config(tmp_path, make_config(data, "train.freeze=[neck]"))


# --- whole runs ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pictures(tmp_path_factory.mktemp("data"), 4)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Epochs of one step that trains nothing, and validations that give `scores`."""

    def step(run: Run) -> None:
        run.epoch, run.step = run.epoch + 1, run.step + 1

    def measure(*arguments: object) -> Evaluation:
        return Evaluation({"voc07": ProtocolResult("", "mAP", {"mAP": scores.pop(0)}, {})}, 4, 0, {}, 0)

    monkeypatch.setattr(Run, "train_epoch", step)
    monkeypatch.setattr(Validation, "measure", measure)


@pytest.mark.long
def test_patience_ends_a_run_and_more_of_it_goes_on(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, [0.2, 0.3, 0.1, 0.3])
    config = make_config(data, "train.epochs=9", "train.patience=1")
    assert train_config(config, tmp_path)
    assert [record["epoch"] for record in read_metrics(tmp_path, "val")] == [1, 2, 3]
    assert "ended early: no score above 0.3000 in 1 validation; raise" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 2
    assert train_config(config, tmp_path, resume=True) is None, "nothing is left to do"
    assert "raise train.patience to go on" in capsys.readouterr().out
    train_config(make_config(data, "train.epochs=9", "train.patience=2"), tmp_path, resume=True)
    assert [record["epoch"] for record in read_metrics(tmp_path, "val")] == [1, 2, 3, 4]


@pytest.mark.long
def test_an_interrupted_run_with_patience_ends_where_an_uninterrupted_one_does(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.3, 0.1, 0.1])
    config = make_config(data, "train.epochs=9", "train.patience=2")
    train_config(config, tmp_path, stop_after=2)
    train_config(config, tmp_path, resume=True)
    assert [record["epoch"] for record in read_metrics(tmp_path, "val")] == [1, 2, 3]


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_the_time_ends_an_epoch_at_a_step_and_the_schedule_with_it(
    workers: int, data: dict[str, Any], tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 20 s: the third of four ends the minute, and the cosine."""
    step = Run.optimizer_step

    def slow(self: Any, *arguments: Any) -> None:
        clock[0] += 20
        step(self, *arguments)

    monkeypatch.setattr(Run, "optimizer_step", slow)
    monkeypatch.setattr(train_module, "RunLog", partial(RunLog, log_every=1))
    changes = ("train.epochs=50", "train.batch_size=1", f"loader.workers={workers}", "train.schedule.name=cosine")
    config = make_config(data, *changes, "train.max_minutes=1")
    assert train_config(config, tmp_path), "it is measured at the end"
    records = read_metrics(tmp_path, "train")
    assert [record["step"] for record in records] == [1, 2, 3]
    expected = [0.01 * (1 + math.cos(math.pi * part)) / 2 for part in (1 / 3, 2 / 3, 1)]
    assert [record["lr"] for record in records] == pytest.approx(expected, abs=1e-9)
    state = load_checkpoint(tmp_path / "last.pt")
    assert (state["epoch"], state["step"], state["minutes"], state["finished"]) == (1, 3, 1.0, True)
    clock[0] += 3600
    assert train_config(config, tmp_path, resume=True) is None
    longer = make_config(data, *changes, "train.max_minutes=1.2")
    train_config(longer, tmp_path, resume=True)
    assert read_metrics(tmp_path, "train")[-1]["step"] == 4


def without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: Any, split: Any, **options: Any) -> ImageDataset:
        if split == "val":
            raise NoValidation("data.val: none")
        return build_dataset(config, split, **options)

    monkeypatch.setattr(train_module, "build_dataset", build)


@pytest.mark.long
def test_training_without_validation_data_keeps_the_last_checkpoint(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_validation(monkeypatch)
    config = make_config(data)
    assert train_config(config, tmp_path, stop_after=1) is None
    assert train_config(config, tmp_path, resume=True) is None
    text = capsys.readouterr().out
    assert "no validation data: nothing is measured; last.pt is the result" in text
    assert "batch 2 x accumulate 1 x processes 1 = 2 images a step" in text
    assert text.count("one after the other; the") == 2, "images a second, once in each session"
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 2
    assert not (tmp_path / "best.pt").exists()
    assert evaluate_source(tmp_path, ["voc07"])[0].num_images == 4, "its data have a validation split after all"


def test_patience_needs_a_score(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = make_config({**data, "val": ["2007_none"]}, "train.patience=2")
    (Path(data["root"]) / "VOC2007/ImageSets/Main/none.txt").write_text("bare\n")
    write_bare_picture(Path(data["root"]))
    with pytest.raises(UserError, match=r"train.patience: .*none\) has no object to measure, so there is no score"):
        train_config(nothing, tmp_path / "a")
    without_validation(monkeypatch)
    with pytest.raises(UserError, match=r"train.patience: there are no validation data, so there is no score"):
        train_config(make_config(data, "train.patience=2"), tmp_path / "b")
    assert not list(tmp_path.iterdir()), "refused before anything is written"


def write_bare_picture(root: Path) -> None:
    from PIL import Image

    Image.new("RGB", (96, 64)).save(root / "VOC2007/JPEGImages/bare.jpg")
    size = "<size><width>96</width><height>64</height><depth>3</depth></size>"
    (root / "VOC2007/Annotations/bare.xml").write_text(f"<annotation><filename>bare.jpg</filename>{size}</annotation>")


@pytest.mark.long
def test_a_validation_without_objects_keeps_the_last_as_the_best(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bare_picture(Path(data["root"]))
    (Path(data["root"]) / "VOC2007/ImageSets/Main/none.txt").write_text("bare\n")
    config = make_config({**data, "val": ["2007_none"]}, "train.batch_size=4")
    evaluation = train_config(config, tmp_path, stop_after=1)
    assert evaluation
    assert math.isnan(evaluation.results["voc07"].score)
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 1
    train_config(config, tmp_path, resume=True)
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 2
    assert "epoch 2/2: voc07 mAP unknown, there is no object to measure" in capsys.readouterr().out
    evaluate_source(tmp_path / "best.pt", ["voc07"])


@pytest.mark.long
def test_whole_minutes_pass_in_reality(data: dict[str, Any], tmp_path: Path) -> None:
    start = time.monotonic()
    train_config(make_config(data, "train.epochs=10000", "train.max_minutes=0.02", "train.eval_every=10000"), tmp_path)
    assert 1.2 <= time.monotonic() - start < 30
    assert load_checkpoint(tmp_path / "last.pt")["minutes"] >= 0.02
