"""D-FINE's matching and losses (Peng et al., arXiv 2410.13842, sections 4.1 and 4.2), one query and edge at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def slow_union(matchings: Sequence[Sequence[tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
    """From the pairs (image, query, object) of each layer: every query that has one, with the object that most layers
    give it, of equally many the first; in order of image and query."""
    votes = Counter(pair for layer in matchings for pair in layer)
    queries = sorted({pair[:2] for pair in votes})
    chosen = []
    for query in queries:
        objects = sorted(pair[2] for pair in votes if pair[:2] == query)
        chosen.append((*query, max(objects, key=lambda row, query=query: votes[(*query, row)])))  # type: ignore[misc]
    return chosen


def slow_localization(
    edges: Tensor, places: Tensor, quality: Tensor, pairs: Sequence[tuple[int, int, int]], count: float
) -> float:
    """One layer's fine-grained localization loss: for each edge, the cross-entropy with the two distances around its
    target, by nearness, times the IoU of the box.

    edges    `[B, Q, 4, R + 1]`
    places   `[P, 4]`
    quality  `[P]`
    """
    total = 0.0
    for number, (image, query, _) in enumerate(pairs):
        for edge in range(4):
            place, logits = places[number, edge].item(), edges[image, query, edge].tolist()
            before = int(place)
            normaliser = math.log(sum(math.exp(logit) for logit in logits))
            entropies = [normaliser - logits[n] for n in (before, before + 1)]
            mixed = (before + 1 - place) * entropies[0] + (place - before) * entropies[1]
            total += quality[number].item() * mixed
    return total / count


def slow_distillation(
    edges: Tensor, teacher: Tensor, teacher_logits: Tensor, quality: Tensor, pairs: Sequence[tuple[int, int, int]],
    shared: Sequence[tuple[int, int, int]], queries: int,
) -> float:  # fmt: skip
    """One layer's decoupled distillation loss at temperature 5.

    edges, teacher  `[B, Q, 4, R + 1]`
    teacher_logits  `[B, Q, K]`
    quality         `[P]`: IoU of each of `pairs` in this layer
    shared          the pairs of the decoder, whose number weighs matched queries against the others of `queries`
    """
    matched = {pair[:2]: quality[number].item() for number, pair in enumerate(pairs)}
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for image in range(edges.shape[0]):
        for query in range(edges.shape[1]):
            key = (image, query)
            weight = matched.get(key, teacher_logits[image, query].sigmoid().max().item())
            for edge in range(4):
                student, goal = (x[image, query, edge].double() / 5 for x in (edges, teacher))
                p, q = goal.softmax(0), student.softmax(0)
                sums[key in matched] += weight * 25 * float((p * (p / q).log()).sum())
                counts[key in matched] += 1
    number = len(shared)
    roots = {True: math.sqrt(4 * number), False: math.sqrt(4 * (queries - number))}
    means = {part: sums[part] / counts[part] if counts[part] else 0.0 for part in (True, False)}
    return (means[True] * roots[True] + means[False] * roots[False]) / (roots[True] + roots[False])


def as_rows(images: Tensor, predictions: Tensor, objects: Tensor) -> list[tuple[int, int, int]]:
    """Pairs of one layer, each `[P]`."""
    rows = torch.stack([images, predictions, objects], dim=1).tolist()
    return [(image, query, row) for image, query, row in rows]
