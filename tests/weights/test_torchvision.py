"""torchvision's checkpoints come in whole, and nothing else does."""

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.weights.torchvision import CONFIGS, convert_keys, load_torchvision

CLASSES = [f"class {i}" for i in range(90)]
MOBILENET, RESNET = "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn"


@pytest.fixture(scope="module", params=CONFIGS)
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(name, a file such as torchvision publishes, with random weights)."""
    torch.manual_seed(0)
    theirs = getattr(detection, request.param)(weights=None, weights_backbone=None)
    path = tmp_path_factory.mktemp("public") / "weights.pth"
    torch.save(theirs.state_dict(), path)
    return request.param, path


def meta_state(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_detector(CONFIGS[name], CLASSES).state_dict()


def test_the_key_map_covers_every_key_on_both_sides(public: tuple[str, Path]) -> None:
    name, path = public
    theirs = torch.load(path, weights_only=True)
    # torchvision makes batch norms where no weights are asked for; their counters are not in frozen ones
    theirs = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    converted = convert_keys(theirs)
    assert len(converted) == len(theirs)
    ours = meta_state(name)
    assert converted.keys() == ours.keys()
    assert all(converted[key].shape == ours[key].shape for key in ours)


def test_older_checkpoints_spell_some_keys_without_a_number(public: tuple[str, Path]) -> None:
    name, path = public
    theirs = torch.load(path, weights_only=True)
    old = {
        re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.|(rpn\.head\.conv)\.0\.0\.", r"\1\2.", key): value
        for key, value in theirs.items()
    }
    number = 4 * len(CONFIGS[name].backbone.levels) + 2  # weight and bias of two convolutions a level, and of the RPN's
    assert len(old.keys() - theirs.keys()) == number
    assert convert_keys(old).keys() == convert_keys(theirs).keys()


def test_a_file_on_disk_becomes_a_detector(public: tuple[str, Path]) -> None:
    name, path = public
    detector = load_torchvision(name, path)
    assert not detector.training
    assert len(detector.class_names) == 90
    assert detector.class_names[:3] == ("person", "bicycle", "car")
    assert detector.class_names[11] == "N/A"  # COCO never used the id 12
    theirs = torch.load(path, weights_only=True)
    ours = detector.state_dict()
    assert torch.equal(ours["roi.regressor.weight"], theirs["roi_heads.box_predictor.bbox_pred.weight"])
    assert torch.equal(ours["neck.output.1.bias"], theirs["backbone.fpn.layer_blocks.1.0.bias"])
    assert torch.equal(ours["rpn.conv.weight"], theirs["rpn.head.conv.0.0.weight"])
    epsilons = {module.eps for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)}
    # torchvision: overwrite_eps(model, 0.0) for fasterrcnn_resnet50_fpn's COCO_V1 alone
    assert epsilons == ({0.0} if name == RESNET else {1e-5})


def test_weights_of_another_model_are_refused(public: tuple[str, Path]) -> None:
    name, path = public
    (other,) = set(CONFIGS) - {name}
    with pytest.raises(UserError, match=f"{path}: not the weights of {other}: "):
        load_torchvision(other, path)


def test_a_key_that_is_none_of_torchvisions() -> None:
    with pytest.raises(UserError, match=r"'head\.weight' is no key of a torchvision Faster R-CNN"):
        convert_keys({"rpn.head.cls_logits.weight": torch.zeros(1), "head.weight": torch.zeros(1)})


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=f"torchvision:fasterrcnn: not known; known: {RESNET}, {MOBILENET}"):
        load_torchvision("fasterrcnn")


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>not found</html>", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: not a torchvision checkpoint: [^\n]*$"):
        load_torchvision(MOBILENET, path)


@pytest.mark.parametrize("value", [[1], {"a": 1}, torch.zeros(3)])
def test_a_file_that_holds_something_else(value: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(value, path)
    with pytest.raises(UserError, match=f"{path}: not a torchvision checkpoint: expected a dict of tensors"):
        load_torchvision(MOBILENET, path)


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    message = r"COCO_V1: cannot download https://\S+\.pth: .*not known.*; or fetch it .* put it into"
    with pytest.raises(UserError, match=f"{message} {tmp_path}/hub/checkpoints"):
        load_torchvision(MOBILENET)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_torchvision(MOBILENET, tmp_path / "weights.pth")
