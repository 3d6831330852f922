"""DiffusionDet's head: a layer against slow loops, training with noise, sampling by hand, losses and detections."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from detkit.nn.diffusion import DiffusionConfig, cosine_alpha_bars
from detkit.nn.heads.diffusion import DiffusionHead, DiffusionHeadConfig, DiffusionSelectionConfig
from detkit.nn.heads.diffusion_layers import DiffusionLayer, DiffusionLayerConfig
from detkit.nn.heads.set_head import DETROutputs
from detkit.ops.boxes import cxcywh_to_xyxy
from tests.nn.heads.support import make_target

LAYER = DiffusionLayerConfig(heads=2, dynamic_width=4, feedforward=16)
SIZES = torch.tensor([[32, 48], [24, 32]])  # (h, w), of pictures on a canvas of 32 x 48
OBJECTS = [make_target([(4, 4, 20, 28), (24, 8, 44, 30)], labels=[0, 2]), make_target([(2, 3, 30, 20)], labels=[1])]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_head(**fields: Any) -> DiffusionHead:
    defaults = {"num_boxes": 12, "layers": 2, "layer": LAYER, "output_size": 2}
    head = DiffusionHead(DiffusionHeadConfig(**{**defaults, **fields}), 8, (8, 16), 3)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return head


def features(requires_grad: bool = False) -> list[Tensor]:
    return [torch.randn(2, 8, 32 // stride, 48 // stride, requires_grad=requires_grad) for stride in (8, 16)]


def slow_layer(layer: DiffusionLayer, hidden: Tensor, pooled: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Feature `[N, W]` and cells `[N, S, W]` of the boxes of one image -> the next feature, and that with the time."""
    attention, dynamic = layer.attention, layer.dynamic
    width, heads = hidden.shape[1], attention.heads
    parts = [linear(hidden).view(-1, heads, width // heads) for linear in (attention.q, attention.k, attention.v)]
    mixed = torch.zeros_like(hidden)
    for n in range(len(hidden)):
        for head in range(heads):
            q, k, v = (part[:, head] for part in parts)
            weights = torch.stack([q[n] @ k[m] for m in range(len(hidden))]) / math.sqrt(width // heads)
            mixed[n, head * (width // heads) : (head + 1) * (width // heads)] = weights.softmax(0) @ v
    hidden = layer.attention_norm(hidden + attention.out(mixed))
    convolved = []
    for n in range(len(hidden)):
        weights = dynamic.weights(hidden[n])
        first = weights[: width * 4].view(width, 4)
        second = weights[width * 4 :].view(4, width)
        cells = [F.relu(dynamic.norm2(F.relu(dynamic.norm1(cell @ first)) @ second)) for cell in pooled[n]]
        convolved.append(F.relu(dynamic.norm3(dynamic.out(torch.cat(cells)))))
    hidden = layer.dynamic_norm(hidden + torch.stack(convolved))
    hidden = layer.feedforward(hidden)
    scale, shift = layer.time[1](F.silu(time)).chunk(2)
    return hidden, hidden * (1 + scale) + shift


@torch.no_grad()
def test_a_layer_against_slow_loops() -> None:
    layer = DiffusionLayer(LAYER, 8, 4, 3, 0.01)
    hidden, pooled, time = torch.randn(2, 5, 8), torch.randn(10, 4, 8), torch.randn(2, 32)
    next_hidden, logits, deltas = layer(hidden, pooled, time)
    for image in range(2):
        expected, timed = slow_layer(layer, hidden[image], pooled[5 * image : 5 * image + 5], time[image])
        torch.testing.assert_close(next_hidden[image], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[image], layer.classifier(layer.class_tower(timed)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(deltas[image], layer.regressor(layer.box_tower(timed)), atol=1e-5, rtol=1e-4)


def recorded(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch, answer: Any = None) -> list[tuple[Tensor, Tensor]]:
    """What `_refine` is given, `(noisy, times)` of each call; it answers with `answer`, if any."""
    calls, refine = [], head._refine

    def record(levels: Any, noisy: Tensor, times: Tensor, sides: Tensor) -> Any:
        calls.append((noisy, times))
        return answer or refine(levels, noisy, times, sides)

    monkeypatch.setattr(head, "_refine", record)
    return calls


def test_training_starts_from_the_objects_with_the_noise_of_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head(num_boxes=2)
    calls = recorded(head, monkeypatch)
    head.alpha_bars.fill_(1.0)  # no noise
    head(features(), SIZES, (32, 48), OBJECTS)
    head.alpha_bars.copy_(cosine_alpha_bars(1000))
    for _ in range(300):
        head(features(), SIZES, (32, 48), OBJECTS)
    plain, times = (torch.stack(part) for part in zip(*calls, strict=True))
    # by hand: (.25, .5, 1/3, .75) and (17/24, 19/32, 5/12, 11/16) on a scale from -2 to 2
    expected = torch.tensor([[-1.0, 0.0, -2 / 3, 1.0], [5 / 6, 3 / 8, -1 / 3, 3 / 4]])
    torch.testing.assert_close(plain[0, 0].sort(dim=0).values, expected.sort(dim=0).values)
    assert times.unique().numel() > 300  # one of each image
    late = plain[1:][times[1:] > 950]
    assert late.std() == pytest.approx(1, abs=0.1)


def test_sampling_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two boxes the first is likely an object: it goes on from its prediction, the other is drawn anew."""
    head = make_head(num_boxes=2, steps=2).eval()
    logits = torch.tensor([[0.0, 1.0, -3.0], [-0.1, -0.1, -0.1]]).expand(2, -1, -1)
    boxes = torch.tensor([[0.5, 0.5, 0.75, 1.25], [0.5, 0.5, 0.1, 0.1]]).expand(2, -1, -1)
    calls = recorded(head, monkeypatch, ([-logits, logits], [1 - boxes, boxes]))
    outputs = head(features(), SIZES, (32, 48))
    assert outputs.logits.shape == (2, 2, 2, 3)
    torch.testing.assert_close(outputs.boxes[1], boxes)
    (first, first_times), (second, second_times) = calls
    assert (first_times.tolist(), second_times.tolist()) == ([999, 999], [499, 499])
    assert torch.equal(first[0], head.noise[0, 0])
    assert torch.equal(first[0], first[1])

    a, b = cosine_alpha_bars(1000)[[999, 499]]
    start = torch.tensor([0.0, 0.0, 1.0, 2.0])  # the height beyond the picture is cut off
    old_noise = (first[0, 0] - a.sqrt() * start) / (1 - a).sqrt()
    fresh = ((1 - a / b) * (1 - b) / (1 - a)).sqrt()
    moved = b.sqrt() * start + (1 - b - fresh**2).sqrt() * old_noise + fresh * head.noise[1, 0, 0]
    torch.testing.assert_close(second[:, 0], moved.float().expand(2, -1), atol=1e-5, rtol=1e-4)
    assert torch.equal(second[0, 1], head.noise[0, 1, 1])


@torch.no_grad()
def test_an_image_has_the_same_predictions_alone_and_at_any_time() -> None:
    head = make_head(steps=3, renewal_threshold=0.7).eval()
    head.get_parameter("layers.1.classifier.bias").zero_()  # instead of a prior that few boxes exceed
    levels = features()
    outputs = head(levels, SIZES, (32, 48))
    likely = outputs.logits[:-1].sigmoid().amax(dim=3) > 0.7
    assert likely.any(), "no box goes on: only noise is tested"
    assert not likely.all(), "no box is drawn anew"
    torch.manual_seed(1)
    again = make_head(steps=3, renewal_threshold=0.7).eval()
    again.load_state_dict(head.state_dict())
    alone = again([level[1:] for level in levels], SIZES[1:], (32, 48))
    torch.testing.assert_close(alone.boxes, outputs.boxes[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.logits, outputs.logits[:, 1:], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_boxes_and_steps_may_be_others_than_in_training() -> None:
    head, other = make_head(), make_head(num_boxes=5, steps=4).eval()
    other.load_state_dict(head.state_dict())
    outputs = other(features(), SIZES, (32, 48))
    assert outputs.logits.shape == (4, 2, 5, 3)
    assert outputs.boxes.shape == (4, 2, 5, 4)


def test_more_steps_than_times_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"steps: expected at most diffusion\.times, 3, found 4"):
        DiffusionHeadConfig(steps=4, diffusion=DiffusionConfig(times=3))


def test_every_weight_and_every_level_learns() -> None:
    head, levels = make_head(), features(requires_grad=True)
    losses = head.criterion(head(levels, SIZES, (32, 48), OBJECTS), OBJECTS)
    assert losses.keys() == {f"layer{n}_{name}" for n in (1, 2) for name in ("class", "l1", "giou")}
    torch.stack(list(losses.values())).sum().backward()
    still = [name for name, weight in head.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == ["layers.0.attention.k.bias", "layers.1.attention.k.bias"] or still == []  # rounding aside, 0
    assert levels[0].grad is not None
    assert levels[0].grad.any()


def test_a_layer_learns_nothing_through_the_boxes_of_the_next() -> None:
    head = make_head()
    head(features(), SIZES, (32, 48), OBJECTS).boxes[1].sum().backward()
    first, second = (layer.regressor.weight.grad for layer in head.layers)
    assert not first.any()
    assert second.any()


def test_a_network_that_diverged_reaches_its_loss() -> None:
    head = make_head()
    levels = [torch.full_like(level, torch.nan) for level in features()]
    losses = head.criterion(head(levels, SIZES, (32, 48), OBJECTS), OBJECTS)
    assert losses["layer2_class"].isnan()


def test_losses_by_hand() -> None:
    """Three predictions of IoU .75 with the only object: as 2.25 is rounded down, two of them answer for it. Their left
    sides are .1 off, and sums are divided by 2. All logits are 0, where the focal loss is .25 ln 2 times alpha, .25 for
    the class of an object and .75 for every other."""
    head = make_head(layers=1)
    boxes = torch.tensor([0.55, 0.5, 0.3, 0.4]).expand(1, 1, 3, 4)
    outputs = DETROutputs(torch.zeros(1, 1, 3, 3), boxes, torch.tensor([[100.0, 100.0, 100.0, 100.0]]))
    losses = head.criterion(outputs, [make_target([(30, 30, 70, 70)], labels=[1])])
    focal = (2 * 0.25 + 7 * 0.75) * 0.25 * math.log(2)
    assert losses["layer1_class"].item() == pytest.approx(2 * focal / 2)
    assert losses["layer1_l1"].item() == pytest.approx(5 * 0.1)
    assert losses["layer1_giou"].item() == pytest.approx(2 * 0.25)


def test_detections_are_the_best_pairs_of_every_step() -> None:
    """Two boxes: the two best pairs of each step stay, and of those of a class that are one box the better one."""
    head = make_head(num_boxes=2, steps=2, selection=DiffusionSelectionConfig())
    left, right = (0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0)
    boxes = torch.tensor([[[left, right]], [[left, left]]])
    scores = torch.tensor([[[[0.9, 0.6, 0.1], [0.5, 0.1, 0.1]]], [[[0.7, 0.1, 0.1], [0.2, 0.1, 0.3]]]])
    outputs = DETROutputs(scores.logit(), boxes, torch.tensor([[48.0, 32.0, 48.0, 32.0]]))
    rows = head.detect(outputs, torch.tensor([[0.0, 0.0, 48.0, 32.0]]))
    assert rows.counts.tolist() == [3]
    assert rows.scores[0, :3].tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert rows.labels[0, :3].tolist() == [0, 1, 2]
    torch.testing.assert_close(
        rows.boxes[0, :3], cxcywh_to_xyxy(torch.tensor([left] * 3)) * 48 * torch.tensor([1, 2 / 3] * 2)
    )


def test_the_rows_of_each_class() -> None:
    assert {name: rows.tolist() for name, rows in make_head().class_rows(3).items()} == {
        "layers.0.classifier": [0, 1, 2],
        "layers.1.classifier": [0, 1, 2],
    }
