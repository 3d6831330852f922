"""Public DINO checkpoints of the authors -> detkit's. Hugging Face has no DINO."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detkit.weights.deformable_detr import AUTHORS_KEYS
from detkit.weights.detr import rename

_MLPS = [  # pattern of the authors, converted
    (r"transformer\.decoder\.ref_point_head", "head.query_pos"),
    (r"transformer\.enc_out_bbox_embed", "head.proposer.regressor"),
    (r"bbox_embed\.0", "head.regressor"),
]
KEYS = [
    (r"transformer\.tgt_embed\.weight", "head.queries"),
    (r"transformer\.decoder\.norm\.", "head.norm."),
    (r"transformer\.enc_output\.", "head.proposer.content.0."),
    (r"transformer\.enc_output_norm\.", "head.proposer.content.1."),
    (r"transformer\.enc_out_class_embed\.", "head.proposer.classifier."),
    (r"class_embed\.0\.", "head.classifier."),
    (r"label_enc\.", "head.label_embed."),
    *((rf"{source}\.layers\.{i}\.", f"{name}.{2 * i}.") for source, name in _MLPS for i in range(3)),
    *AUTHORS_KEYS,
]
_AGAIN = r"transformer\.decoder\.(?:class|bbox)_embed\.|(?:class|bbox)_embed\.[1-9]"  # the one head, for each layer


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors with detkit's keys. Raises UserError for a key that they do not have."""
    once = {key: tensor for key, tensor in state.items() if not re.match(_AGAIN, key)}
    return rename(once, KEYS, "a DINO that detkit converts")
