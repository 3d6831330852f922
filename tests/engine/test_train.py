"""The loop: exact when it is resumed, divided, or joined."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine.checkpoint import CheckpointError, load_checkpoint
from detkit.engine.checks import TrainingError, check_gradient, check_losses
from detkit.engine.evaluate import evaluate_source, label_map
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.train import train_config
from detkit.evaluation.evaluator import Evaluation
from detkit.structures import Categories
from tests.engine.settings import SEPARABLE, differences, make_config, read_metrics, write_pictures

pytestmark = pytest.mark.long

# everything that is random or has a memory
EVERYTHING = (
    "train.epochs=4",
    "train.optimizer.name=adamw",
    "train.ema={decay: 0.9, warmup: 2}",
    "train.schedule.name=cosine",
    "train.warmup.iterations=3",
    "train.clip_norm=5.0",
    "loader.workers=2",
    "augment=[{name: mosaic, size: 64, probability: 0.5, until_epoch: -1}, ssd, {name: scale_jitter}, {name: mixup}]",
    "model.input.resize.train_sizes=[48, 64, 80]",
    "model.roi.dropout=0.3",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = str(tmp_path_factory.mktemp("data") / "shapes")
    shapes = {"name": "shapes", "root": root, "num_train": 8, "num_val": 4}
    return make_config(shapes, *EVERYTHING)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """The folder of four epochs without an interruption, and its last evaluation."""
    folder = tmp_path_factory.mktemp("run")
    evaluation = train_config(config, folder)
    assert evaluation
    return folder, evaluation


@pytest.fixture(scope="module")
def resumed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two epochs and, as if in another process, two more."""
    folder = tmp_path_factory.mktemp("resumed")
    train_config(config, folder, stop_after=2)
    assert load_checkpoint(folder / "last.pt")["epoch"] == 2
    torch.manual_seed(12345)
    torch.rand(10)
    train_config(config, folder, resume=True)
    return folder


def test_resuming_changes_no_bit(run: tuple[Path, Evaluation], resumed: Path) -> None:
    straight, again = (load_checkpoint(folder / "last.pt") for folder in (run[0], resumed))
    assert straight.keys() >= {"trained", "model", "optimizer", "scaler", "epoch", "step"}
    assert differences(straight, again) == []
    assert differences(straight["trained"], straight["model"]) != [], "the average should differ from the weights"


def test_resuming_writes_the_same_records(run: tuple[Path, Evaluation], resumed: Path) -> None:
    for kind in ("train", "val"):
        assert read_metrics(run[0], kind) == read_metrics(resumed, kind)
    assert [record["epoch"] for record in read_metrics(run[0], "val")] == [1, 2, 3, 4]


def test_the_best_checkpoint_is_of_the_best_epoch(run: tuple[Path, Evaluation]) -> None:
    scores = [record["mAP"] for record in read_metrics(run[0], "val")]
    best = load_checkpoint(run[0] / "best.pt")
    assert best["score"] == max(scores)
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert "optimizer" not in best


def test_a_run_folder_has_everything(run: tuple[Path, Evaluation], config: RunConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from detkit.config import load_config

    folder, _ = run
    assert load_config(folder / "config.yaml", RunConfig) == config
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.pt", "best.pt", "curves.png"} <= names
    assert not [name for name in names if name.startswith(".")], "something was left aside"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("val/mAP")] == [
        record["step"] for record in read_metrics(folder, "val")
    ]


def test_evaluating_the_last_checkpoint_gives_the_last_validation(run: tuple[Path, Evaluation]) -> None:
    folder, evaluation = run
    again, store = evaluate_source(folder, ["voc07"])
    assert again.num_detections > 0
    assert again == evaluation
    assert again.results["voc07"].metrics["mAP"] == read_metrics(folder, "val")[-1]["mAP"]
    assert len(store.detections) == 4
    from_file, _ = evaluate_source(folder / "last.pt", ["voc07"], overrides=["loader.workers=0"])
    assert from_file == replace(evaluation, notes=("changed: loader.workers=0",))


def test_the_detector_of_a_run_is_the_averaged_one(run: tuple[Path, Evaluation], config: RunConfig) -> None:
    detector, trained = load_detector(run[0])
    assert not detector.training
    assert trained == config
    assert differences(dict(detector.state_dict()), load_checkpoint(run[0] / "last.pt")["model"]) == []


def last_weights(config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    train_config(config, folder)
    weights: dict[str, torch.Tensor] = load_checkpoint(folder / "last.pt")["trained"]
    return weights


def test_two_batches_of_two_make_the_step_of_one_of_four(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4)  # one optimizer step an epoch
    train_only = ("train.epochs=3", "train.eval_every=9", *SEPARABLE)
    together = last_weights(make_config(data, "train.batch_size=4", *train_only), tmp_path / "together")
    apart = last_weights(make_config(data, "train.accumulate=2", *train_only), tmp_path / "apart")
    half = last_weights(make_config(data, "train.batch_size=2", "train.epochs=1", *SEPARABLE), tmp_path / "half")
    assert load_checkpoint(tmp_path / "apart" / "last.pt")["step"] == 3
    for name, weights in together.items():
        torch.testing.assert_close(apart[name], weights, rtol=1e-4, atol=1e-6)
    assert any((half[name] - together[name]).abs().max() > 1e-3 for name in together), "other steps should differ"


def test_the_last_group_of_an_epoch_may_be_smaller(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 6)  # three batches: groups of two and one
    weights = last_weights(make_config(data, "train.accumulate=2", "train.epochs=1"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_half_precision_on_the_cpu(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4)
    one_epoch = ("train.epochs=1", "train.eval_every=9", *SEPARABLE)
    half = last_weights(make_config(data, "train.amp=bf16", *one_epoch), tmp_path / "half")
    full = last_weights(make_config(data, *one_epoch), tmp_path / "full")
    assert all(torch.isfinite(tensor).all() and tensor.dtype == full[name].dtype for name, tensor in half.items())
    assert differences(half, full) != []
    change = max((half[name].float() - full[name].float()).abs().max().item() for name in full)
    assert change < 0.05, "the same step but for rounding"


def test_fp16_needs_cuda(tmp_path: Path) -> None:
    data = {"name": "shapes", "root": str(tmp_path / "none")}
    with pytest.raises(Exception, match="fp16 needs a CUDA device"):
        train_config(make_config(data, "train.amp=fp16"), tmp_path)
    assert not (tmp_path / "none").exists(), "refused before any data is made"


def test_a_loss_that_is_not_finite_names_the_images() -> None:
    image_ids = ["000005", "000007"]
    fine = {"a": 1.5, "b": 0.0}
    assert check_losses(fine, image_ids, 3) == fine
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(TrainingError, match=r"not finite at step 3: a 1.5, b -?(nan|inf); images: 000005, 000007;"):
            check_losses({**fine, "b": bad}, image_ids, 3)
        with pytest.raises(TrainingError, match=r"gradient is not finite at step 3: .*; images: 000005, 000007;"):
            check_gradient(bad, image_ids, 3)
    check_gradient(1e30, image_ids, 3)


def test_training_stops_when_the_loss_explodes(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 4)
    with pytest.raises(TrainingError, match=r"images: 00\d, 00\d; "):
        train_config(make_config(data, "train.optimizer.lr=1e20"), tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optimizer": None}, "holds no training state"),
        (
            {"categories": {"names": ["cat", "dog"], "ids": [1, 2]}},
            "trained on the classes cat, dog; the data has circle",
        ),
        ({"trained": {}}, "its weights do not fit this detector: Missing key"),
    ],
)
def test_resuming_from_what_does_not_fit(
    state: dict[str, Any], message: str, run: tuple[Path, Evaluation], config: RunConfig, tmp_path: Path
) -> None:
    from detkit.engine.checkpoint import save_checkpoint

    shutil.copytree(run[0], tmp_path / "run")
    saved = {**load_checkpoint(run[0] / "last.pt"), **state}
    save_checkpoint(tmp_path / "run" / "last.pt", {key: value for key, value in saved.items() if value is not None})
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match=message):
        train_config(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_detector_classes_are_mapped_to_the_data_sets_by_name() -> None:
    detector, dataset = Categories.of_names(["cat", "dog", "N/A", "bird"]), Categories.of_names(["bird", "cat"])
    assert label_map(detector, dataset).tolist() == [1, -1, -1, 0]
    with pytest.raises(Exception, match=r"does not know 1 of the data set's 2 classes \(horse\)"):
        label_map(Categories.of_names(["cat", "dog"]), Categories.of_names(["cat", "horse"]))
