"""Parameter groups, and the rate the schedule gives them."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detkit.config import ConfigError, UserError, parse_config
from detkit.engine.optim import AdamWConfig, RMSpropConfig, SGDConfig, build_optimizer, load_state, set_lr
from detkit.engine.settings import TrainConfig


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(4, 2)
        self.backbone[2].requires_grad_(False)


def groups_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of every parameter in the optimizer."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("kind", [SGDConfig, AdamWConfig, RMSpropConfig])
def test_all_decay_at_one_rate_unless_asked(kind: type) -> None:
    network = Small()
    found = groups_of(build_optimizer(kind(lr=0.1, weight_decay=0.01), network), network)
    names = ["backbone.0.weight", "backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"]
    assert found == dict.fromkeys(names, (0.1, 0.01))  # what is frozen is not there


@pytest.mark.parametrize("kind", [SGDConfig, AdamWConfig, RMSpropConfig])
def test_no_decay_on_norms_and_biases_and_a_slower_backbone(kind: type) -> None:
    network = Small()
    config = kind(lr=0.1, weight_decay=0.01, decay_norm_and_bias=False, lr_factors={"backbone": 0.1})
    assert groups_of(build_optimizer(config, network), network) == {
        "backbone.0.weight": (pytest.approx(0.01), 0.01),
        "backbone.1.weight": (pytest.approx(0.01), 0.0),
        "backbone.1.bias": (pytest.approx(0.01), 0.0),
        "head.weight": (0.1, 0.01),
        "head.bias": (0.1, 0.0),
    }


def test_a_star_in_a_part_stands_for_any_one_step() -> None:
    network = Small()
    config = AdamWConfig(lr=0.1, lr_factors={"backbone.*.weight": 0.5})
    rates = {name: lr for name, (lr, _) in groups_of(build_optimizer(config, network), network).items()}
    assert {name for name, lr in rates.items() if lr < 0.1} == {"backbone.0.weight", "backbone.1.weight"}
    with pytest.raises(UserError, match=r"'backbone\.\*\.wait' is no part of this Small"):
        build_optimizer(AdamWConfig(lr=0.1, lr_factors={"backbone.*.wait": 0.5}), network)


def test_no_decay_on_parameters_by_a_part_of_their_names() -> None:
    network = Small()
    config = AdamWConfig(lr=0.1, weight_decay=0.01, no_decay=("1.w", "head.b"))
    decays = {name: decay for name, (_, decay) in groups_of(build_optimizer(config, network), network).items()}
    assert decays == {
        "backbone.0.weight": 0.01,
        "backbone.1.weight": 0,
        "backbone.1.bias": 0.01,
        "head.weight": 0.01,
        "head.bias": 0,
    }
    with pytest.raises(UserError, match=r"train\.optimizer\.no_decay: no parameter has 'table' in its name"):
        build_optimizer(AdamWConfig(lr=0.1, no_decay=("table",)), network)


@pytest.mark.parametrize("kind", [SGDConfig, AdamWConfig, RMSpropConfig])
def test_a_rate_for_each_part_and_the_longest_name_counts(kind: type) -> None:
    network = Small()
    factors = {"backbone.1": 3.0, "backbone": 0.5, "head": 2.0}
    rates = {
        name: lr
        for name, (lr, _) in groups_of(build_optimizer(kind(lr=0.1, lr_factors=factors), network), network).items()
    }
    assert rates == {
        "backbone.0.weight": pytest.approx(0.05),
        "backbone.1.weight": pytest.approx(0.3),
        "backbone.1.bias": pytest.approx(0.3),
        "head.weight": pytest.approx(0.2),
        "head.bias": pytest.approx(0.2),
    }


def test_a_part_that_there_is_not_has_no_rate() -> None:
    with pytest.raises(
        UserError, match=r"train.optimizer.lr_factors: 'hed' is no part of this Small; did you mean 'head'\?"
    ):
        build_optimizer(SGDConfig(lr=0.1, lr_factors={"hed": 0.1}), Small())


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_a_factor_is_above_zero(factor: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        SGDConfig(lr=0.1, lr_factors={"backbone": factor})


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_the_old_key_says_the_new_one(name: str) -> None:
    optimizer = {"name": name, "lr": 0.1, "backbone_lr_factor": 0.1}
    tree = {"epochs": 1, "batch_size": 1, "optimizer": optimizer}
    with pytest.raises(ConfigError, match=r"optimizer.backbone_lr_factor: now lr_factors: {backbone: FACTOR}"):
        parse_config(tree, TrainConfig)


def test_the_schedule_multiplies_each_groups_own_rate() -> None:
    network = Small()
    optimizer = build_optimizer(SGDConfig(lr=0.1, lr_factors={"backbone": 0.1}), network)
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.2)  # of the full rate, not of the last
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.002, 0.02])


def test_settings_reach_the_optimizer() -> None:
    sgd = build_optimizer(SGDConfig(lr=0.1, momentum=0.8, nesterov=True), Small())
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    adamw = build_optimizer(AdamWConfig(lr=0.1, betas=(0.8, 0.9)), Small())
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)
    rmsprop = build_optimizer(RMSpropConfig(lr=0.1, alpha=0.8, momentum=0.7), Small())
    assert isinstance(rmsprop, torch.optim.RMSprop)
    assert (rmsprop.defaults["alpha"], rmsprop.defaults["momentum"]) == (0.8, 0.7)


@pytest.mark.parametrize("config", [SGDConfig(lr=0.1, momentum=0.9), AdamWConfig(lr=0.1)], ids=["sgd", "adamw"])
def test_what_it_remembers_survives_another_memory_format(config: SGDConfig | AdamWConfig) -> None:
    """As where a run goes on on a machine on which convolutions are computed in another one."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = torch.randn(3, 4, 5, 3, 3, generator=generator)
    weights = []
    for later in (torch.contiguous_format, torch.channels_last):
        conv = nn.Conv2d(5, 4, 3, bias=False)
        conv.weight.data = weight.clone()
        optimizer = build_optimizer(config, conv)
        conv.weight.grad = gradients[0].clone()
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())
        conv.to(memory_format=later)
        optimizer = build_optimizer(config, conv)
        load_state(optimizer, state)
        conv.weight.grad = gradients[1].contiguous(memory_format=later)
        optimizer.step()
        weights.append(conv.weight.detach())
    assert not weights[1].is_contiguous()
    assert_close(weights[1], weights[0])


def test_two_steps_of_rmsprop_by_hand() -> None:
    """Caffe's RMSProp: the mean square decays by alpha, the step is the gradient over its root."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    optimizer = build_optimizer(RMSpropConfig(lr=0.01, alpha=0.75, weight_decay=0.5), network)
    weight, square = 1.0, 0.0
    for gradient in (1.5, -2.0):
        network.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        decayed = gradient + 0.5 * weight
        square = 0.75 * square + 0.25 * decayed**2
        weight -= 0.01 * decayed / square**0.5
        assert network.weight.item() == pytest.approx(weight, abs=1e-6)
