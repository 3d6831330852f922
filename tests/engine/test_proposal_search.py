"""A detector that is given its proposals: found for training and validation, kept, and made anew for a new picture."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit import cli
from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.data.checks import DataError
from detkit.data.dataset import ImageDataset
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.shapes import ShapesConfig, read_shapes
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.engine.checkpoint import load_checkpoint, save_checkpoint
from detkit.engine.evaluate import evaluate_source
from detkit.engine.loaders import evaluation_loader
from detkit.engine.predict import predict
from detkit.engine.proposal_search import find_proposals, proposal_folder, proposal_source, proposals_for
from detkit.engine.sources import load_detector
from detkit.nn.proposals import DetectorProposalsConfig, FileProposalsConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig, selective_search
from tests.cli_support import FAST, TINY, train_tiny

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("fast_rcnn"), model=FAST)


@pytest.fixture(scope="module")
def faster(run: Path) -> Path:
    """A Faster R-CNN of the same data."""
    data = {"name": "shapes", "root": str(run.parent / "shapes"), "num_train": 6, "num_val": 3}
    return train_tiny(run.parent / "faster", model=TINY["model"], data=data)


@pytest.fixture
def dataset(run: Path) -> ImageDataset:
    return build_dataset(ShapesConfig(root=str(run.parent / "shapes"), num_train=6, num_val=3), "val")


def kept(run: Path) -> list[Path]:
    return sorted((run.parent / "shapes/proposals").rglob("*.npy"))


def test_training_finds_and_keeps_them(run: Path) -> None:
    assert len(kept(run)) == 6 + 3


def test_a_prediction_is_what_the_evaluation_found(run: Path) -> None:
    """Which made no new proposals; the prediction did, from the picture alone."""
    before = [path.stat().st_mtime_ns for path in kept(run)]
    _, store = evaluate_source(run, ["voc07"], overrides=["eval.batch_size=1"])
    assert [path.stat().st_mtime_ns for path in kept(run)] == before
    detector, config = load_detector(run)
    assert config
    dataset = read_shapes(ShapesConfig(**config.data.model_dump()), "val")
    sample = dataset.load(0)
    (found,) = predict(detector, [sample.image])
    expected = store.detections[sample.image_id]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.boxes, expected.boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def test_the_tools_know_it(run: Path, tmp_path: Path) -> None:
    picture = next((run.parent / "shapes").rglob("*.jpg"))
    words = [str(run), str(picture), "--output", str(tmp_path / "drawn"), "--score-threshold", "0"]
    assert cli.predict(words) == 0
    assert json.loads((tmp_path / "drawn/detections.json").read_text())[0]["detections"]
    assert cli.evaluate([str(run), "--protocol", "voc07"]) == 0


def test_more_epochs_resume(run: Path) -> None:
    assert cli.train(["--resume", str(run), "--set", "train.epochs=2"]) == 0


def test_a_detector_that_proposes_itself_gets_none(faster: Path, dataset: ImageDataset) -> None:
    assert proposals_for(load_detector(faster)[0], dataset, Path("nowhere"), workers=0) is None


def test_workers_change_nothing(run: Path, dataset: ImageDataset, tmp_path: Path) -> None:
    search = SelectiveSearchConfig(max_boxes=30)
    source = proposal_source(search)
    folders: list[ProposalFolder] = []
    for workers in (0, 2):
        folder = proposal_folder(source, run.parent / "shapes", tmp_path / str(workers))
        assert len(find_proposals(dataset, source, folder, workers=workers, progress=False)) == 3
        folders.append(folder)
    for index in range(3):
        one, two = (folder.load(dataset.path(index)) for folder in folders)
        assert (one == two).all()
        assert (one == selective_search(dataset.load(index).image, search)).all()


def test_a_picture_replaced_under_its_name_is_searched_again(run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(run.parent / "shapes", tmp_path / "shapes"))
    dataset = build_dataset(ShapesConfig(root=str(root), num_train=6, num_val=3), "val")
    source = proposal_source(SelectiveSearchConfig())
    folder = proposal_folder(source, root)
    assert len(find_proposals(dataset, source, folder, workers=0, progress=False)) == 3
    picture = Path(dataset.path(1))
    picture.write_bytes(picture.read_bytes() + b"more")
    assert len(find_proposals(dataset, source, folder, workers=0, progress=False)) == 1
    assert find_proposals(dataset, source, folder, workers=0, progress=False) == []


# ---- where they lie


def test_they_lie_beside_a_file_that_is_the_root(tmp_path: Path) -> None:
    """YOLO's data.yaml may be `data.root`; its folder gives the same proposals."""
    (tmp_path / "data.yaml").touch()
    source = proposal_source(SelectiveSearchConfig())
    folder = proposal_folder(source, tmp_path / "data.yaml")
    assert folder.folder.parent == tmp_path / "proposals"
    assert (folder.folder, folder.data) == (proposal_folder(source, tmp_path).folder, tmp_path)


def test_they_lie_in_the_cache_where_the_data_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    data, other, searched = (tmp_path / "read-only" / name for name in ("data", "data-2", "searched"))
    source = proposal_source(SelectiveSearchConfig())
    for folder in (data, other, searched):
        folder.mkdir(parents=True)
    before = proposal_folder(source, searched).folder
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "read-only" not in str(path) and access(path, mode))
    fallback = proposal_folder(source, data).folder
    assert fallback.is_relative_to(tmp_path / "cache/proposals")
    assert f"{data}/proposals is not writable: proposals are kept in {fallback}" in capsys.readouterr().out
    assert proposal_folder(source, other).folder != fallback
    assert proposal_folder(source, searched).folder == before, "what is there already can be read"
    assert proposal_folder(source, data, tmp_path / "mine").folder.parent == tmp_path / "mine"
    assert os.listdir(data) == []


def test_training_and_evaluation_find_those_of_the_tool(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(run.parent / "shapes", tmp_path / "shapes", ignore=shutil.ignore_patterns("proposals"))
    config, keep = str(run.parent / "tiny.yaml"), tmp_path / "stored"
    data = ["--set", f"data.root={root}"]
    for split in ("train", "val"):
        assert cli.proposals([config, *data, "--split", split, "--output", str(keep)]) == 0
    setting = f"loader.proposals={keep}"
    assert f"train and eval find them with --set {setting}\n" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in keep.rglob("*.npy")}
    assert len(times) == 6 + 3
    assert cli.train([config, *data, "--output", str(tmp_path / "run"), "--set", setting]) == 0
    assert cli.evaluate([str(tmp_path / "run"), "--protocol", "voc07"]) == 0
    assert cli.evaluate([str(run), *data, "--protocol", "voc07", "--set", setting]) == 0
    assert {path: path.stat().st_mtime_ns for path in keep.rglob("*.npy")} == times
    assert not (root / "proposals").exists()


# ---- of another detector


@torch.inference_mode()
def test_those_of_a_detector_are_its_rpns_in_original_pixels(
    faster: Path, dataset: ImageDataset, tmp_path: Path
) -> None:
    source = proposal_source(DetectorProposalsConfig(source=str(faster), max_boxes=7))
    folder = proposal_folder(source, tmp_path, tmp_path)
    find_proposals(dataset, source, folder, workers=2, progress=False)
    detector, _ = load_detector(faster)
    assert isinstance(detector, FasterRCNN)
    for index, batch in enumerate(evaluation_loader(dataset, detector, batch_size=1, workers=0)):
        (info,) = batch.infos
        assert info.scale[0] < 1, "the pictures are larger than the detector's input"
        (proposed,) = detector.rpn.propose(detector(batch).rpn).to_list(1)
        assert len(proposed) > 7
        boxes = folder.load(dataset.path(index))
        np.testing.assert_allclose(boxes, proposed[:7].numpy() / np.tile(info.scale, 2), atol=1e-3)
        assert (source.of_picture(dataset.load(index).image) == boxes).all()


def test_those_of_a_detector_with_other_weights_are_others(faster: Path, tmp_path: Path) -> None:
    def name_of(source: Path, **changes: Any) -> str:
        config = DetectorProposalsConfig(source=str(source), **changes)
        return proposal_folder(proposal_source(config), tmp_path).folder.name

    same = Path(shutil.copytree(faster, tmp_path / "same"))
    assert name_of(faster) == name_of(same)
    assert name_of(faster) != name_of(same, max_boxes=5)
    state = load_checkpoint(same / "last.pt")
    state["model"]["rpn.conv.bias"][0] += 1e-6
    save_checkpoint(same / "last.pt", state)
    assert name_of(faster) != name_of(same)
    state = load_checkpoint(faster / "last.pt")
    save_checkpoint(same / "last.pt", {**state, "config": state["config"].replace("size: 64", "size: 65")})
    assert name_of(faster) != name_of(same), "at another input size"


def test_fast_rcnn_on_those_of_a_detector(
    run: Path, faster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training, evaluation, prediction, and the tool that judges them."""
    proposals = {"name": "detector", "source": str(faster), "max_boxes": 20}
    data = {"name": "shapes", "root": str(run.parent / "shapes"), "num_train": 6, "num_val": 3}
    mine = train_tiny(tmp_path, model={**FAST, "proposals": proposals}, data=data)
    assert cli.evaluate([str(mine), "--protocol", "voc07"]) == 0
    picture = next((run.parent / "shapes").rglob("*.jpg"))
    assert cli.predict([str(mine), str(picture), "--output", str(tmp_path / "drawn")]) == 0
    capsys.readouterr()
    assert cli.proposals([str(tmp_path / "tiny.yaml"), "--split", "train"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"proposals/detector-\w{8}: all found before\nboxes an image +20\.0\n", out)
    assert cli.proposals([str(tmp_path / "tiny.yaml"), "--mode", "fast"]) == 0
    assert re.search(r"proposals/selective_search-\w{8}: \d", capsys.readouterr().out)


def test_a_detector_without_region_proposals(run: Path) -> None:
    message = "model.proposals.source: .* is a FastRCNN and has no region proposal network; name a Faster R-CNN"
    with pytest.raises(UserError, match=message):
        proposal_source(DetectorProposalsConfig(source=str(run)))
    with pytest.raises(UserError, match=r"model.proposals.source: nowhere: no such checkpoint"):
        proposal_source(DetectorProposalsConfig(source="nowhere"))


# ---- of files


def results(dataset: ImageDataset, path: Path, images: int = 3) -> FileProposalsConfig:
    """The objects themselves, each twice."""
    path.write_text(
        json.dumps(
            [
                {"image_id": dataset.image_id(index), "bbox": [*box[:2], *(box[2:] - box[:2])], "score": score}
                for index in range(images)
                for score in (0.5, 0.25)
                for box in dataset.ground_truth(index).objects.boxes.astype(float)
            ]
        )
    )
    return FileProposalsConfig(paths=(str(path),), max_boxes=100)


def test_those_of_a_file(run: Path, dataset: ImageDataset, tmp_path: Path) -> None:
    config = results(dataset, tmp_path / "a.json")
    source = proposal_source(config)
    folder = proposal_folder(source, tmp_path, tmp_path)
    assert len(find_proposals(dataset, source, folder, workers=2, progress=False)) == 3
    for index in range(3):
        objects = dataset.ground_truth(index).objects.boxes
        np.testing.assert_allclose(folder.load(dataset.path(index)), np.concatenate([objects, objects]), atol=1e-4)
    moved = FileProposalsConfig(paths=(str(shutil.copy(tmp_path / "a.json", tmp_path / "b.json")),), max_boxes=100)
    assert proposal_folder(proposal_source(moved), tmp_path, tmp_path).folder == folder.folder
    results(dataset, tmp_path / "b.json", images=2)
    changed = proposal_source(moved)
    other = proposal_folder(changed, tmp_path, tmp_path)
    assert other.folder != folder.folder
    with pytest.raises(
        DataError, match=r"model.proposals: .*b.json: no entry for 1 of 3 images of .*val.*: 'val_00002'"
    ):
        find_proposals(dataset, changed, other, workers=0, progress=False)
    one = proposal_source(FileProposalsConfig(paths=config.paths, max_boxes=1))
    few = proposal_folder(one, tmp_path, tmp_path)
    find_proposals(dataset, one, few, workers=0, progress=False)
    assert [len(few.load(dataset.path(index))) for index in range(3)] == [1, 1, 1]


def test_fast_rcnn_on_the_detections_of_another(
    run: Path, faster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `tools/eval.py --save-detections` writes for both splits; `eval` reads them, `predict` cannot."""
    lists = {"train": ["2007_train"], "val": ["2007_train", "2007_val"]}
    data = {"name": "voc", "root": str(run.parent / "shapes"), **lists, "classes": "auto"}
    options = ["--set", f"data={json.dumps(data)}", "--protocol", "voc07"]
    assert cli.evaluate([str(faster), *options, "--save-detections", str(tmp_path / "found.json")]) == 0
    proposals = {"name": "file", "paths": [str(tmp_path / "found.json")], "allow_missing": True}
    mine = train_tiny(tmp_path, model={**FAST, "proposals": proposals}, data=data)
    assert cli.evaluate([str(mine), "--protocol", "voc07"]) == 0
    picture = next((run.parent / "shapes").rglob("*.jpg"))
    capsys.readouterr()
    assert cli.predict([str(mine), str(picture), "--output", str(tmp_path / "drawn")]) == 2
    message = capsys.readouterr().err
    assert f"{picture}: model.proposals: " in message
    assert "found.json: no proposals for a new picture; tools/eval.py detects on the images of the files" in message
