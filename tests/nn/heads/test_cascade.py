"""The stages of a cascade, by hand and against the slow reference."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkit.nn.heads.cascade import SECOND, CascadeConfig, CascadeHead, StageConfig
from detkit.nn.heads.regions import RegionTargets
from detkit.nn.proposals.regions import Regions
from detkit.structures import Target
from tests.nn.heads.support import make_target
from tests.reference import cascade as reference

SIZE = (64, 96)
WINDOW = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
WEIGHTS = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


def make_head(lively: float = 0.0, **fields: object) -> CascadeHead:
    """Three stages on one level of 4 channels and stride 8; `lively`: spread of the last layers' weights."""
    torch.manual_seed(0)
    head = CascadeHead(CascadeConfig(hidden=(16,), output_size=2, **fields), 4, [8], 3)
    for stage in head.heads():
        if lively:
            torch.nn.init.normal_(stage.classifier.weight, std=lively)
            torch.nn.init.normal_(stage.regressor.weight, std=lively)
        else:
            torch.nn.init.zeros_(stage.regressor.weight)
    return head


def features(images: int = 1, *, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, 4, 8, 12, generator=generator).requires_grad_(grad)]


def regions_of(*boxes: list[tuple[float, float, float, float]]) -> Regions:
    return Regions.from_list([torch.tensor(part, dtype=torch.float32).view(-1, 4) for part in boxes])


def moved(head: CascadeHead, *deltas: tuple[float, float, float, float]) -> None:
    """Makes each stage predict the same deltas everywhere."""
    for stage, delta in zip(head.heads(), deltas, strict=False):
        torch.nn.init.zeros_(stage.regressor.weight)
        stage.regressor.bias.data = torch.tensor(delta, dtype=torch.float32)


def train(head: CascadeHead, regions: Regions, targets: list[Target], windows: Tensor = WINDOW):
    sampled, region_targets = head.train().sample(regions, targets)
    return head(features(len(targets)), sampled, windows, region_targets, targets)


def test_each_stage_asks_for_a_higher_overlap() -> None:
    """Strips of an object of 10 px, which no stage moves: IoU .55, .65 and .75, and the object itself."""
    boxes = [(0.0, 0.0, width, 10.0) for width in (4.5, 5.5, 6.5, 7.5)]
    outputs = train(make_head(), regions_of(boxes), [make_target([(0, 0, 10, 10)], [2])])
    positives = [sorted(part.regions.boxes[part.targets.labels == 3, 2].tolist()) for part in outputs.stages]
    assert positives == [[5.5, 6.5, 7.5, 10], [6.5, 7.5, 10], [7.5, 10]]
    assert [len(part.targets.labels) for part in outputs.stages] == [5, 5, 5], "what is not positive is background"


def test_a_stage_goes_on_from_the_boxes_of_the_one_before_without_a_gradient() -> None:
    """Deltas of 1 are a tenth of the width in the first stage, and a twentieth in the second: 2 px and 1 px of 20."""
    head = make_head()
    moved(head, (1.0, 0, 0, 0), (1.0, 0, 0, 0), (0, 0, 0, 0))
    outputs = head.eval()(features(), regions_of([(10, 10, 30, 30), (80, 10, 100, 30)]), WINDOW)
    assert outputs.stages[0].regions.boxes[0].tolist() == [10, 10, 30, 30]
    assert_close(outputs.stages[1].regions.boxes, torch.tensor([[12.0, 10, 32, 30], [82, 10, 96, 30]]))
    assert_close(outputs.stages[2].regions.boxes[0], torch.tensor([13.0, 10, 33, 30]))
    assert not any(part.regions.boxes.requires_grad for part in outputs.stages)
    assert all(part.deltas.shape == (2, 1, 4) and part.logits.shape == (2, 4) for part in outputs.stages)


def test_boxes_cut_to_nothing_leave_training_and_stay_in_evaluation() -> None:
    """The first stage moves both by their width to the right: the second of them leaves the image."""
    head = make_head()
    moved(head, (10.0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    boxes = [(10.0, 10.0, 30.0, 30.0), (80.0, 10.0, 96.0, 30.0)]
    outputs = train(head, regions_of(boxes), [make_target([])])
    assert [len(part.regions.boxes) for part in outputs.stages] == [2, 1, 1]
    outputs = head.eval()(features(), regions_of(boxes), WINDOW)
    assert [len(part.regions.boxes) for part in outputs.stages] == [2, 2, 2]
    assert all(bool(part.regions.valid.all()) for part in outputs.stages)
    assert head.detect(outputs, WINDOW).boxes[0, :, 2].max() <= 96


def test_only_the_first_stage_is_given_the_objects_and_draws() -> None:
    head = make_head(batch_size_per_image=4, positive_fraction=0.5)
    far = [(60.0 + i, 30.0, 80.0 + i, 50.0) for i in range(10)]
    outputs = train(head, regions_of(far), [make_target([(0, 0, 10, 10)])])
    assert [len(part.targets.labels) for part in outputs.stages] == [4, 4, 4]
    assert [int((part.targets.labels > 0).sum()) for part in outputs.stages] == [1, 1, 1]


def test_targets_and_boxes_equal_the_slow_reference() -> None:
    generator = torch.Generator().manual_seed(2)
    head, positives = make_head(lively=0.5), [0, 0, 0]
    for _ in range(10):
        corners, sides = torch.rand(4, 2, generator=generator) * 40, torch.rand(4, 2, generator=generator) * 20 + 4
        objects = torch.cat([corners, corners + sides], dim=1)
        labels = torch.randint(0, 3, (4,), generator=generator).tolist()
        near = (objects.repeat(8, 1) + torch.randn(32, 4, generator=generator)).clamp(min=0)
        target = make_target(objects.tolist(), labels)
        outputs = train(head, regions_of(near.tolist()), [target])
        for number, part in enumerate(outputs.stages):
            boxes = [tuple(box) for box in part.regions.boxes.tolist()]
            expected = reference.targets(boxes, target.objects.boxes.tolist(), labels, (0.5, 0.6, 0.7)[number])
            assert part.targets.labels.tolist() == expected
            positives[number] += sum(label > 0 for label in expected)
            if number < 2:
                refined = [
                    reference.refine(box, delta, WEIGHTS[number], SIZE)
                    for box, delta in zip(boxes, part.deltas[:, 0].tolist(), strict=True)
                ]
                refined = [box for box in refined if box[2] > box[0] and box[3] > box[1]]
                # within an image a stage lists its positives first
                following = outputs.stages[number + 1].regions.boxes
                assert_close(torch.tensor(sorted(refined)), torch.tensor(sorted(following.tolist())), atol=1e-3, rtol=0)
    assert min(positives) > 20


def test_scores_are_the_mean_of_the_stages_and_boxes_the_last() -> None:
    head = make_head(lively=0.5).eval()
    outputs = head(features(), regions_of([(10, 10, 40, 40), (50, 5, 90, 60)]), WINDOW)
    rows = head.detect(outputs, WINDOW)
    expected = []
    for row in range(2):
        logits = [part.logits[row].tolist() for part in outputs.stages]
        last = outputs.stages[2]
        box = reference.refine(last.regions.boxes[row].tolist(), last.deltas[row, 0].tolist(), WEIGHTS[2], SIZE)
        expected += [(score, label, *box) for label, score in enumerate(reference.scores(logits)) if score > 0.05]
    expected.sort(reverse=True)
    count = int(rows.counts[0])
    actual = [
        (score, label, *box)
        for score, label, box in zip(
            rows.scores[0].tolist(), rows.labels[0].tolist(), rows.boxes[0].tolist(), strict=True
        )
    ][:count]
    assert len(expected) == count > 2
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)


def test_losses_of_all_stages_are_summed_and_the_features_learn_from_their_mean() -> None:
    """The gradient of the features is a third of that without the factor; that of the weights is whole."""
    head = make_head(lively=0.5).train()
    regions = regions_of([(10, 10, 40, 40), (50, 5, 90, 60)])
    labels, target = RegionTargets(torch.tensor([1, 0]), regions.boxes), [make_target([(10, 10, 40, 40)])]
    level = features(grad=True)
    losses = head.criterion(head(level, regions, WINDOW, labels, target))
    assert list(losses) == [f"stage{i}_{part}" for i in (1, 2, 3) for part in ("class", "box")]
    losses["stage1_class"].backward()
    whole, weights = level[0].grad.clone(), head.heads()[0].classifier.weight.grad.clone()
    stage, alone = head.heads()[0], features(grad=True)
    stage.zero_grad()
    stage.criterion(stage(alone, regions, labels))["roi_class"].backward()
    assert_close(3 * whole, alone[0].grad)
    assert_close(weights, stage.classifier.weight.grad)


def test_losses_by_hand() -> None:
    """Two regions of equal logits, one on an object of class 1 moved by 2 of 20 px: L1 of .1 times the weight of dx."""
    head = make_head()
    for stage in head.heads():
        torch.nn.init.zeros_(stage.classifier.weight)
    regions, target = regions_of([(10, 10, 30, 30), (60, 10, 80, 30)]), make_target([(12, 10, 32, 30)], [1])
    labels = RegionTargets(torch.tensor([2, 0]), torch.tensor([[12.0, 10, 32, 30], [60, 10, 80, 30]]))
    losses = head.criterion(head.train()(features(), regions, WINDOW, labels, [target]))
    for number, weight in enumerate((10, 20, 30), 1):
        assert losses[f"stage{number}_class"].item() == pytest.approx(torch.tensor(4.0).log().item())
        assert losses[f"stage{number}_box"].item() == pytest.approx(0.1 * weight / 2, rel=1e-5)


def test_stages_are_a_list_of_their_own() -> None:
    head = make_head(later_stages=(SECOND, StageConfig(fg_threshold=0.65, box_weights=(1, 2, 3, 4)), SECOND))
    assert [stage.assigner.fg_threshold for stage in head.heads()] == [0.5, 0.6, 0.65, 0.6]
    assert [stage.assigner.bg_threshold for stage in head.heads()] == [(0.0, 0.5), (0.0, 0.6), (0.0, 0.65), (0.0, 0.6)]
    assert head.heads()[2].coder.weights == (1, 2, 3, 4)
    assert list(head.heads()[0].class_rows(2)) == ["classifier"], "boxes are of no class"
