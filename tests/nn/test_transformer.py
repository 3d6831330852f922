"""The transformer's parts: position embeddings, masks, attention, and how the paper draws the weights."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from detkit.nn.transformer import (
    Attention,
    Decoder,
    Encoder,
    TransformerConfig,
    map_pos_embed,
    padding_mask,
    sine_embedding,
)

SMALL = TransformerConfig(width=16, heads=4, encoder_layers=2, decoder_layers=3, feedforward=32, dropout=0.0)


@pytest.mark.parametrize(("canvas", "cells"), [((64, 96), (2, 3)), ((800, 1201), (25, 38)), ((270, 310), (9, 10))])
def test_padding_is_where_the_nearest_pixel_is(canvas: tuple[int, int], cells: tuple[int, int]) -> None:
    """The published model shrinks a mask of the pixels to the map, nearest neighbour."""
    sizes = [canvas, (1, 1), (canvas[0] // 2, canvas[1] // 3), (canvas[0] - 1, canvas[1] - 31)]
    pixels = torch.ones(len(sizes), 1, *canvas)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = 0
    expected = nn.functional.interpolate(pixels, cells)[:, 0].bool()
    assert torch.equal(padding_mask(torch.tensor(sizes), canvas, cells), expected)
    assert not expected[0].any()
    assert expected[1].sum() == cells[0] * cells[1] - 1


def test_position_embedding_by_hand() -> None:
    """Two rows and three columns, of which the last is padding: y = 1/2, 1; x = 1/2, 1, 1 of 2 pi."""
    padding = torch.tensor([[[False, False, True], [False, False, True]]])
    pos_embed = map_pos_embed(padding, width=8, temperature=10000)
    assert pos_embed.shape == (1, 2, 3, 8)
    y, x = math.pi, 2 * math.pi  # row 0, column 1
    expected = [f(angle / 10000 ** (i / 2)) for angle in (y, x) for i in (0, 1) for f in (math.sin, math.cos)]
    torch.testing.assert_close(pos_embed[0, 0, 1], torch.tensor(expected), atol=1e-5, rtol=0)


def test_the_position_embedding_does_not_depend_on_padding() -> None:
    alone = map_pos_embed(torch.zeros(1, 3, 5, dtype=torch.bool), 32, 20)
    padding = torch.ones(1, 6, 9, dtype=torch.bool)
    padding[:, :3, :5] = False
    assert torch.equal(map_pos_embed(padding, 32, 20)[:, :3, :5], alone)


def test_sine_embedding_of_boxes_has_a_share_for_each_number() -> None:
    numbers = torch.tensor([0.1, 0.9, 0.3, 0.5])
    together = sine_embedding(numbers, width=32, temperature=20.0)
    apart = [sine_embedding(number[None], width=8, temperature=20.0) for number in numbers]
    assert torch.equal(together, torch.cat(apart))


def test_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    attention, reference = Attention(16, 4, dropout=0.0), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        reference.in_proj_bias.normal_()
        for linear, bias in zip((attention.q, attention.k, attention.v), reference.in_proj_bias.chunk(3), strict=True):
            linear.bias.copy_(bias)
        reference.out_proj.load_state_dict(attention.out.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    expected, _ = reference(query, key, value, key_padding_mask=padding)
    torch.testing.assert_close(attention(query, key, value, ~padding[:, None, None]), expected)


def test_queries_keys_and_values_are_drawn_as_one_matrix() -> None:
    """Xavier's bound of the published `[3 D, D]` matrix: the root of 6 / (D + 3 D)."""
    attention = Attention(256, 8, dropout=0.0)
    for linear in (attention.q, attention.k, attention.v):
        assert linear.weight.abs().max().item() == pytest.approx((6 / 1024) ** 0.5, rel=1e-3)
    assert attention.out.weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=1e-3)


def run(features: Tensor, padding: Tensor) -> Tensor:
    torch.manual_seed(0)
    encoder, decoder = Encoder(SMALL), Decoder(SMALL)
    pos_embed = map_pos_embed(padding, SMALL.width, 10000).flatten(1, 2)
    mask = ~padding.flatten(1)[:, None, None]
    memory = encoder(features.flatten(2).transpose(1, 2), pos_embed, mask)
    return decoder(torch.randn(1, 6, SMALL.width).expand(len(features), -1, -1), memory, pos_embed, mask)


def test_hidden_states_do_not_depend_on_padding() -> None:
    features = torch.randn(2, SMALL.width, 4, 6)
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, 3:] = True
    padding[1, :, 4:] = True
    together = run(features, padding)
    assert together.shape == (3, 2, 6, SMALL.width)
    torch.testing.assert_close(together[:, :1], run(features[:1], padding[:1]), atol=1e-5, rtol=1e-5)
    alone = run(features[1:, :, :3, :4], torch.zeros(1, 3, 4, dtype=torch.bool))
    torch.testing.assert_close(together[:, 1:], alone, atol=1e-5, rtol=1e-5)


def test_dropout_is_for_training() -> None:
    encoder = Encoder(SMALL.model_copy(update={"dropout": 0.5}))
    x, pos_embed = torch.randn(1, 6, 16), torch.zeros(1, 6, 16)
    assert not torch.equal(encoder(x, pos_embed, None), encoder(x, pos_embed, None))
    encoder.eval()
    assert torch.equal(encoder(x, pos_embed, None), encoder(x, pos_embed, None))


@pytest.mark.parametrize("change", [{"width": 30}, {"width": 20}])
def test_a_width_that_heads_and_axes_cannot_share(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="width: expected a multiple of 4 and of heads"):
        TransformerConfig(**change)
