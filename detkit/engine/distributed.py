"""More than one process: torchrun starts them and torch.distributed connects them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from detkit.config import UserError

DEVICES = r"auto|cpu|cuda(:\d+)?"
Value = TypeVar("Value")


def check_device(device: str) -> None:
    """Raises UserError for a name that is no device which detkit runs on."""
    if not re.fullmatch(DEVICES, device):
        known = "; detkit runs on CPUs and CUDA alone" if re.fullmatch(r"(mps|xpu|hip|xla|npu)(:\d+)?", device) else ""
        raise UserError(f"device: expected auto, cpu, cuda or cuda:N, found {device!r}{known}")


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Joins torchrun's processes, if it started this one, and yields the device of this process.

    A block inside another, such as an evaluation after a training, stays in the group of the outer one.
    """
    check_device(device)
    cuda = device != "cpu" and torch.cuda.is_available()
    if device.startswith("cuda") and not cuda:
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise UserError(f"device: {device} was asked for, but {reason}; choose cpu, or auto for what there is")
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise UserError(f"device: {device} was asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    if not dist.is_torchelastic_launched():
        yield torch.device("cuda" if device == "auto" and cuda else "cpu" if device == "auto" else device)
        return
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(local)
    if dist.is_initialized():
        yield local
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield local
    finally:
        dist.destroy_process_group()


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process goes through the block alone (it may write files there), then the others do."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and dist.is_initialized():
        dist.barrier()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(module: nn.Module) -> None:
    """Gives every process the weights and buffers of the first."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def of_first(action: Callable[[], Value]) -> Value:
    """Runs `action` in the first process alone; its plain value, or its UserError, reaches every process."""
    answer: Any = None
    if rank() == 0:
        try:
            answer = action()
        except UserError as error:
            answer = error
    answer = gather(answer)[0]
    if isinstance(answer, UserError):
        raise answer
    return answer  # type: ignore[no-any-return]


def any_of(value: bool) -> bool:
    """Whether it is true in any process; cheaper than `gather`, for every step."""
    if not dist.is_initialized():
        return value
    number = torch.tensor(int(value), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return bool(number.item())


def gather(value: Any) -> list[Any]:
    """The plain Python value of every process, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
