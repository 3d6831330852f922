"""A detector that is given its proposals: found for training and validation, kept, and made anew for a new picture."""

import json
from pathlib import Path

import pytest
import torch

from detkit import cli
from detkit.data.proposals import ProposalFolder
from detkit.data.shapes import ShapesConfig, read_shapes
from detkit.engine.evaluate import evaluate_source
from detkit.engine.predict import predict
from detkit.engine.proposals import find_proposals, proposal_folder, proposals_for
from detkit.engine.run import load_detector
from detkit.nn.proposals.selective_search import SelectiveSearchConfig, selective_search
from tests.cli_support import TINY, train_tiny

FAST = {
    "name": "fast_rcnn",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "levels": [4]},
    "roi": {"hidden": [16], "dropout": 0.0, "batch_size_per_image": 16, "score_threshold": 0.01},
    "proposals": {"min_side": 8, "max_boxes": 60},
    "input": {"resize": {"name": "short_side", "size": 64, "max_size": 96}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("fast_rcnn"), model=FAST)


def kept(run: Path) -> list[Path]:
    return sorted((run.parent / "shapes/proposals").rglob("*.npy"))


def test_training_finds_and_keeps_them(run: Path) -> None:
    assert len(kept(run)) == 6 + 3


def test_a_prediction_is_what_the_evaluation_found(run: Path) -> None:
    """Which made no new proposals; the prediction did, from the picture alone."""
    before = [path.stat().st_mtime_ns for path in kept(run)]
    _, evaluator = evaluate_source(run, ["voc07"], overrides=["eval.batch_size=1"])
    assert [path.stat().st_mtime_ns for path in kept(run)] == before
    detector, config = load_detector(run)
    assert config
    dataset = read_shapes(ShapesConfig(**config.data.model_dump()), "val")
    sample = dataset.load(0)
    (found,) = predict(detector, [sample.image])
    expected = evaluator.detections[sample.image_id]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.boxes, expected.boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def test_the_tools_know_it(run: Path, tmp_path: Path) -> None:
    picture = next((run.parent / "shapes").rglob("*.jpg"))
    assert cli.predict([str(run), str(picture), "--output", str(tmp_path / "drawn")]) == 0
    assert json.loads((tmp_path / "drawn/detections.json").read_text())[0]["detections"]
    assert cli.evaluate([str(run), "--protocol", "voc07"]) == 0


def test_more_epochs_resume(run: Path) -> None:
    assert cli.train(["--resume", str(run), "--set", "train.epochs=2"]) == 0


def test_a_detector_that_proposes_itself_gets_none(run: Path) -> None:
    dataset = read_shapes(ShapesConfig(root=str(run.parent / "shapes"), num_train=6, num_val=3), "val")
    faster, _ = load_detector(train_tiny(run.parent / "faster", model=TINY["model"]))
    assert proposals_for(faster, dataset, str(run.parent / "shapes"), workers=0) is None


def test_workers_change_nothing(run: Path, tmp_path: Path) -> None:
    dataset = read_shapes(ShapesConfig(root=str(run.parent / "shapes"), num_train=6, num_val=3), "val")
    search = SelectiveSearchConfig(max_boxes=30)
    folders: list[ProposalFolder] = []
    for workers in (0, 2):
        folder = proposal_folder(search, run.parent / "shapes", tmp_path / str(workers))
        assert len(find_proposals(dataset, search, folder, workers=workers, progress=False)) == 3
        folders.append(folder)
    for index in range(3):
        one, two = (folder.load(dataset.path(index)) for folder in folders)
        assert (one == two).all()
        assert (one == selective_search(dataset.load(index).image, search)).all()
