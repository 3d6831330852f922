"""The moving average, by its formula."""

from math import exp

import pytest
import torch
from torch import nn

from detkit.engine.ema import EMA, EMAConfig


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).train()


@torch.no_grad()
def test_weights_trail_by_the_decay() -> None:
    network = make_network()
    network[0].weight.fill_(1.0)
    ema = EMA(EMAConfig(decay=0.9, warmup=0), network)  # type: ignore[arg-type]
    network[0].weight.fill_(2.0)
    ema.update(network, 1)  # type: ignore[arg-type]
    assert ema.detector.state_dict()["0.weight"].item() == pytest.approx(0.9 * 1 + 0.1 * 2)
    ema.update(network, 2)  # type: ignore[arg-type]
    assert ema.detector.state_dict()["0.weight"].item() == pytest.approx(0.9 * 1.1 + 0.1 * 2)
    assert network[0].weight.item() == 2


@torch.no_grad()
def test_the_decay_warms_up() -> None:
    network = make_network()
    network[0].weight.fill_(0.0)
    ema = EMA(EMAConfig(decay=0.9, warmup=10), network)  # type: ignore[arg-type]
    network[0].weight.fill_(1.0)
    ema.update(network, 5)  # type: ignore[arg-type]
    assert ema.detector.state_dict()["0.weight"].item() == pytest.approx(1 - 0.9 * (1 - exp(-0.5)))


@torch.no_grad()
def test_statistics_are_averaged_and_counters_copied() -> None:
    network = make_network()
    ema = EMA(EMAConfig(decay=0.5, warmup=0), network)  # type: ignore[arg-type]
    network[1].running_mean.fill_(4.0)
    network[1].num_batches_tracked.fill_(7)
    ema.update(network, 1)  # type: ignore[arg-type]
    state = ema.detector.state_dict()
    assert state["1.running_mean"].item() == 2
    assert state["1.num_batches_tracked"].item() == 7


def test_the_average_is_a_copy_that_does_not_train() -> None:
    network = make_network()
    ema = EMA(EMAConfig(), network)  # type: ignore[arg-type]
    assert not ema.detector.training
    assert network.training
    assert not any(parameter.requires_grad for parameter in ema.detector.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
