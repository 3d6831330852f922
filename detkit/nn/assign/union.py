"""One matching from several: every query that any of them pairs with an object (D-FINE's GO-LSD, arXiv 2410.13842,
section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.nn.assign.hungarian import Pairs


def union_of(matchings: Sequence[Pairs]) -> Pairs:
    """Pairs of one layer, in which several queries may answer for the same object.

    All layers of all matchings vote. A query that they pair with several objects answers for the one that has most
    votes, the first of those with as many.
    """
    images = torch.cat([pairs.images.repeat(len(pairs.predictions)) for pairs in matchings])
    predictions = torch.cat([pairs.predictions.flatten() for pairs in matchings])
    objects = torch.cat([pairs.objects.flatten() for pairs in matchings])
    candidates, votes = torch.unique(torch.stack([images, predictions, objects]), dim=1, return_counts=True)
    candidates = candidates[:, votes.argsort(descending=True, stable=True)]
    queries, query = torch.unique(candidates[:2], dim=1, return_inverse=True)
    order = torch.arange(len(query), device=query.device)
    first = torch.zeros_like(queries[0]).scatter_reduce(0, query, order, "amin", include_self=False)
    images, predictions, objects = candidates[:, first]
    return Pairs(images, predictions[None], objects[None])
