"""Readers of weights: darknet's, detkit's own, files of tensors, Hugging Face's and exported ones."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch

from detkit.config import to_yaml
from detkit.engine.checkpoint import save_checkpoint
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector, read_weights
from detkit.export.metadata import KEY
from detkit.export.runtime import load_exported
from detkit.nn.backbones.darknet_weights import load_darknet_weights
from detkit.weights.darknet import load_darknet
from detkit.weights.darknet_cfg import read_cfg
from detkit.weights.darknet_network import build_network
from detkit.weights.hugging_face import FAMILIES, load_hugging_face
from tests.cli_support import TINY
from tests.export.conftest import SSD
from tests.export.detectors import Cells, write_exported
from tests.fuzz.harness import Target
from tests.fuzz.trees import as_json, change_tree, from_trees

# ---- darknet

CFG = b"""[net]
width=16
height=16
channels=3
[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
filters=8
size=1
activation=linear
[yolo]
anchors=4,4, 8,8
mask=0
num=2
classes=3
[route]
layers=-4,0
groups=2
group_id=1
[shortcut]
from=-1
activation=linear
[upsample]
stride=2
"""
OLDER = b"""[net]
width=16
height=16
[local]
filters=2
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[connected]
output=32
activation=linear
[detection]
classes=3
side=2
num=1
sqrt=1
softmax=1
"""
REGION = b"""[net]
width=16
height=16
[convolutional]
filters=8
size=1
activation=linear
[dropout]
[region]
anchors=1,1
num=1
classes=3
softmax=1
"""
CFG_WORDS = (
    *(b"[net]", b"[convolutional]", b"[yolo]", b"[route]", b"[shortcut]", b"[connected]", b"[local]", b"[upsample]"),
    *(b"[region]", b"[detection]", b"[reorg]", b"[softmax]", b"[maxpool]", b"filters", b"size", b"stride", b"pad"),
    *(b"groups", b"layers", b"from", b"anchors", b"mask", b"num", b"classes", b"output", b"activation", b"width"),
    *(b"height", b"=", b",", b"leaky", b"mish", b"linear", b"coords", b"side", b"group_id", b"scale_x_y", b"#", b";"),
)
HEADER = struct.pack("<3iq", 0, 2, 5, 0)


def darknet_folder(folder: Path) -> tuple[Path, bytes]:
    """The `.cfg` of a network of 120 floats, and its `.weights`; beside them the names of three classes."""
    (folder / "names").write_text("a\nb\nc\n")
    (folder / "model.cfg").write_bytes(CFG)
    floats = np.random.default_rng(0).uniform(0.1, 1, 4 * 4 + 4 * 27 + 8 + 8 * 4).astype("<f4")
    (folder / "model.weights").write_bytes(HEADER + floats.tobytes())
    return folder / "model.cfg", HEADER + floats.tobytes()


def darknet_cfg(folder: Path) -> Target:
    """With as many weights as the network has, if these are few."""
    weights = darknet_folder(folder)[0].with_suffix(".weights")

    def read(path: Path) -> object:
        state = build_network(read_cfg(path)).state_dict()
        floats = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
        if floats <= 100_000:
            weights.write_bytes(HEADER + bytes(4 * floats))
        return load_darknet(path, weights, folder / "names").categories

    return Target("darknet_cfg", (CFG, OLDER, REGION), read, ".cfg", CFG_WORDS)


def darknet_weights(folder: Path) -> Target:
    cfg, content = darknet_folder(folder)
    older = struct.pack("<4i", 0, 1, 0, 0) + content[20:]
    layers = load_darknet(cfg, names=folder / "names").darknet.weighted_layers()

    def read(path: Path) -> None:
        load_darknet_weights(path, layers, allow_rest=path.stat().st_size % 2 == 1)

    return Target("darknet_weights", (content, older), read, ".weights")


# ---- detkit's own

RUN: dict[str, Any] = {**TINY, "model": SSD, "data": {"name": "shapes", "root": "shapes"}}


def state_of_run() -> dict[str, Any]:
    from detkit.config import parse_config
    from detkit.detectors.build import build_detector
    from detkit.structures import Categories

    torch.manual_seed(0)
    categories = Categories.of_names(["dog", "cat"])
    detector = build_detector(parse_config(RUN, RunConfig).model, categories)
    plain = {**categories.to_plain()}
    return {"config": to_yaml(RUN), "model": detector.state_dict(), "categories": plain, "epoch": 1, "images_seen": 3}


CHECKPOINT_WORDS = (b"config", b"model", b"categories", b"names", b"ids", b"keypoints", b"class_names", b"format")


def change_state(rng: Random, state: dict[str, Any]) -> dict[str, Any]:
    """The plain parts of a checkpoint changed, its configuration, or one of its tensors."""
    names = [word.decode() for word in CHECKPOINT_WORDS]
    part = rng.randrange(4)
    if part == 0:
        plain = {key: value for key, value in state.items() if key != "model"}
        changed = change_tree(rng, plain, names)
        return {"model": state["model"], **changed} if isinstance(changed, dict) else {"model": changed}
    if part == 1:
        return {**state, "config": to_yaml(change_tree(rng, RUN, names))}
    if part == 2:
        return {**state, "categories": change_tree(rng, {**state["categories"], "keypoints": KEYPOINTS}, names)}
    return {**state, "model": change_tensors(rng, state["model"])}


KEYPOINTS = {"names": ["a", "b"], "flip_pairs": [[0, 1]], "skeleton": [[0, 1]], "sigmas": [0.1, 0.1]}
DTYPES = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.bfloat16)


def change_tensors(rng: Random, tensors: dict[str, Any]) -> dict[str, Any]:
    """One more, one less, or one with another name, type, shape or value."""
    changed = dict(tensors)
    name = rng.choice(list(changed))
    tensor = changed.pop(name)
    match rng.randrange(7):
        case 0:
            changed[rng.choice(["", "x", "model.0.conv.weight", "backbone." + name, name[:-1]])] = tensor
        case 1:
            changed[name] = tensor.to(rng.choice(DTYPES))
        case 2:
            changed[name] = tensor.reshape(-1)[: rng.randrange(3)]
        case 3:
            changed[name] = tensor * rng.choice((float("nan"), float("inf"), 0))
        case 4:
            changed[name] = tensor[None]
        case 5:
            changed[name] = torch.tensor(3.0)
    return changed


def archive(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def checkpoint(folder: Path) -> Target:
    state = state_of_run()
    save_checkpoint(folder / "seed.pt", state)

    def read(path: Path) -> object:
        return load_detector(path)[0].categories

    def repair(rng: Random, _: bytes) -> bytes:
        return archive({"format": "detkit checkpoint 1", **change_state(rng, state)})

    return Target("checkpoint", ((folder / "seed.pt").read_bytes(),), read, ".pt", repair=repair)


# ---- tensors alone


def tensors(folder: Path, name: str, suffix: str, write: Callable[[dict[str, Any]], bytes]) -> Target:
    """What a detector can start from, with and without its own names."""
    save_checkpoint(folder / "detector.pt", state_of_run())
    detector = load_detector(folder / "detector.pt")[0]
    own = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    seeds = [write(own), write({"weight": torch.arange(6.0).reshape(2, 3)})]

    def read(path: Path) -> object:
        return read_weights(str(path), detector).reading

    return Target(name, seeds, read, suffix, repair=lambda rng, _: write(change_tensors(rng, own)))


def safetensors_file(folder: Path) -> Target:
    return tensors(folder, "safetensors_file", ".safetensors", write_tensors)


def pth_file(folder: Path) -> Target:
    return tensors(folder, "pth_file", ".pth", archive)


def write_tensors(content: dict[str, Any]) -> bytes:
    return bytes(safetensors.torch.save({key: tensor.contiguous() for key, tensor in content.items()}))


# ---- Hugging Face


class _Read(Exception):
    """The configuration is understood, and no detector need be built."""


def _stop(config: Any) -> Any:
    raise _Read


def hugging_face_trees() -> list[dict[str, Any]]:
    import transformers

    names = ("Detr", "DeformableDetr", "ConditionalDetr", "DabDetr", "RTDetr", "RTDetrV2", "DFine", "LwDetr", "RfDetr")
    trees = []
    for name in names:
        config = getattr(transformers, f"{name}Config")()
        if name == "RfDetr":
            config.backbone_config.image_size = 560  # its default, 518, is no multiple of what it has to be
        tree = json.loads(config.to_json_string(use_diff=False))
        trees.append({**tree, "id2label": {"0": "cat", "1": "dog"}})
    assert {tree["model_type"] for tree in trees} == set(FAMILIES)
    return trees


PREPROCESSOR: dict[str, Any] = {
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
}


def hugging_face(folder: Path) -> Target:
    """config.json, or preprocessor_config.json beside a good one."""
    trees = hugging_face_trees()
    model = folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(write_tensors({"weight": torch.zeros(2)}))
    words = sorted({key.encode() for tree in trees for key in tree})

    def read(path: Path) -> object:
        is_config = b"image_mean" not in path.read_bytes()
        (model / "config.json").write_bytes(as_json(trees[0]))
        (model / "preprocessor_config.json").write_bytes(as_json(PREPROCESSOR))
        shutil.copyfile(path, model / ("config.json" if is_config else "preprocessor_config.json"))
        try:
            return load_hugging_face(str(model), _stop)
        except _Read:
            return None

    every = [*trees, PREPROCESSOR]
    return Target("hugging_face", list(map(as_json, every)), read, ".json", words, from_trees(every, as_json, words))


# ---- exported files


@cache
def _exported() -> bytes:
    """Once for all tests, as it takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return write_exported(Cells(), Path(folder, "model.onnx")).read_bytes()


def onnx_file(folder: Path) -> Target:
    import onnx

    content = _exported()
    model = onnx.load_from_string(content)
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    metadata = json.loads(entry.value)

    def repair(rng: Random, _: bytes) -> bytes:
        entry.value = json.dumps(change_tree(rng, metadata))
        return bytes(model.SerializeToString())

    def read(path: Path) -> object:
        return load_exported(path).categories

    return Target("onnx_file", (content,), read, ".onnx", repair=repair)
