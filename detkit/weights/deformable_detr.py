"""Public Deformable DETR checkpoints -> detkit's: Hugging Face's `DeformableDetrForObjectDetection`, the authors'."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detkit.weights.detr import HUGGING_FACE_BACKBONES, rename

_ATTENTION = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "out",
}
_LAYERS = [  # encoder or decoder, name of the authors, of Hugging Face (`mlp.` from transformers 5 on), converted
    *(("encoder", f"self_attn.{name}", f"self_attn.{name}", f"attention.{own}") for name, own in _ATTENTION.items()),
    ("encoder", "norm1", "self_attn_layer_norm", "norm"),
    ("encoder", "linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("encoder", "linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("encoder", "norm2", "final_layer_norm", "feedforward.norm"),
    ("decoder", "self_attn", "self_attn", "self_attention"),
    ("decoder", "norm2", "self_attn_layer_norm", "self_norm"),
    *(
        ("decoder", f"cross_attn.{name}", f"encoder_attn.{name}", f"cross_attention.{own}")
        for name, own in _ATTENTION.items()
    ),
    ("decoder", "norm1", "encoder_attn_layer_norm", "cross_norm"),
    ("decoder", "linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("decoder", "linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("decoder", "norm3", "final_layer_norm", "feedforward.norm"),
]
_PARTS = [  # pattern of the authors, of Hugging Face, converted
    (r"input_proj\.(\d)\.0\.", r"model\.input_proj\.(\d)\.0\.", r"neck.levels.\1."),
    (r"input_proj\.(\d)\.1\.", r"model\.input_proj\.(\d)\.1\.", r"neck.norms.\1."),
    (r"query_embed\.weight", r"model\.query_position_embeddings\.weight", "head.queries"),
    (r"transformer\.level_embed", r"model\.level_embed", "head.encoder.level_embed"),
    (r"transformer\.reference_points\.", r"model\.reference_points\.", "head.reference."),
    (r"transformer\.enc_output\.", r"model\.enc_output\.", "head.proposal.0."),
    (r"transformer\.enc_output_norm\.", r"model\.enc_output_norm\.", "head.proposal.1."),
    (r"transformer\.pos_trans\.", r"model\.pos_trans\.", "head.query.0."),
    (r"transformer\.pos_trans_norm\.", r"model\.pos_trans_norm\.", "head.query.1."),
    (r"class_embed\.(\d)\.", r"class_embed\.(\d)\.", r"head.classifiers.\1."),
    *(
        (rf"bbox_embed\.(\d)\.layers\.{i}\.", rf"bbox_embed\.(\d)\.layers\.{i}\.", rf"head.regressors.\1.{2 * i}.")
        for i in range(3)
    ),
    *(
        (
            rf"transformer\.{part}\.layers\.(\d+)\.{re.escape(authors)}\.",
            rf"model\.{part}\.layers\.(\d+)\.{hugging_face}\.",
            rf"head.{part}.layers.\1.{converted}." if part == "encoder" else rf"head.{part}.\1.{converted}.",
        )
        for part, authors, hugging_face, converted in _LAYERS
    ),
]
_AGAIN = r"(?:transformer|model)\.decoder\.(?:class|bbox)_embed\."  # the same tensors under a second name
AUTHORS_KEYS = [(r"backbone\.0\.body\.", "backbone."), *((source, converted) for source, _, converted in _PARTS)]
HUGGING_FACE_KEYS = [*HUGGING_FACE_BACKBONES, *((source, converted) for _, source, converted in _PARTS)]


def convert_keys(state: Mapping[str, Tensor], *, refine: bool) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has.

    refine  whether each decoder layer has predictions of its own
    """
    rules = HUGGING_FACE_KEYS if "model.level_embed" in state else AUTHORS_KEYS
    once = {key: tensor for key, tensor in state.items() if not re.match(_AGAIN, key)}
    converted = rename(once, rules, "a Deformable DETR that detkit converts")
    if not refine:  # the published model lists its one head once for each layer
        again = re.compile(r"head\.(classifiers|regressors)\.[1-9]")
        converted = {key: tensor for key, tensor in converted.items() if not again.match(key)}
    return converted
