"""A DataLoader with one thread a worker, whose UserErrors reach the user as they were raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from detkit.config import UserError

ItemT = TypeVar("ItemT", covariant=True)
BatchT = TypeVar("BatchT")


class Items(Protocol[ItemT]):
    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> ItemT: ...


class Loader(DataLoader[BatchT]):
    """`options` are those of DataLoader.

    torch would raise a new exception in place of a worker's, with the stack trace as its message. So a UserError leaves
    the worker as a value, instead of its batch, and is raised here.
    """

    def __init__(self, items: Items[ItemT], collate: Callable[[list[ItemT]], BatchT], **options: Any) -> None:
        super().__init__(
            _CatchUserErrors(items),  # type: ignore[arg-type]
            collate_fn=partial(_collate, collate),
            worker_init_fn=_init_worker,
            **options,
        )

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _CatchUserErrors:
    """`items`, with the UserError itself instead of an item that raises one."""

    def __init__(self, items: Items[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.items[key]
        except UserError as error:
            return error


def _collate(collate: Callable[[list[Any]], Any], items: Sequence[Any]) -> Any:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else collate(list(items))


def _init_worker(_: int) -> None:
    cv2.setNumThreads(0)  # a worker is one thread; more would compete with the other workers
    torch.set_num_threads(1)
