"""Public DETR checkpoints -> detkit's DETR: facebookresearch's, and Hugging Face's `DetrForObjectDetection`.

Both number the classes by COCO's ids, 91 with the gaps; ours are the same 91 outputs, and the gaps stay, because the
softmax runs over all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.detectors.detr import DETRConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import download
from detkit.weights.files import read_state

URL = "https://dl.fbaipublicfiles.com/detr/"
FILES = {
    "detr_resnet50": "detr-r50-e632da11.pth",
    "detr_resnet50_dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "detr_resnet101": "detr-r101-2c7b67e5.pth",
    "detr_resnet101_dc5": "detr-r101-dc5-a2e86def.pth",
}
CONFIGS = {
    name: DETRConfig(
        backbone=ResNetConfig(name="resnet101" if "101" in name else "resnet50", levels=(5,), dilation="dc5" in name)
    )
    for name in FILES
}
# by id; torchvision lists the same 91, with its background in place of the id 0, which nothing has
COCO_NAMES = ("N/A", *FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])

_LAYERS = [  # room, facebookresearch's, Hugging Face's (`mlp.` from transformers 5 on), ours
    ("encoder", "self_attn", "self_attn", "attention"),
    ("encoder", "norm1", "self_attn_layer_norm", "norm"),
    ("encoder", "linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("encoder", "linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("encoder", "norm2", "final_layer_norm", "feedforward.norm"),
    ("decoder", "self_attn", "self_attn", "self_attention"),
    ("decoder", "norm1", "self_attn_layer_norm", "self_norm"),
    ("decoder", "multihead_attn", "encoder_attn", "cross_attention"),
    ("decoder", "norm2", "encoder_attn_layer_norm", "cross_norm"),
    ("decoder", "linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("decoder", "linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("decoder", "norm3", "final_layer_norm", "feedforward.norm"),
]
_PARTS = [  # facebookresearch's, Hugging Face's, ours
    (r"input_proj\.", r"model\.input_projection\.", "head.project."),
    (r"query_embed\.weight", r"model\.query_position_embeddings\.weight", "head.queries"),
    (r"class_embed\.", r"class_labels_classifier\.", "head.classifier."),
    *((rf"bbox_embed\.layers\.{i}\.", rf"bbox_predictor\.layers\.{i}\.", f"head.regressor.{2 * i}.") for i in range(3)),
    (r"transformer\.decoder\.norm\.", r"model\.decoder\.layernorm\.", "head.decoder.norm."),
    *(
        (
            rf"transformer\.{room}\.layers\.(\d+)\.{facebook}\.",
            rf"model\.{room}\.layers\.(\d+)\.{hugging_face}\.",
            rf"head.{room}.layers.\1.{ours}.",
        )
        for room, facebook, hugging_face, ours in _LAYERS
    ),
]
_TRUNK = r"model\.backbone\.(?:conv_encoder\.)?model\."  # without conv_encoder from transformers 5 on
_STAGE = _TRUNK + r"encoder\.stages\.{}\.layers\.(\d+)\."
_HUGGING_FACE_TRUNKS = [
    # its own ResNet
    (_TRUNK + r"embedder\.embedder\.convolution\.", "backbone.conv1."),
    (_TRUNK + r"embedder\.embedder\.normalization\.", "backbone.bn1."),
    *(
        (_STAGE.format(stage) + theirs, rf"backbone.layer{stage + 1}.\1.{ours}.")
        for stage in range(4)
        for theirs, ours in (
            *((rf"layer\.{i}\.convolution\.", f"conv{i + 1}") for i in range(3)),
            *((rf"layer\.{i}\.normalization\.", f"bn{i + 1}") for i in range(3)),
            (r"shortcut\.convolution\.", "downsample.0"),
            (r"shortcut\.normalization\.", "downsample.1"),
        )
    ),
    (_TRUNK, "backbone."),  # timm's, which has torchvision's names
]
FACEBOOK_KEYS = [(r"backbone\.0\.body\.", "backbone."), *((theirs, ours) for theirs, _, ours in _PARTS)]
HUGGING_FACE_KEYS = [*_HUGGING_FACE_TRUNKS, *((theirs, ours) for _, theirs, ours in _PARTS)]


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either publisher under our names. Raises UserError for a key that is none of theirs."""
    rules = HUGGING_FACE_KEYS if "class_labels_classifier.weight" in state else FACEBOOK_KEYS
    converted = {}
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):  # timm's, of batch norms that stand still
            continue
        ours = next((re.sub(f"^{theirs}", name, key) for theirs, name in rules if re.match(theirs, key)), None)
        if ours is None:
            raise UserError(f"{key!r} is no key of a DETR detector; known models: {', '.join(FILES)}")
        ours = re.sub(r"\.([qkv])_proj\.", r".\1.", re.sub(r"\.o(ut)?_proj\.", ".out.", ours))
        if ".in_proj_" in ours:  # queries, keys and values in one matrix
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[ours.replace("in_proj_", f"{name}.")] = part
        else:
            converted[ours] = tensor
    return converted


def load_detr(name: str, file: Path | None = None) -> Detector:
    """A public DETR by its name at facebookresearch, in evaluation mode.

    Its weights are downloaded once and checked by hash, or read from `file`: the same `.pth` fetched by other means, or
    `model.safetensors` or `pytorch_model.bin` of Hugging Face, or the folder that has it. Class names are COCO's, or
    those of the `config.json` beside the file.
    """
    if name not in FILES:
        raise UserError(f"detr:{name}: not known; known: {', '.join(FILES)}")
    if file and file.is_dir():
        file = _weights_in(file)
    state = convert_keys(read_state(file, "DETR") if file else download(URL + FILES[name], name)["model"])
    where = file or name
    if "head.classifier.bias" not in state:
        raise UserError(f"{where}: not a DETR checkpoint: it has no classifier")
    detector = build_detector(CONFIGS[name], _class_names(file, len(state["head.classifier.bias"]) - 1))
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{where}: not the weights of {name}: {str(error).splitlines()[1].strip()}") from error
    return detector.eval()


def _weights_in(folder: Path) -> Path:
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights here; expected {' or '.join(names)}")


def _class_names(file: Path | None, count: int) -> tuple[str, ...]:
    config = file.parent / "config.json" if file else None
    if config and config.is_file():
        try:
            names = json.loads(config.read_text(encoding="utf-8"))["id2label"]
            return tuple(names[str(label)] for label in range(count))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{config}: expected id2label with the names of the classes 0 to {count - 1}") from error
    if count != len(COCO_NAMES):
        raise UserError(f"{file}: has {count} classes and no config.json beside it that names them (id2label)")
    return COCO_NAMES
