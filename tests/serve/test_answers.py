"""Every picture gets its own answer, alone or in a batch, and nothing else disturbs that."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np
import pytest

from detkit.structures import Detections
from tests.serve.support import Detector, encode, find_parts, find_rectangle, picture, running, wait_until

RED, GREEN = (200, 0, 0), (0, 240, 0)


def test_the_answer_is_the_record_of_the_picture() -> None:
    with running() as it:
        status, answer = it.ask(encode(picture(RED, corner=8)))
    assert status == 200
    assert answer == {
        "width": 64,
        "height": 48,
        "detections": [{"class": "red", "score": pytest.approx(200 / 255), "box": [8, 8, 28, 18]}],
    }


def test_masks_and_keypoints_are_answered_and_masks_can_be_left_out() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    with running(Detector(find_parts)) as it:
        (found,) = it.ask(encode(picture(RED, corner=8)))[1]["detections"]
        (short,) = it.ask(encode(picture(RED, corner=8)), "?masks=0")[1]["detections"]
        status, problem = it.ask(encode(picture(RED)), "?masks=perhaps")
    decoded = mask.decode(found["mask"])
    assert decoded.shape == (48, 64)
    assert decoded.sum() == decoded[8:18, 8:18].sum() == 99
    assert found["keypoints"] == [
        {"name": "first", "x": 8, "y": 8, "score": 4},
        {"name": "last", "x": 28, "y": 18, "score": -1},
    ]
    assert short == {name: value for name, value in found.items() if name != "mask"}
    assert status == 422
    assert "masks" in problem["error"]


def test_a_turned_photo_is_answered_upright() -> None:
    """EXIF orientation 6: the file lies on its left side."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    lying = np.rot90(picture(GREEN, corner=8))  # turned to the left; to be seen it is turned back
    with running() as it:
        _, answer = it.ask(encode(lying, "PNG", exif=exif))
    assert (answer["width"], answer["height"]) == (64, 48)
    assert answer["detections"][0]["box"] == [8, 8, 28, 18]


def test_each_of_many_gets_its_own() -> None:
    """400 pictures of three sizes from 16 clients at once, no two alike."""
    pictures = [
        picture((56 + number % 200, 0, 0), [(48, 64), (50, 70), (64, 48)][number % 3], corner=number // 20)
        for number in range(400)
    ]
    with running(max_batch=4) as it, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda image: it.ask(encode(image)), pictures))
        sizes = {len(batch) for batch in it.detector.batches}
        assert all(len({image.shape for image in batch}) == 1 for batch in it.detector.batches)
    assert max(sizes) > 1
    for number, (image, (status, answer)) in enumerate(zip(pictures, answers, strict=True)):
        assert status == 200
        assert (answer["height"], answer["width"]) == image.shape[:2]
        (found,) = answer["detections"]
        assert found["score"] == pytest.approx((56 + number % 200) / 255)
        assert found["box"][:2] == [number // 20, number // 20]


def test_what_waits_is_detected_together_by_input_size() -> None:
    """Behind a busy detector wait five pictures of one size and two of another; at most three go at once."""
    with running(max_batch=3) as it:
        it.hold()
        answers = []
        for count, size in enumerate([(48, 64)] * 2 + [(50, 70)] * 2 + [(48, 64)] * 3):
            answers.append(it.in_background(encode(picture(GREEN, size))))
            wait_until(lambda count=count: len(it.service.batcher) == count + 1)
        it.detector.gate.set()
        assert [answer.result()[0] for answer in answers] == [200] * 7
        assert [[image.shape[0] for image in batch] for batch in it.detector.batches] == [
            [48],
            [48, 48, 48],
            [50, 50],
            [48, 48],
        ]


def test_a_picture_alone_waits_for_nobody() -> None:
    with running(max_wait_ms=20000) as it:
        start = monotonic()
        assert it.ask(encode(picture(RED)))[0] == 200
        assert monotonic() - start < 5


def test_a_picture_waits_for_one_that_is_being_decoded_but_not_longer_than_allowed() -> None:
    with running(max_wait_ms=300) as it, it.service.batcher.coming():
        start = monotonic()
        assert it.ask(encode(picture(RED)))[0] == 200
        assert 0.25 < monotonic() - start < 5


def test_a_picture_on_which_the_detector_fails_does_not_fail_its_neighbours() -> None:
    def find(image: np.ndarray) -> Detections:
        if image[0, 0, 0] == 0:
            raise RuntimeError("secret of the inside")
        return find_rectangle(image)

    with running(Detector(find)) as it:
        it.hold()
        kinds = [False, True, False]
        answers = [
            it.in_background(encode(np.zeros((48, 64, 3), np.uint8) if bad else picture(GREEN))) for bad in kinds
        ]
        wait_until(lambda: len(it.service.batcher) == 3)
        it.detector.gate.set()
        results = [answer.result() for answer in answers]
        assert [status for status, _ in results] == [500 if bad else 200 for bad in kinds]
        assert results[1][1] == {"error": "the detector failed on this picture; the log of the server says why"}
        assert results[2][1]["detections"][0]["class"] == "green"
        assert it.ask(encode(picture(RED)))[0] == 200


def test_the_picture_of_a_client_that_went_away_is_not_detected() -> None:
    with running() as it:
        it.hold()
        data = encode(picture(GREEN))
        connection = it.raw(f"POST /predict HTTP/1.1\nHost: x\nContent-Length: {len(data)}", data)
        wait_until(lambda: len(it.service.batcher) == 1)
        connection.close()
        wait_until(lambda: len(it.service.batcher) == 0)
        stays = it.in_background(encode(picture(RED, corner=3)))
        wait_until(lambda: len(it.service.batcher) == 1)
        it.detector.gate.set()
        assert stays.result()[0] == 200
        assert len(it.detector.batches) == 2
        wait_until(lambda: it.service.in_flight == 0)
        assert 'path="/predict",status="499"} 1.0' in it.call("GET", "/metrics")[1]


def test_the_query_chooses() -> None:
    data = encode(picture(RED))  # scores 200 / 255 = 0.784
    with running(score_threshold=0.1) as it:

        def count(query: str) -> int:
            status, answer = it.ask(data, query)
            assert status == 200
            return len(answer["detections"])

        assert count("?score_threshold=0.78") == 1
        assert count("?score_threshold=0.79") == 0
        assert count("?classes=red,blue") == count("?classes=red") == 1
        assert count("?classes=blue,%20green") == 0
        assert count("?max_detections=1&score_threshold=0.1") == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?treshold=0.5", "'treshold' is not known; did you mean 'score_threshold'?"),
        ("?score_threshold=2", "score_threshold: .*less than or equal to 1, found '2'"),
        ("?score_threshold=nan", "score_threshold: .*found 'nan'"),
        ("?score_threshold=", "score_threshold: .*found ''"),
        ("?score_threshold=0.01", r"detects from 0\.05 on, found 0\.01; start it with a lower --score-threshold"),
        ("?max_detections=0", "max_detections: .*greater than or equal to 1, found '0'"),
        ("?classes=read", "no class 'read'; did you mean 'red'?"),
        ("?classes=", "no class ''"),
        ("?classes=red&classes=blue", "each name may stand once"),
    ],
)
def test_a_query_that_cannot_be_followed_is_refused(query: str, message: str) -> None:
    with running() as it:
        status, answer = it.ask(encode(picture(RED)), query)
    assert status == 422
    assert list(answer) == ["error"]
    assert re.search(message, answer["error"]), answer
    assert "\n" not in answer["error"]
