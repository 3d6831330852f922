"""Flags as annotation tools write them."""

import pytest

from detkit.data.flags import parse_flag


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0", "true", "True", "TRUE", "yes", " Yes\n"])
def test_means_yes(value: object) -> None:
    assert parse_flag(value) is True


@pytest.mark.parametrize(
    "value", [None, 0, 0.0, False, "0", "0.0", "", " ", "false", "False", "no", "NO", "Unspecified", "unspecified"]
)
def test_means_no(value: object) -> None:
    assert parse_flag(value) is False


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), "2", "maybe", "difficult", "n", "None", [], [1]])
def test_anything_else_is_no_flag(value: object) -> None:
    assert parse_flag(value) is None
