"""Checkpoints of YOLOv5 and YOLOv7 as tensors alone: public names, random numbers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.yolov5 import YOLOv5Config
from detkit.engine.initialise import initialise
from detkit.engine.sources import load_detector
from detkit.structures import Categories
from detkit.weights import yolov5 as weights_v5
from detkit.weights import yolov7 as weights_v7
from tests.weights import numbered_network as published
from tests.weights.numbered_network import COCO_ANCHORS, V7_ANCHORS, Network

SIDE = 64  # px
Build = Callable[[int], Network]


def nano(classes: int) -> Network:
    return published.yolov5(1 / 3, 0.25, classes)


def run(network: Network) -> tuple[Tensor, Tensor]:
    """Pictures in [0, 255] and the predictions `[B, N, 5 + K]`, ordered by level, row, column and anchor."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE)).float()
    levels = network(images / 255)
    rows = [level.unflatten(1, (3, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in levels]
    return images, torch.cat(rows, dim=1)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Of a YOLOv5n of three classes; tests change copies."""
    network = nano(3)
    run(network)
    return network.state


def save(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("source", "build", "anchors", "count"),
    [
        ("yolov5:yolov5n", nano, COCO_ANCHORS, None),
        ("yolov5:yolov5s", lambda classes: published.yolov5(1 / 3, 0.5, classes), COCO_ANCHORS, 349),
        ("yolov5:yolov5m", lambda classes: published.yolov5(2 / 3, 0.75, classes), COCO_ANCHORS, None),
        # the published ones have `anchor_grid` too
        ("yolov7:yolov7-tiny", published.yolov7_tiny, COCO_ANCHORS, 344 - 1),
        ("yolov7:yolov7", published.yolov7, V7_ANCHORS, 566 - 1),
        pytest.param("yolov7:yolov7x", published.yolov7x, V7_ANCHORS, None, marks=pytest.mark.long),
    ],
)
@torch.no_grad()
def test_it_computes_what_the_numbered_layers_do(
    source: str, build: Build, anchors: list[Any], count: int | None, tmp_path: Path
) -> None:
    """`count` tensors are those that the training programs say they transfer, such as 349/349."""
    network = build(80)
    images, expected = run(network)
    if count is not None:
        assert len(network.state) == count
    save_file({key: tensor.clone() for key, tensor in network.state.items()}, tmp_path / "tensors.safetensors")
    detector, settings = load_detector(f"{source}:{tmp_path / 'tensors.safetensors'}")
    assert settings is None
    assert not detector.training
    assert detector.categories.names[:2] == ("person", "bicycle")
    sizes = torch.full((2, 2), SIDE)
    actual = detector.network(detector.input(images.to(torch.uint8), sizes), sizes).raw
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)
    for level, sides in enumerate(anchors):
        assert detector.head.get_buffer(f"anchors{level}").tolist() == sides  # type: ignore[operator, union-attr]


def test_every_published_size_of_yolov5_has_its_parts() -> None:
    assert list(weights_v5.SIZES) == [f"yolov5{size}" for size in "nsmlx"]
    for name, (depth, width) in weights_v5.SIZES.items():
        with torch.device("meta"):
            network = published.yolov5(depth, width, 80)
            network(torch.zeros(1, 3, SIDE, SIDE))
            own = build_detector(
                weights_v5.yolov5_config(name), Categories.of_names([str(i) for i in range(80)])
            ).state_dict()
        converted = weights_v5.convert_keys(network.state)
        assert {key: tensor.shape for key, tensor in converted.items()} == {
            key: tensor.shape for key, tensor in own.items()
        }


@torch.no_grad()
def test_folded_implicit_knowledge(tmp_path: Path) -> None:
    """As in the published files for testing, which have `m` alone."""
    network = published.yolov7_tiny(2, implicit=False)
    images, expected = run(network)
    network.state["model.77.anchor_grid"] = torch.ones(3, 1, 3, 1, 1, 2)
    file = save({"model": network.state, "epoch": -1}, tmp_path / "tiny.pt")  # type: ignore[dict-item]
    detector, _ = load_detector(f"yolov7:yolov7-tiny:{file}")
    sizes = torch.full((2, 2), SIDE)
    actual = detector.network(detector.input(images.to(torch.uint8), sizes), sizes).raw
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_own_anchors_classes_and_half_precision(tmp_path: Path) -> None:
    anchors = [[[7.5, 9], [12, 22], [25, 18]], *COCO_ANCHORS[1:]]
    network = published.yolov5(1 / 3, 0.25, 1, anchors)
    run(network)
    file = save({key: tensor.half() for key, tensor in network.state.items()}, tmp_path / "half.pt")
    detector, _ = load_detector(f"yolov5:yolov5n:{file}")
    assert detector.categories.names == ("class 0",)
    assert detector.head.get_buffer("anchors0").tolist() == anchors[0]  # type: ignore[operator, union-attr]
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
@pytest.mark.parametrize("as_source", [True, False])
def test_training_starts_from_it(state: dict[str, Tensor], prefix: str, as_source: bool, tmp_path: Path) -> None:
    """From other classes all goes over but the rows of classes; of a plain file, whose classes are not known, no
    prediction does."""
    torch.manual_seed(1)
    detector = build_detector(weights_v5.yolov5_config("yolov5n"), Categories.of_names(["cat", "dog"]))
    before = detector.state_dict()["head.predict.0.weight"].clone()
    file = save({prefix + key.removeprefix("model."): tensor for key, tensor in state.items()}, tmp_path / "v5.pt")
    transfer = initialise(detector, f"yolov5:yolov5n:{file}" if as_source else str(file))
    assert ("public weights" if as_source else "a YOLOv5") in transfer.source
    last = {f"head.predict.{level}.{part}" for level in range(3) for part in ("weight", "bias")}
    assert set(transfer.new) == (set() if as_source else last)
    assert not transfer.left_out
    after = detector.state_dict()
    assert torch.equal(after["backbone.stem.conv.weight"], state["model.0.conv.weight"])
    assert torch.equal(after["neck.bottom_up.1.merge.norm.running_var"], state["model.23.cv3.bn.running_var"])
    given, now, old = (
        weight.view(3, -1, *weight.shape[1:])
        for weight in (state["model.24.m.0.weight"], after["head.predict.0.weight"], before)
    )
    assert torch.equal(now[:, 5:], old[:, 5:])
    assert torch.equal(now[:, :5], given[:, :5] if as_source else old[:, :5])


def test_training_of_a_yolov7_starts_from_it(tmp_path: Path) -> None:
    network = published.yolov7_tiny(2)
    run(network)
    config = weights_v7.yolov7_config("yolov7-tiny", anchors=weights_v5.yolov5_config("yolov5n").head.anchors)
    detector = build_detector(config, Categories.of_names(["cat", "dog"]))
    transfer = initialise(detector, str(save(network.state, tmp_path / "tiny.pt")))
    assert "a YOLOv7" in transfer.source
    assert not transfer.new
    added = detector.head.added[2]  # type: ignore[union-attr, index]
    assert torch.equal(added, network.state["model.77.ia.2.implicit"][0])


def change(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in (state | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("yolov5:yolov5s", {}, r"not the weights of yolov5s: size mismatch for backbone\.stem\.conv\.weight"),
        ("yolov5:yolov5n", {"model.3.bn.weight": None}, r"not the weights of yolov5n: Missing key.*stage2\.0\.norm"),
        ("yolov5:yolov5n", {"model.24.anchors": None}, r"expected anchors \[3, A, 2\] in the last layer, found none"),
        ("yolov5:yolov5n", {"model.24.anchors": torch.ones(3, 5, 2)}, r"expected 5 \+ K predictions for each of 5"),
        ("yolov5:yolov5n", {"model.24.m.0.weight": None}, r"not the keys of a YOLOv5 with three levels"),
        ("yolov5:yolov5n", {"model.33.m.0.weight": torch.ones(1)}, r"found layers 0 to 33"),  # of P6
        ("yolov5:yolov5n", {"model.0.conv.conv.weight": torch.ones(1)}, r"release 5\.0 or before.*expected release 6"),
        ("yolov5:yolov5n", {"fc.weight": torch.ones(1)}, r"expected model\.0\.conv\.weight .*, found fc\.weight"),
        ("yolov7:yolov7", {}, r"not the keys of a YOLOv7: expected model\.2\.conv\.weight, found [\w.]+ there"),
    ],
)  # fmt: skip
def test_another_network(
    state: dict[str, Tensor], source: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = save(change(state, **changes), tmp_path / "v5.pt")
    with pytest.raises(UserError, match=rf"^{file}: .*{message}") as caught:
        load_detector(f"{source}:{file}")
    assert "\n" not in str(caught.value)


def test_another_yolov7(tmp_path: Path) -> None:
    network = published.yolov7_tiny(2)
    run(network)
    file = save(network.state, tmp_path / "tiny.pt")
    with pytest.raises(
        UserError, match=r"expected the layers of yolov7x, found those of yolov7-tiny; name it yolov7:yol"
    ):
        load_detector(f"yolov7:yolov7x:{file}")
    with pytest.raises(UserError, match=r"not the keys of a YOLOv5 with three levels: .* found layers 0 to 77"):
        load_detector(f"yolov5:yolov5n:{file}")
    without = {key: tensor for key, tensor in network.state.items() if not key.startswith("model.60.")}
    with pytest.raises(UserError, match=r"as many convolutions as yolov7-tiny 55, yolov7 92, yolov7x 105, found 54"):
        load_detector(f"yolov7:yolov7-tiny:{save(without, file)}")


@pytest.mark.parametrize("source", ["yolov5:yolov5n", "yolov7:yolov7"])
def test_a_fused_file(source: str, tmp_path: Path) -> None:
    file = save({"model.0.conv.weight": torch.ones(1), "model.0.conv.bias": torch.ones(1)}, tmp_path / "fused.pt")
    with pytest.raises(UserError, match=r"without batch norms: they are folded .* save its state_dict\(\) before"):
        load_detector(f"{source}:{file}")
    with pytest.raises(UserError, match="there are no tensors"):
        load_detector(f"{source}:{save({}, file)}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("yolov5:yolov5n", r"yolov5:yolov5n: expected yolov5:yolov5n:FILE .* pickled class"),
        ("yolov7:yolov7", r"yolov7:yolov7: expected yolov7:yolov7:FILE .* pickled class"),
        ("yolov5:yolov5n6:file", r"yolov5:yolov5n6: not known; known: yolov5n, yolov5s, yolov5m, yolov5l, yolov5x"),
        ("yolov7:yolov7-w6:file", r"yolov7:yolov7-w6: not known; known: yolov7-tiny, yolov7, yolov7x"),
        ("yolov5:yolov5n:none.pt", r"none\.pt: cannot read this checkpoint: No such file or directory"),
    ],
)
def test_no_such_source(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_detector(source)


class Hostile:
    """What it unpickles to is a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("hostile", [True, False])
@pytest.mark.parametrize("source", ["yolov5:yolov5n:", "yolov7:yolov7:", ""])
def test_a_pickled_class_is_refused_and_not_run(hostile: bool, source: str, tmp_path: Path) -> None:
    """In the form of the published files, a dict with the whole model; a file for `--init` too."""
    content = Hostile(tmp_path / "harm") if hostile else nn.Sequential(nn.Conv2d(1, 1, 1))
    file = tmp_path / "yolo.pt"
    torch.save({"epoch": -1, "model": content}, file)
    name = r"posix\.mkdir|nt\.mkdir" if hostile else r"torch\.nn\.modules\.\w+\.\w+, torch"
    detector = build_detector(YOLOv5Config(), Categories.of_names(["cat"]))
    with pytest.raises(UserError, match=rf"^{file}: not a .* pickled classes \(({name}).*save the tensors: ") as caught:
        load_detector(f"{source}{file}") if source else initialise(detector, str(file))
    assert "torch.save(model.float().state_dict(), 'tensors.pt')" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()
