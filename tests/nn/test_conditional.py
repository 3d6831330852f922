"""Attention that compares content and position apart, by slow loops."""

import pytest
import torch
from torch import Tensor

from detkit.nn.conditional import ConditionalAttention, ConditionalSelfAttention

WIDTH, HEADS = 8, 2


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Of one image and head, `[Q, d]`, `[S, d]`, `[S, e]`: the mean of the values, weighted by a softmax."""
    rows = []
    for number, q in enumerate(query):
        similarity = torch.stack([q @ k / len(q) ** 0.5 for k in key]).masked_fill(~mask[number], -torch.inf)
        rows.append(similarity.softmax(dim=0) @ value)
    return torch.stack(rows)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("first", [True, False])
def test_cross_attention(first: bool) -> None:
    """A head compares its part of the content and its part of the position, both scaled by their joint width."""
    torch.manual_seed(0)
    attention = ConditionalAttention(WIDTH, HEADS, dropout=0.0, first=first)
    hidden, query_pos, query_sine = (random(1, 3, WIDTH, seed=seed) for seed in (1, 2, 3))
    memory, pos_embed = (random(1, 5, WIDTH, seed=seed) for seed in (4, 5))
    mask = torch.tensor([True, True, False, True, True])
    q, k, k_pos, sine = (
        attention.q(hidden),
        attention.k(memory),
        attention.k_pos(pos_embed),
        attention.q_sine(query_sine),
    )
    if attention.q_pos is not None:
        q, k = q + attention.q_pos(query_pos), k + k_pos
    assert (attention.q_pos is not None) == first
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        query = torch.cat([q[0, :, part], sine[0, :, part]], dim=1)
        key = torch.cat([k[0, :, part], k_pos[0, :, part]], dim=1)
        heads.append(attend(query, key, attention.v(memory)[0, :, part], mask.expand(3, -1)))
    expected = attention.out(torch.cat(heads, dim=1))
    actual = attention(hidden, query_pos, query_sine, memory, pos_embed, mask[None, None, None])
    torch.testing.assert_close(actual[0], expected)


def test_self_attention() -> None:
    """The projections of content and position are added; the second query sees itself alone."""
    torch.manual_seed(0)
    attention = ConditionalSelfAttention(WIDTH, HEADS, dropout=0.0)
    hidden, query_pos = (random(1, 3, WIDTH, seed=seed) for seed in (1, 2))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = torch.tensor([False, True, False])
    q = attention.q(hidden) + attention.q_pos(query_pos)
    k = attention.k(hidden) + attention.k_pos(query_pos)
    value = attention.v(hidden)
    parts = [slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS) for head in range(HEADS)]
    heads = [attend(q[0, :, part], k[0, :, part], value[0, :, part], mask) for part in parts]
    torch.testing.assert_close(attention(hidden, query_pos, mask)[0], attention.out(torch.cat(heads, dim=1)))
