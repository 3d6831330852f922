"""Left and right from the names of keypoints, and the sigmas of COCO's people."""

import numpy as np
import pytest

from detkit.data.keypoint_names import COCO_SIGMAS, keypoint_categories, pairs_of_names


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("Left Eye", "right eye"),
        ("eye_left", "eye_right"),
        ("leftEye", "rightEye"),
        ("left", "right"),
        ("l_eye", "r_eye"),
        ("L eye", "R eye"),
        ("eye-l", "eye-r"),
        ("lEye", "rEye"),
        ("eyeL", "eyeR"),
        ("front_left_paw", "front_right_paw"),
    ],
)
def test_names_that_differ_in_their_side_are_a_pair(left: str, right: str) -> None:
    assert pairs_of_names(["nose", right, "tail", left]) == [(1, 3)]


@pytest.mark.parametrize(
    "names",
    [
        ["nose", "tail"],
        ["left_eye", "nose"],  # the other one is missing
        ["left_eye", "right_ear"],
        ["ear", "rear"],  # letters within words are no side
        ["tail", "trail"],
        ["left_eye", "left_eye", "right_eye"],  # which of the two?
        ["leg", "reg"],
    ],
)
def test_other_names_are_none(names: list[str]) -> None:
    assert pairs_of_names(names) == []


def test_cocos_people_have_eight_pairs_and_the_sigmas_of_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    points = keypoint_categories(list(COCO_SIGMAS))
    assert points.flip_pairs == tuple((index, index + 1) for index in range(1, 17, 2))
    np.testing.assert_allclose(points.sigmas, Params("keypoints").kpt_oks_sigmas)


def test_other_points_have_one_sigma() -> None:
    assert keypoint_categories(["nose", "tail"]).sigmas == (0.05, 0.05)
    assert keypoint_categories(["nose", "left_eye"], flip_pairs=[(0, 1)]).flip_pairs == ((0, 1),)
