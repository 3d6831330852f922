"""What only changes time on a CPU: compiled kernels, faster convolutions and products, folded norms, memory, threads,
imports.

Nothing here changes a result by more than rounding, and without this folder detkit gives the same. Ops find their
kernels through `detkit.ops.dispatch`. The two functions here are for programs, such as detkit's own tools; this file
imports nothing heavy, because `prepare_process` must come before torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

NetworkT = TypeVar("NetworkT", bound="nn.Module")


def prepare_process() -> None:
    """Sets up the threads and the memory of this process and of those it starts, and faster imports of its own.

    Call it before torch is imported.
    """
    from detkit.accelerate.imports import quicken_imports
    from detkit.accelerate.memory import keep_memory
    from detkit.accelerate.threads import set_up_threads

    set_up_threads()
    keep_memory()
    quicken_imports()


def accelerate(network: NetworkT, *, constant: bool = False) -> NetworkT:
    """Replaces modules within `network` by faster ones that compute the same; see `detkit.accelerate.modules`.

    Parameters, buffers, their names and the modules that hold them stay as they are. Returns `network` itself.

    constant  its weights do not change any more, as in prediction; then the weights that stand for a convolution and
              its norm are computed once and kept, beside the others. They are made anew if a weight does change, but
              for one that is changed through its `.data`
    """
    from detkit.accelerate.modules import replace_modules

    return replace_modules(network, constant)
