"""torch's random numbers: a seed for each epoch, and the state in the middle of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detkit.engine import distributed


def seed_epoch(seed: int, epoch: int, states: Sequence[dict[str, Tensor]], device: torch.device) -> None:
    """At the start of an epoch; in its middle `states` has the state of each process, if they were as many."""
    rank = distributed.rank()
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0]))
    if rank < len(states):
        torch.set_rng_state(states[rank]["cpu"])
        if device.type == "cuda" and "cuda" in states[rank]:
            torch.cuda.set_rng_state(states[rank]["cuda"], device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """uint8 `[n]` of the CPU, and of the CUDA device if it is one."""
    state = {"cpu": torch.get_rng_state()}
    return state if device.type == "cpu" else {**state, "cuda": torch.cuda.get_rng_state(device)}
