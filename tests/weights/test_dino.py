"""The names of the authors' DINO checkpoints (github.com/IDEA-Research/DINO) in detkit's DINO."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.dino import DINO, DINOConfig, build_dino
from detkit.nn.heads.dino import DINOHeadConfig
from detkit.structures import Categories
from detkit.weights.dino import convert_keys
from detkit.weights.plain import convert_plain

CATEGORIES = Categories.of_names(["cat", "dog", "cow"])
ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
LAYERS = 2


def make_dino() -> DINO:
    transformer = {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "feedforward": 8}
    head = DINOHeadConfig.model_validate({"transformer": transformer, "num_queries": 5})
    with torch.device("meta"):
        return build_dino(DINOConfig(head=head), CATEGORIES)


def authors_state(dino: DINO) -> dict[str, Tensor]:
    """Names as their modules give them; the tensors of the backbone have torchvision's."""
    names = [f"input_proj.{level}.{part}" for level in range(4) for part in (0, 1)]
    for layer in range(LAYERS):
        encoder, decoder = f"transformer.encoder.layers.{layer}", f"transformer.decoder.layers.{layer}"
        names += [f"{encoder}.self_attn.{part}" for part in ATTENTION]
        names += [f"{encoder}.{part}" for part in ("norm1", "linear1", "linear2", "norm2")]
        names += [f"{decoder}.cross_attn.{part}" for part in ATTENTION]
        names += [
            f"{decoder}.{part}" for part in ("norm1", "self_attn.out_proj", "norm2", "linear1", "linear2", "norm3")
        ]
    layers = [*range(LAYERS)]
    again = [f"{start}{layer}" for layer in layers for start in ("bbox_embed.", "transformer.decoder.bbox_embed.")]
    mlps = [
        ("transformer.decoder.ref_point_head", 2),
        ("transformer.enc_out_bbox_embed", 3),
        *((mlp, 3) for mlp in again),
    ]
    names += [f"{mlp}.layers.{number}" for mlp, count in mlps for number in range(count)]
    names += [f"{start}class_embed.{layer}" for layer in layers for start in ("", "transformer.decoder.")]
    names += [
        f"transformer.{part}" for part in ("decoder.norm", "enc_output", "enc_output_norm", "enc_out_class_embed")
    ]
    state = {f"{name}.{kind}": torch.zeros(1) for name in names for kind in ("weight", "bias")}
    for layer in layers:
        for kind, shape in (("weight", (768, 256)), ("bias", (768,))):
            state[f"transformer.decoder.layers.{layer}.self_attn.in_proj_{kind}"] = torch.zeros(shape, device="meta")
    for name in ("transformer.level_embed", "transformer.tgt_embed.weight", "label_enc.weight"):
        state[name] = torch.zeros(1)
    backbone = {f"backbone.0.body.{name}": tensor for name, tensor in dino.backbone.state_dict().items()}
    return state | backbone


def test_every_tensor_has_its_place() -> None:
    dino = make_dino()
    converted = convert_keys(authors_state(dino))
    assert converted.keys() == dino.state_dict().keys()
    assert converted["head.decoder.1.self_attention.k.weight"].shape == (256, 256)


def test_tensors_alone_are_recognised() -> None:
    dino = make_dino()
    state = {f"module.{key}": tensor for key, tensor in authors_state(dino).items()}
    whose, _ = convert_plain(state, lambda converted: len(converted.keys() & dino.state_dict().keys()))
    assert whose == "a DINO"


def test_another_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"'transformer.patterns' is no key of a DINO that detkit converts"):
        convert_keys({"transformer.patterns": torch.zeros(1)})
