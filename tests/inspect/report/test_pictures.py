"""Pictures of the page: small, each once, within a budget; and which examples are shown."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.config import UserError
from detkit.evaluation.analysis import analyse
from detkit.evaluation.store import DetectionStore
from detkit.inspect.report.pictures import LONG_SIDE, MAX_DETECTIONS, PictureBook, example_cards, thumbnail
from detkit.structures import Categories, GroundTruth
from tests.inspect.report.scenes import found, objects, random_store


def decoded(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("size", "shown"), [((1920, 1080), (480, 270)), ((100, 700), (69, 480)), ((90, 60), (90, 60))])
def test_a_picture_is_a_small_jpeg_of_the_same_shape(
    size: tuple[int, int], shown: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.png")
    picture = decoded(thumbnail(str(tmp_path / "a.png"), size))
    assert picture.size == shown
    assert max(picture.size) <= LONG_SIDE
    np.testing.assert_allclose(np.asarray(picture)[0, 0], (200, 100, 50), atol=4)


def test_a_picture_is_embedded_once_for_all_examples_and_detectors(tmp_path: Path) -> None:
    store, book = random_store(1, folder=tmp_path), PictureBook()
    cards = [*example_cards(book, 0, store, analyse(store)), *example_cards(book, 1, store, analyse(store))]
    assert len(cards) >= 4
    assert len(book.pictures) == 1
    assert {card.scene.key for card in cards} == {"scene-0-0", "scene-1-0"}
    assert {card.scene.picture for card in cards} == set(book.pictures)


def test_the_budget_ends_the_pictures_but_not_their_examples(tmp_path: Path) -> None:
    store = random_store(30, folder=tmp_path)
    analysis, book = analyse(store), PictureBook()
    all_cards = example_cards(book, 0, store, analysis)
    one = book.used / len(book.scenes)
    small = PictureBook(limit=round(5 * one))
    cards = example_cards(small, 0, store, analysis)
    assert 4 <= len(small.scenes) <= 6
    assert small.used < 7 * one
    shown = {key for _, key in small.scenes}
    assert len(cards) == sum(int(card.scene.key.split("-")[2]) in shown for card in all_cards)


def test_a_picture_that_cannot_be_read_is_a_plain_ground(tmp_path: Path) -> None:
    store, book = random_store(2, folder=tmp_path), PictureBook()
    assert store.paths is not None
    Path(store.paths[0]).write_bytes(b"no picture")
    scenes = [book.scene(0, store, image) for image in range(2)]
    assert [scene is not None and scene.picture for scene in scenes] == [None, "picture-0"]
    assert len(book.unreadable) == 1
    assert store.paths[0] in book.unreadable[0]
    with pytest.raises(UserError):
        thumbnail(store.paths[0], (10, 10))


def test_the_worst_of_each_kind_and_class_come_first() -> None:
    """Two classes, each with two wrong detections; the second best of one scores more than the best of the other."""
    categories = Categories.of_names(["a", "b"])
    store = DetectionStore(categories, [GroundTruth(1, (100, 100), objects([(0, 0, 9, 9)], [1]))])
    places = [(20, 20, 40, 40), (50, 20, 70, 40), (20, 50, 40, 70), (50, 50, 70, 70)]
    store.update(1, found(categories, places, [0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6]))
    cards = example_cards(PictureBook(), 0, store, analyse(store))
    assert [(card.kind, card.class_name, card.score) for card in cards] == [
        ("false-positive", "a", pytest.approx(0.9)),
        ("false-positive", "b", pytest.approx(0.7)),
        ("missed", "b", None),
        ("false-positive", "a", pytest.approx(0.8)),
        ("false-positive", "b", pytest.approx(0.6)),
    ]
    assert cards[0].detection is not None
    assert cards[0].detection.rect == (20, 20, 20, 20)
    assert cards[2].truth is not None
    assert cards[2].truth.rect == (0, 0, 9, 9)


def test_the_lowest_of_very_many_detections_are_counted_but_not_drawn() -> None:
    categories, many = Categories.of_names(["a"]), MAX_DETECTIONS + 30
    store = DetectionStore(categories, [GroundTruth(1, (100, 100), objects([], []))])
    store.update(1, found(categories, [(0, 0, 9, 9)] * many, [0] * many, np.linspace(1, 0, many).tolist()))
    scene = PictureBook().scene(0, store, 0)
    assert scene is not None
    assert (len(scene.detections), scene.left_out) == (MAX_DETECTIONS, 30)
    assert scene.detections[0].score == 1.0


def test_a_card_says_what_is_wrong() -> None:
    categories = Categories.of_names(["cat", "dog"])
    truth = objects([(0, 0, 20, 20), (50, 50, 90, 90)], [0, 1])
    store = DetectionStore(categories, [GroundTruth(1, (100, 100), truth)])
    boxes = [(0, 0, 20, 20), (50, 50, 90, 80), (60, 0, 80, 20)]
    store.update(1, found(categories, boxes, [1, 1, 0], [0.9, 0.8, 0.7]))
    cards = example_cards(PictureBook(), 0, store, analyse(store))
    titles = {card.title for card in cards}
    assert titles == {"cat taken for dog", "cat missed", "cat, background error", "dog, IoU 0.75"}
