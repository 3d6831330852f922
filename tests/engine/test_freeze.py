"""Parts of a detector that stay as they are: no gradient, no new statistics, and what that saves."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.config import UserError
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.freeze import Freeze
from detkit.engine.optim import AdamWConfig, RMSpropConfig, SGDConfig, build_optimizer
from detkit.engine.train import train_config
from tests.engine.settings import make_config, write_pictures


class Small(nn.Module):
    """58 parameters: a backbone of 12 + 8 + 20, of which 20 are of its last layer, a neck of 8, a head of 10."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.backbone = nn.ModuleDict({"layer1": first, "layer2": nn.Conv2d(4, 4, 1)})
        self.neck = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_a_part_gets_no_gradient_and_its_norms_keep_their_statistics() -> None:
    network = Small()
    frozen = Freeze(network, ["backbone"])
    network.train()
    frozen.hold()
    assert trained(network) == {"neck.weight", "neck.bias", "head.weight", "head.bias"}
    assert not network.backbone["layer1"][1].training  # type: ignore[index]
    assert network.neck.training, "other parts train as before"
    network.backbone["layer1"](torch.randn(2, 3, 5, 5))
    assert network.backbone["layer1"][1].num_batches_tracked == 0  # type: ignore[index]


def test_a_dotted_name_is_a_part_of_a_part() -> None:
    network = Small()
    Freeze(network, ["backbone.layer1", "head.bias"])
    assert trained(network) == {
        "backbone.layer2.weight",
        "backbone.layer2.bias",
        "neck.weight",
        "neck.bias",
        "head.weight",
    }


def test_a_name_that_only_begins_alike_is_another_part() -> None:
    network = Small()
    network.neck2 = nn.Linear(1, 1)
    Freeze(network, ["neck"])
    assert "neck2.weight" in trained(network)


def test_no_part_is_no_change() -> None:
    network = Small()
    network.neck.requires_grad_(False)
    frozen = Freeze(network, [])
    network.train()
    frozen.hold()
    assert trained(network) == {name for name, _ in network.named_parameters() if not name.startswith("neck")}
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("bakbone", r"train.freeze: 'bakbone' is no part of this Small; did you mean 'backbone'\?"),
        ("xyz", "train.freeze: 'xyz' is no part of this Small; known: backbone, neck, head"),
        ("backbone.layer9", r"'backbone.layer9' is no part of this Small; did you mean 'backbone.layer\d'\?"),
        ("backbone.layer1.7.weight", "'backbone.layer1.7' is no part of this Small"),
        ("back", "'back' is no part of this Small"),
        ("", "'' is no part of this Small; known: backbone, neck, head"),
    ],
)
def test_an_unknown_part_is_named_with_those_that_there_are(part: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Freeze(Small(), [part])


def test_something_must_be_left_to_train() -> None:
    network = Small()
    network.head.requires_grad_(False)
    with pytest.raises(UserError, match=r"\[backbone, neck\] leaves nothing to train; .* are backbone, neck, head"):
        Freeze(network, ["backbone", "neck"])


@pytest.mark.parametrize(
    ("optimizer", "numbers"),  # of each parameter that need not be stored: its gradient and the optimizer's state
    [
        (SGDConfig(lr=0.1, momentum=0.0), 1),
        (SGDConfig(lr=0.1), 2),
        (AdamWConfig(lr=0.1), 3),
        (RMSpropConfig(lr=0.1), 2),
        (RMSpropConfig(lr=0.1, momentum=0.5), 3),
    ],
)
def test_the_memory_that_is_saved_is_what_the_optimizer_would_hold(
    optimizer: SGDConfig | AdamWConfig | RMSpropConfig, numbers: int
) -> None:
    network = nn.ModuleDict({"backbone": nn.Linear(1024, 512, bias=False), "head": nn.Linear(1, 1)})
    built = build_optimizer(optimizer, network)
    sum(parameter.sum() for parameter in network.parameters()).backward()  # type: ignore[union-attr]
    built.step()
    state = built.state[network["backbone"].weight]
    assert 1 + sum(value.numel() == 1024 * 512 for value in state.values() if torch.is_tensor(value)) == numbers
    text = Freeze(network, ["backbone"]).describe(optimizer)
    assert text.startswith("frozen: backbone, 524,288 of 524,290 parameters, which saves")
    assert f" {numbers * 4 * 1024 * 512 / 2**20:.1f} MB" in text


@pytest.mark.long
def test_a_run_leaves_frozen_parts_as_they_are_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pictures(tmp_path / "data", 2)
    weights = []
    for epochs in (1, 2):
        folder = tmp_path / f"run{epochs}"
        folder.mkdir()
        changes = (f"train.epochs={epochs}", "train.eval_every=9", "train.freeze=[backbone, neck]")
        train_config(make_config(data, *changes), folder)
        weights.append(load_checkpoint(folder / "last.pt")["trained"])
    for name, tensor in weights[0].items():
        same = torch.equal(tensor, weights[1][name])
        assert same == name.startswith(("backbone.", "neck.", "input.")), name
    assert "frozen: backbone, neck, 11," in capsys.readouterr().out
