"""Which rows of a head's weights belong to which class: what it takes to carry weights over to other classes by name.

A head answers `class_rows(num_classes)`: how the rows (the first dimension) of its tensors would be divided among
`num_classes` classes. Keys are names of tensors, or of layers all of whose tensors have these rows. Values are int64
`[R]`: the label that each row belongs to, or one of the marks below.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

NO_CLASS = -1  # boxes and objectness: rows that serve every class
BACKGROUND = -2  # background, or "no object", among the classes of a softmax
UNUSED = -3  # rows that nothing reads


@runtime_checkable
class HasClassRows(Protocol):
    def class_rows(self, num_classes: int) -> dict[str, Tensor]: ...


def rows(*parts: int | range, repeat: int = 1) -> Tensor:
    """int64 `[R]`: labels and marks, `rows(BACKGROUND, range(K))`, the whole repeated, as for each anchor of a cell."""
    labels = [label for part in parts for label in ([part] if isinstance(part, int) else part)]
    return torch.tensor(labels * repeat, dtype=torch.int64)
