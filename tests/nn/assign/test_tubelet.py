"""ACT's matching: by the mean IoU over the frames, and one prior of its own for every tubelet."""

from dataclasses import replace

import pytest
import torch

from detkit.nn.assign.assignment import BACKGROUND
from detkit.nn.assign.tubelet import TubeletAssigner
from detkit.structures import Target
from tests.nn.heads.support import make_target

# squares of 10 px, 4 px apart
PRIORS = torch.tensor([[x, 0.0, x + 10, 10] for x in (0, 4, 8, 12, 40)])


def moving_target(starts: list[float], steps: list[float], ignore: list[bool] | None = None) -> Target:
    """Squares of 10 px in three frames, each `steps` px further right in every frame."""
    tubes = torch.tensor(
        [
            [[x + step * frame, 0.0, x + step * frame + 10, 10] for frame in range(3)]
            for x, step in zip(starts, steps, strict=True)
        ]
    ).view(-1, 3, 4)
    target = make_target([tuple(tube[0].tolist()) for tube in tubes], ignore=ignore)
    return Target(replace(target.objects, tubes=tubes))


def test_the_overlap_is_the_mean_over_the_frames() -> None:
    """From x = 0 to 8: IoU with prior 0 is 1, 6/14, 2/18, with prior 1 6/14, 1, 6/14, with prior 2 2/18, 6/14, 1. Prior
    0 is the box of the first frame, but its mean, 0.51, is below that of prior 1, 0.62."""
    target = moving_target([0.0], [4.0])
    assert TubeletAssigner(0.5).assign(PRIORS, target).index.tolist() == [0, 0, 0, BACKGROUND, BACKGROUND]
    assert TubeletAssigner(0.52).assign(PRIORS, target).index.tolist() == [BACKGROUND, 0, *[BACKGROUND] * 3]


def test_every_tubelet_has_its_best_prior() -> None:
    """The second is never still: 0, 12 and 24 px. Its best mean, with prior 1 or 2, is far below the threshold."""
    target = moving_target([40.0, 0.0], [0.0, 12.0])
    index = TubeletAssigner(0.5).assign(PRIORS, target).index
    assert index[4] == 0
    assert (index == 1).sum() == 1


def test_ignored_tubelets_are_no_targets() -> None:
    target = moving_target([40.0, 0.0], [0.0, 0.0], ignore=[True, False])
    assignment = TubeletAssigner(0.5).assign(PRIORS, target)
    assert assignment.index.tolist() == [0, *[BACKGROUND] * 4]
    assert assignment.background.tolist() == [False, *[True] * 4]
    neutral = TubeletAssigner(0.5, ignored_iof=0.5).assign(PRIORS, target)
    assert neutral.background.tolist() == [False, True, True, True, False]


def test_without_objects_all_is_background() -> None:
    assert TubeletAssigner(0.5).assign(PRIORS, moving_target([], [])).index.tolist() == [BACKGROUND] * 5


def test_objects_without_tubes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected tubes"):
        TubeletAssigner(0.5).assign(PRIORS, make_target([(0, 0, 10, 10)]))
