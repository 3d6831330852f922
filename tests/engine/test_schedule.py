"""The learning rate at chosen steps, by hand."""

import pytest

from detkit.engine.schedule import CosineConfig, StepConfig, WarmupConfig, lr_factor

NO_WARMUP = WarmupConfig()


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1.0), (79, 1.0), (80, 0.1), (109, 0.1), (110, 0.01), (119, 0.01)],
)
def test_step_multiplies_after_its_epochs(step: int, factor: float) -> None:
    schedule = StepConfig(milestones=(8, 11))  # ten steps an epoch
    assert lr_factor(schedule, NO_WARMUP, step, 10, 12) == pytest.approx(factor)


def test_milestones_may_be_parts_of_epochs() -> None:
    schedule = StepConfig(milestones=(0.5,), gamma=0.5)
    assert [lr_factor(schedule, NO_WARMUP, step, 10, 1) for step in (4, 5)] == [1, 0.5]


def test_without_milestones_the_rate_is_constant() -> None:
    assert {lr_factor(StepConfig(), NO_WARMUP, step, 10, 12) for step in range(120)} == {1.0}


def test_cosine_goes_from_one_to_the_final_factor() -> None:
    # 101 steps: quarter, half and three quarters of the way lie on whole steps; cos(pi / 4) = 0.7071
    factors = [lr_factor(CosineConfig(), NO_WARMUP, step, 101, 1) for step in (0, 25, 50, 75, 100)]
    assert factors == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])
    factors = [lr_factor(CosineConfig(final_factor=0.2), NO_WARMUP, step, 101, 1) for step in (0, 50, 100)]
    assert factors == pytest.approx([1, 0.6, 0.2])


def test_cosine_of_a_single_step_does_not_divide_by_zero() -> None:
    assert lr_factor(CosineConfig(), NO_WARMUP, 0, 1, 1) == 1


def test_a_limit_of_time_moves_the_schedule_but_not_the_warmup_on() -> None:
    """Ten steps an epoch, ten epochs: half of the time is over at step 3, and the rate is that of half the run."""
    half = [
        lr_factor(schedule, NO_WARMUP, 3, 10, 10, 0.5) for schedule in (CosineConfig(), StepConfig(milestones=(5,)))
    ]
    assert half == pytest.approx([0.5, 0.1])
    assert lr_factor(StepConfig(milestones=(5,)), NO_WARMUP, 3, 10, 10, 0.49) == 1.0
    assert lr_factor(CosineConfig(final_factor=0.2), NO_WARMUP, 3, 10, 10, 1.5) == pytest.approx(0.2)
    steps_further = lr_factor(CosineConfig(), NO_WARMUP, 60, 10, 10, 0.1)
    assert steps_further == lr_factor(CosineConfig(), NO_WARMUP, 60, 10, 10) < 0.5
    warmup = WarmupConfig(iterations=10, start_factor=0.0)
    assert lr_factor(CosineConfig(), warmup, 5, 10, 10, 0.5) == pytest.approx(0.25)


def test_warmup_is_linear_and_multiplies_the_schedule() -> None:
    warmup = WarmupConfig(iterations=10, start_factor=0.1)
    factors = [lr_factor(StepConfig(), warmup, step, 10, 12) for step in (0, 5, 9, 10, 11)]
    assert factors == pytest.approx([0.1, 0.55, 0.91, 1, 1])
    assert lr_factor(StepConfig(milestones=(0.5,)), warmup, 5, 10, 12) == pytest.approx(0.055)


def test_warmup_as_a_power_of_the_progress() -> None:
    """darknet's burn-in of 1000 batches: the rate times (batch / 1000)^4."""
    warmup = WarmupConfig(iterations=1000, start_factor=0, power=4)
    factors = [lr_factor(StepConfig(), warmup, step, 100, 20) for step in (0, 100, 500, 900, 1000, 1001)]
    assert factors == pytest.approx([0, 1e-4, 0.0625, 0.6561, 1, 1])
    # from a start factor the rest is climbed by the power: 0.2 + 0.8 / 16
    warmup = WarmupConfig(iterations=10, start_factor=0.2, power=4)
    assert lr_factor(StepConfig(), warmup, 5, 100, 20) == pytest.approx(0.25)
