"""Public DETR checkpoints -> detkit's DETR: facebookresearch's, and Hugging Face's `DetrForObjectDetection`.

Both have an output for each of COCO's ids from 0 to 90, unused ids included, and so has the converted detector: the
softmax runs over all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.detectors.detr import DETRConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import download
from detkit.nn.heads.detr import DETRHeadConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Categories
from detkit.weights.files import Change, read_state, unchanged
from detkit.weights.hugging_face_config import require, resnet_of, transformer_fields

URL = "https://dl.fbaipublicfiles.com/detr/"
FILES = {
    "detr_resnet50": "detr-r50-e632da11.pth",
    "detr_resnet50_dc5": "detr-r50-dc5-f0fb7ef5.pth",
    "detr_resnet101": "detr-r101-2c7b67e5.pth",
    "detr_resnet101_dc5": "detr-r101-dc5-a2e86def.pth",
}
CONFIGS = {
    name: DETRConfig(
        backbone=ResNetConfig(
            name="resnet101" if "101" in name else "resnet50",
            strides=(16,) if "dc5" in name else (32,),
            dilation="dc5" in name,
        )
    )
    for name in FILES
}
# The label is the id. torchvision lists the same 91 names, but with its background in place of the unused id 0.
COCO_CATEGORIES = Categories(("N/A", *FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]), tuple(range(91)))

_LAYERS = [  # encoder or decoder, name of facebookresearch, of Hugging Face (`mlp.` from transformers 5 on), converted
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
_PARTS = [  # pattern of facebookresearch, of Hugging Face, converted
    (r"input_proj\.", r"model\.input_projection\.", "head.project."),
    (r"query_embed\.weight", r"model\.query_position_embeddings\.weight", "head.queries"),
    (r"class_embed\.", r"class_labels_classifier\.", "head.classifier."),
    *((rf"bbox_embed\.layers\.{i}\.", rf"bbox_predictor\.layers\.{i}\.", f"head.regressor.{2 * i}.") for i in range(3)),
    (r"transformer\.decoder\.norm\.", r"model\.decoder\.layernorm\.", "head.decoder.norm."),
    *(
        (
            rf"transformer\.{part}\.layers\.(\d+)\.{facebook}\.",
            rf"model\.{part}\.layers\.(\d+)\.{hugging_face}\.",
            rf"head.{part}.layers.\1.{converted}.",
        )
        for part, facebook, hugging_face, converted in _LAYERS
    ),
]
_BACKBONE = r"model\.backbone\.(?:conv_encoder\.)?model\."  # without conv_encoder from transformers 5 on
_STAGE = _BACKBONE + r"encoder\.stages\.{}\.layers\.(\d+)\."
HUGGING_FACE_BACKBONES = [
    # the ResNet of transformers
    (_BACKBONE + r"embedder\.embedder\.convolution\.", "backbone.conv1."),
    (_BACKBONE + r"embedder\.embedder\.normalization\.", "backbone.bn1."),
    *(
        (_STAGE.format(stage) + source, rf"backbone.layer{stage + 1}.\1.{converted}.")
        for stage in range(4)
        for source, converted in (
            *((rf"layer\.{i}\.convolution\.", f"conv{i + 1}") for i in range(3)),
            *((rf"layer\.{i}\.normalization\.", f"bn{i + 1}") for i in range(3)),
            (r"shortcut\.convolution\.", "downsample.0"),
            (r"shortcut\.normalization\.", "downsample.1"),
        )
    ),
    (_BACKBONE, "backbone."),  # the ResNet of timm, which has torchvision's names
]
FACEBOOK_KEYS = [(r"backbone\.0\.body\.", "backbone."), *((source, converted) for source, _, converted in _PARTS)]
HUGGING_FACE_KEYS = [*HUGGING_FACE_BACKBONES, *((source, converted) for _, source, converted in _PARTS)]


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has."""
    rules = HUGGING_FACE_KEYS if "class_labels_classifier.weight" in state else FACEBOOK_KEYS
    return rename(state, rules, f"a DETR detector that detkit converts: {', '.join(FILES)}")


def hf_config(config: dict[str, Any]) -> DETRConfig:
    """From the config.json of Hugging Face's. Raises UserError for what detkit lacks."""
    require(config, position_embedding_type="sine", num_channels=3)
    transformer = TransformerConfig(**transformer_fields(config))
    head = DETRHeadConfig(transformer=transformer, num_queries=config["num_queries"])
    return DETRConfig(backbone=resnet_of(config, (32,)), head=head)


def rename(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]], whose: str) -> dict[str, Tensor]:
    """`state` with the keys that the first fitting rule (pattern of the start, name) gives.

    Queries, keys and values in one matrix become three. Raises UserError for a key that is none of `whose`.
    """
    converted = {}
    for source_key, tensor in state.items():
        if source_key.endswith("num_batches_tracked"):  # of timm's batch norms, which are frozen
            continue
        key = next((re.sub(f"^{rule}", name, source_key) for rule, name in rules if re.match(rule, source_key)), None)
        if key is None:
            raise UserError(f"{source_key!r} is no key of {whose}")
        key = re.sub(r"\.([qkv])_proj\.", r".\1.", re.sub(r"\.o(ut)?_proj\.", ".out.", key))
        if ".in_proj_" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[key.replace("in_proj_", f"{letter}.")] = part
        else:
            converted[key] = tensor
    return converted


def load_detr(name: str, file: Path | None = None, change: Change = unchanged) -> Detector[Any]:
    """A public DETR by its name at facebookresearch, in evaluation mode.

    The weights are downloaded once and checked by their hash, or read from `file`: the same `.pth` fetched by other
    means, Hugging Face's `model.safetensors` or `pytorch_model.bin`, or the folder that has one of them. The names of
    the classes are COCO's, or those of the `config.json` beside the file; in both cases the ids are the labels.
    """
    if name not in FILES:
        raise UserError(f"detr:{name}: not known; known: {', '.join(FILES)}")
    if file and file.is_dir():
        file = weights_in(file)
    state = convert_keys(read_state(file, "DETR") if file else download(URL + FILES[name], name)["model"])
    source = file or name
    if "head.classifier.bias" not in state:
        raise UserError(f"{source}: not a DETR checkpoint: it has no classifier")
    detector = build_detector(change(CONFIGS[name]), categories_beside(file, len(state["head.classifier.bias"]) - 1))
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source}: not the weights of {name}: {str(error).splitlines()[1].strip()}") from error
    return detector.eval()


def weights_in(folder: Path) -> Path:
    """Hugging Face's file of weights in a folder. Raises UserError if there is none."""
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights here; expected {' or '.join(names)}")


def categories_beside(file: Path | None, count: int) -> Categories:
    """The `count` classes that the `config.json` beside `file` names; COCO's if there is none."""
    config = file.parent / "config.json" if file else None
    if config and config.is_file():
        try:
            named = json.loads(config.read_text(encoding="utf-8"))["id2label"]
            names = tuple(named[str(label)] for label in range(count))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{config}: expected id2label with the names of the classes 0 to {count - 1}") from error
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"{config}: id2label: expected names of classes in quotes, found {names}")
        return Categories(names, tuple(range(count)))
    if count != len(COCO_CATEGORIES):
        raise UserError(f"{file}: has {count} classes and no config.json beside it that names them (id2label)")
    return COCO_CATEGORIES
