"""A file that was exported detects what its detector does, whatever runs it; and no file surprises the user."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import detkit
from detkit.config import UserError
from detkit.data.collate import collate
from detkit.detectors.detector import Detector
from detkit.engine.predict import predict
from detkit.engine.sources import check_source, load_detector, read_weights
from detkit.export.graph import DETECTIONS, Whole
from detkit.export.metadata import KEY
from detkit.export.program import Form
from detkit.export.runtime import load_exported, open_runner
from detkit.nn.selection import DetectionRows
from detkit.structures import ImageInfo, Objects, Sample
from tests.export.detectors import (
    Cells,
    Parts,
    Proposed,
    RandomProposals,
    assert_same,
    assert_same_predictions,
    random_pictures,
    write_exported,
)

SIZES = ((50, 70), (90, 40), (64, 64), (33, 97), (20, 20), (8, 31), (61, 80))
Exported = Callable[..., Path]


# ---- the same detections


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_a_letterbox_of_any_batch(exported: Exported, suffix: str, batch: int) -> None:
    detector = load_exported(exported(suffix, "letterbox"), trusted=True)
    assert_same_predictions(detector, Cells("letterbox"), random_pictures(*SIZES[:batch]))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_canvas_of_any_size(exported: Exported, batch: int) -> None:
    for start in range(7 - batch + 1):
        pictures = random_pictures(*SIZES[start : start + batch])
        assert_same_predictions(load_exported(exported(".onnx", "short_side")), Cells("short_side"), pictures)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_a_batch_that_is_fixed_is_filled_and_cut(exported: Exported, batch: int) -> None:
    detector = load_exported(exported(".onnx", "stretch", batch=2))
    assert_same_predictions(detector, Cells(), random_pictures(*SIZES[:batch]))


@pytest.mark.parametrize(("rule", "form"), [("letterbox", {}), ("stretch", {"batch": 2})])
@torch.inference_mode()
def test_a_file_that_resizes_takes_pictures_of_several_sizes_at_once(
    exported: Exported, rule: str, form: dict[str, int]
) -> None:
    pictures = random_pictures((50, 70), (90, 40), (50, 70), (20, 20), (50, 70), (90, 40))
    detector = Cells(rule)
    module = Whole(detector, "resize")
    found = predict(load_exported(exported(".onnx", rule, pictures="resize", **form)), pictures)
    for index, picture in enumerate(pictures):
        rows = module(torch.from_numpy(picture).permute(2, 0, 1)[None])
        info = ImageInfo(index, (99, 99), (99, 99), (1.0, 1.0))
        (alone,) = DetectionRows(*(rows[name] for name in DETECTIONS)).to_detections([info], detector.categories)
        assert len(alone) > 3
        assert_same(found[index], alone)


@pytest.mark.parametrize(("suffix", "rule"), [(".onnx", "short_side"), (".pt2", "letterbox"), (".xml", "letterbox")])
def test_masks_and_keypoints_are_those_of_the_detector(suffix: str, rule: str, tmp_path: Path) -> None:
    detector = Parts(rule)
    file = load_exported(write_exported(detector, tmp_path / f"model{suffix}"), trusted=True)
    assert file.columns == ("masks", "keypoints")
    assert file.categories.keypoints == detector.categories.keypoints
    assert_same_predictions(file, detector, random_pictures((50, 70), (90, 40)))


def test_masks_and_keypoints_of_a_file_that_resizes(tmp_path: Path) -> None:
    """Pictures of the size of the input, and their copies twice as large."""
    detector = Parts("letterbox")
    file = load_exported(write_exported(detector, tmp_path / "model.onnx", Form("resize")))
    pictures = random_pictures((64, 64), (40, 64))
    assert_same_predictions(file, detector, pictures)
    for small, large in zip(pictures, (picture.repeat(2, 0).repeat(2, 1) for picture in pictures), strict=True):
        one, other = (predict(file, [picture])[0] for picture in (small, large))
        assert one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(2 * one.keypoints[..., :2], other.keypoints[..., :2], rtol=0, atol=0.01)


def test_images_with_different_numbers_of_proposals_and_with_none(tmp_path: Path) -> None:
    detector = Proposed("letterbox")
    file = load_exported(write_exported(detector, tmp_path / "model.onnx"))
    assert file.proposals == Proposed.proposals
    high, low, wide = random_pictures((90, 40), (30, 30), (20, 50))
    for images in ([high], [wide], [wide, low, high], [wide, wide]):
        found, expected = (predict(each, images, RandomProposals()) for each in (file, detector))
        for one, other, image in zip(found, expected, images, strict=True):
            assert (len(other) == 0) == (image is wide)
            assert_same(one, other)


def test_outputs_beyond_the_count_are_zero(exported: Exported) -> None:
    runner, _ = open_runner(exported(".onnx", "short_side"))
    size = np.array([[8, 16]])
    outputs = runner({"images": np.zeros((1, 3, 8, 16), np.uint8), "sizes": size, "original_sizes": size})
    (count,) = outputs["counts"]
    assert 0 < count < 20
    for name in ("boxes", "scores", "labels"):
        assert not outputs[name][0, count:].any()
        assert outputs[name].shape[:2] == (1, 20)


def test_it_is_a_source_like_any_other(exported: Exported, tmp_path: Path) -> None:
    (picture,) = random_pictures((50, 70))
    (expected,) = predict(Cells("letterbox"), [picture])
    for suffix in (".onnx", ".xml"):
        path = exported(suffix, "letterbox")
        detector, config = load_detector(path)
        assert config is None
        assert not detector.training
        assert_same(detkit.predict(detkit.load(path), picture)[0], expected)
        assert_same(detkit.predict(str(path), [picture])[0], expected)
    upper = Path(shutil.copy(exported(".onnx", "letterbox"), tmp_path / "MODEL.ONNX"))
    assert_same(detkit.predict(upper, picture)[0], expected)


# ---- what it cannot do


def test_a_picture_that_is_larger_than_the_file_takes(exported: Exported) -> None:
    detector = load_exported(exported(".onnx", "keep", canvas=(48, 64)))
    assert_same_predictions(detector, Cells("keep"), random_pictures((48, 64)))
    assert len(predict(detector, random_pictures((20, 64)))[0]) > 3
    for size, canvas in (((49, 64), "56x64"), ((20, 70), "24x72")):
        words = f"but the file takes those of at most 48 x 64; export the detector with --size {canvas}"
        with pytest.raises(UserError, match=words):
            predict(detector, random_pictures(size))


def test_a_file_that_resizes_pictures_of_one_size_takes_no_other(exported: Exported) -> None:
    """What fills up a smaller one would be resized with it."""
    detector = load_exported(exported(".onnx", "stretch", pictures="resize", canvas=(48, 64)))
    assert_same_predictions(detector, Cells("stretch"), random_pictures((48, 64)))
    with pytest.raises(UserError, match=r"a picture is 40 x 64 px \(h x w\), but the file takes those of 48 x 64;"):
        predict(detector, random_pictures((40, 64)))


def test_it_has_neither_weights_nor_losses(exported: Exported) -> None:
    path = exported(".onnx", "letterbox")
    detector = load_exported(path)
    assert not list(detector.parameters())
    with pytest.raises(UserError, match="an exported file cannot be trained; train the run that it was exported from"):
        detector.criterion(detector(_batch(detector)), ())
    with pytest.raises(UserError, match="it has no network of its own"):
        detector.network(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
    message = f"{path}: an exported file has no weights to start from; name the run that it was exported from"
    for refuse in (lambda: check_source(str(path)), lambda: read_weights(str(path), Cells())):
        with pytest.raises(UserError) as error:
            refuse()
        assert str(error.value) == message


def _batch(detector: Detector[Any]) -> Any:
    info = detector.input.place(0, (64, 64))
    sample = Sample(random_pictures((64, 64))[0], Objects.empty(), 0)
    return collate([(sample, info)], detector.input.stride, with_targets=False)


# ---- files that are none


def refusal(path: Path) -> str:
    """The one line about a file that cannot be loaded, even if it is trusted."""
    with pytest.raises(UserError) as error:
        load_exported(path, trusted=True)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


DAMAGED = "not a file that can be run: it is damaged, cut short, or of another kind"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.5, 0.75, 0.999])
def test_a_file_that_is_cut_short(
    exported: Exported, tmp_path: Path, suffix: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = exported(suffix, "letterbox")
    path = tmp_path / whole.name
    path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    if suffix == ".xml":
        shutil.copy(whole.with_suffix(".bin"), path.with_suffix(".bin"))
    assert refusal(path) == DAMAGED
    if suffix != ".pt2":  # only a program that trusts the file comes so far, and torch tells it more
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.999])
def test_an_openvino_file_without_all_of_its_weights(exported: Exported, tmp_path: Path, share: float | None) -> None:
    whole = exported(".xml", "letterbox")
    path = Path(shutil.copy(whole, tmp_path))
    if share is not None:
        weights = whole.with_suffix(".bin").read_bytes()
        path.with_suffix(".bin").write_bytes(weights[: int(share * len(weights))])
    assert refusal(path) == DAMAGED


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize("content", [b"", b"hello", b"<annotation><size/></annotation>", b"PK\x03\x04", bytes(999)])
def test_a_file_of_another_kind(tmp_path: Path, suffix: str, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert refusal(path) == DAMAGED
    if suffix != ".pt2":
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_a_file_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    assert refusal(tmp_path / f"model{suffix}") == "no such file"
    (tmp_path / f"folder{suffix}").mkdir()
    assert refusal(tmp_path / f"folder{suffix}") == "no such file"
    with pytest.raises(UserError, match=rf"folder{suffix}/last.pt: no such checkpoint"):
        load_detector(tmp_path / f"folder{suffix}")


def write_bare(path: Path, metadata: dict[str, str]) -> None:
    """A model of ONNX that is none of detkit's: y = 2x."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "bare", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def test_a_model_that_is_not_detkits(tmp_path: Path) -> None:
    import openvino

    path = tmp_path / "bare.onnx"
    write_bare(path, {"author": "somebody"})
    assert refusal(path) == "not a file that detkit exported: it has no metadata under 'detkit'; see `detkit export`"
    openvino.save_model(openvino.Core().read_model(path), path.with_suffix(".xml"))
    assert refusal(path.with_suffix(".xml")).startswith("not a file that detkit exported")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path.with_suffix(".pt2"))
    assert refusal(path.with_suffix(".pt2")).startswith("not a file that detkit exported")


def test_metadata_that_are_of_another_version_or_not_of_this_model(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    metadata = open_runner(exported(".onnx", "letterbox"))[1]
    write_bare(path, {KEY: metadata.to_text().replace("detkit export 1", "detkit export 2")})
    assert refusal(path).startswith("its metadata are not those of this version of detkit (1 difference, the first at")
    write_bare(path, {KEY: metadata.to_text()})
    assert (
        refusal(path) == f"its outputs are y, but its metadata name {', '.join(DETECTIONS)}; export the detector again"
    )


def test_a_raw_file_is_no_detector(exported: Exported) -> None:
    path = exported(".onnx", "short_side", raw=True)
    assert refusal(path) == "was exported with --raw and gives no detections; export the detector without it"


# ---- files of strangers


class Harmful:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def poison(source: Path, path: Path, harm: Path) -> None:
    """A copy of a torch.export file one of whose weights is a pickle that creates the folder `harm`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model_weights_config.json"):
                tree = json.loads(content)
                first = next(iter(tree["config"].values()))
                first["use_pickle"] = True
                weight = first["path_name"]
                content = json.dumps(tree).encode()
            new.writestr(name, content)
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in contents.items():
            new.writestr(name, pickle.dumps(Harmful(harm)) if name.endswith(f"/{weight}") else content)


def test_a_torch_export_file_is_not_loaded_unless_it_is_trusted(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    poison(exported(".pt2", "letterbox"), path, tmp_path / "harm")
    for load in (load_detector, load_exported, detkit.load):
        with pytest.raises(UserError, match=r"model.pt2: not loaded, as torch.export.load runs any code") as error:
            load(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()
    with pytest.raises(UserError):  # it is a warning of something real: torch obeys
        load_exported(path, trusted=True)
    assert (tmp_path / "harm").exists()


def test_a_signal_after_openvino_does_not_end_the_process(exported: Exported, tmp_path: Path) -> None:
    """Of two models that live at a time, OpenVINO leaves the stack for signals of the first to the thread, freed."""
    path = exported(".xml", "letterbox")
    (tmp_path / "run.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from detkit.export.runtime import OpenVinoRunner\n"
        f"runners = [OpenVinoRunner(Path({str(path)!r})) for _ in range(2)]\n"
        "del runners[0]\n"
        "del runners[0]\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr[-2000:]
