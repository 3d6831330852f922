"""The page as text: it stands alone, escapes what it is given, and says what is not there."""

import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detkit.evaluation.comparison import Comparison, Interval
from detkit.evaluation.evaluator import ProtocolResult
from detkit.evaluation.protocols import PROTOCOLS
from detkit.evaluation.store import DetectionStore
from detkit.inspect.doctor.findings import Diagnosis, Finding, Place, Table
from detkit.inspect.report.page import PROTOCOL_TITLES, render
from detkit.inspect.report.run_record import RunRecord, training_charts
from detkit.structures import Categories, GroundTruth
from tests.inspect.report.scenes import NASTY, Page, found, objects, random_store, subject

RECORDS = [
    {"kind": "train", "step": 10, "epoch": 1, "lr": 0.1, "loss": 2.0, "box": 1.5, "grad_norm": 3.0},
    {"kind": "train", "step": 20, "epoch": 1, "lr": 0.05, "loss": 1.0, "box": 0.5, "grad_norm": 3.0},
    {"kind": "val", "step": 20, "epoch": 1, "mAP": 0.5},
]


def comparison(gains: list[int], per_class: dict[str, Interval]) -> Comparison:
    overall = next(iter(per_class.values()))
    return Comparison(0.4, 0.5, overall, per_class, "COCO AP", 10_000, 7, np.array(gains))


@pytest.fixture
def full(tmp_path: Path) -> Page:
    """Everything that a page can have, with names that break one that does not escape them."""
    stores = [random_store(6, (NASTY, "dog"), tmp_path / "pictures", seed=seed) for seed in (0, 0)]
    record = RunRecord(
        "name: <script>alert(1)</script>", [("seed", "3"), ("x", NASTY)], ["a & b"], training_charts(RECORDS)
    )
    one = replace(subject(stores[0], f"runs/{NASTY}"), run=record)
    place = Place("train", "7", f"/data/{NASTY}.jpg", None, NASTY)
    diagnosis = Diagnosis(
        f"data {NASTY}",
        [Finding("box-twice", "warning", 2, 9, f"drawn {NASTY} twice", "remove <one>", [place])],
        [Table(f"by {NASTY}", ["class", "train"], [[NASTY, 3], ["dog", 0.25]])],
    )
    per_class = {NASTY: Interval(0.1, 0.05, 0.2), "dog": Interval(math.nan, math.nan, math.nan)}
    compared = comparison([2, 0, 0, -1, 0, 0], per_class)
    return Page(render([one, subject(stores[1], "runs/two")], compared, diagnosis))


def test_nothing_is_fetched_from_anywhere(full: Page) -> None:
    references = [value for name in ("src", "href", "data", "action") for value in full.values(name)]
    assert references
    assert all(reference.startswith(("#", "data:image/jpeg;base64,")) for reference in references)
    html = full.html
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", html)


def test_ids_are_distinct_and_every_reference_has_its_target(full: Page) -> None:
    ids = full.values("id")
    assert len(ids) == len(set(ids))
    targets = {reference[1:] for reference in full.values("href") if reference.startswith("#")}
    assert targets <= set(ids)
    assert {"headline", "comparison", "scores", "errors", "pictures", "run", "doctor"} <= targets


def test_names_are_text_and_never_markup(full: Page) -> None:
    assert "b" not in [tag for tag, attributes in full.tags if tag == "b" and "script" in attributes]
    html = full.html
    assert '<b>"&' not in html
    assert "<script>alert" not in html
    assert full.values("data-class").count(NASTY) > 0, "as an attribute it is whole"
    for text in (f"runs/{NASTY}", f"drawn {NASTY} twice", f"/data/{NASTY}.jpg: {NASTY}", "remove <one>", f"by {NASTY}"):
        assert text in full.text
    assert len([tag for tag, _ in full.tags if tag == "script"]) == 1


def test_a_picture_is_embedded_once(full: Page) -> None:
    pictures = [attributes["href"] for tag, attributes in full.tags if tag == "image"]
    assert len(pictures) == len(set(pictures)) == 6
    assert full.html.count("data:image/jpeg") == 6


def test_every_part_is_there_with_its_sentence(full: Page) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>\s*(?:<div[^>]*>|<h3>.*?</h3>|\s)*<", full.html, re.S)
    assert headings == ["Headline", "Difference", "Scores by class", "Errors", "Pictures", "The run", "Doctor"]
    for text in ("More than noise: B is better", "10,000 resamples", "seed 7", "+2 for B", "-1 for B", "2 of 9"):
        assert text in full.text
    assert "noise" in full.text.split("dog")[1], "a difference that is not known is not a difference"


def test_pictures_and_charts_have_a_text_for_those_who_do_not_see_them(full: Page) -> None:
    drawings = [attributes for tag, attributes in full.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert drawings
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert ("html", {"lang": "en"}) in full.tags


def test_protocols_stand_with_their_rules_and_sizes() -> None:
    one = subject(random_store(6))
    text = Page(render([one])).text
    for result in one.evaluation.results.values():
        assert f"{result.score:.3f} {result.rules}" in text
    assert "6 images 18 objects of 2 classes 0 ignored 18 detections" in text


def test_masks_have_a_tile_and_numbers_of_their_own_and_the_rest_is_about_boxes() -> None:
    one = subject(random_store(6))
    assert "about the boxes of the detections" not in Page(render([one])).text
    measured = {"AP": 0.123, "AP50": 0.456}
    masks = ProtocolResult("rules of masks", "AP", measured, {"cat": 0.123, "dog": 0.123})
    results = {**one.evaluation.results, "coco_segm": masks}
    text = Page(render([replace(one, evaluation=replace(one.evaluation, results=results))])).text
    assert "COCO masks AP 0.123 rules of masks" in text
    assert "COCO masks: the 2 numbers AP 0.123 AP50 0.456" in text
    assert "COCO: the 12 numbers AP 0." in text
    assert "Everything below is about the boxes of the detections." in text


def test_examples_say_what_they_are(full: Page) -> None:
    one = subject(random_store(6, folder=None))
    cards = Page(render([one])).cards()
    kinds = {card["data-kind"] for card in cards}
    assert kinds == {"false-positive", "missed", "loose"}
    first = next(card for card in cards if card["data-kind"] == "false-positive")
    worst = max((example for example in one.analysis.false_positives), key=lambda example: example.score or 0)
    assert float(first["data-score"]) == pytest.approx(worst.score, abs=1e-4)
    assert all(card["data-score"] == "" for card in cards if card["data-kind"] == "missed")


def test_without_pictures_boxes_are_on_a_plain_ground_of_the_size_of_the_image() -> None:
    page = Page(render([subject(random_store(3))]))
    grounds = [attributes for _, attributes in page.tags if attributes.get("class") == "ground"]
    assert len(grounds) == 3
    assert {(ground["width"], ground["height"]) for ground in grounds} == {("160", "120")}
    assert "image" not in [tag for tag, _ in page.tags]


def store_of(boxes: list[tuple[float, float, float, float]], ignored: bool, names: tuple[str, ...]) -> DetectionStore:
    categories = Categories.of_names(names)
    truth = objects(boxes, [0] * len(boxes), [ignored] * len(boxes))
    return DetectionStore(categories, [GroundTruth("a", (50, 60), truth)])


@pytest.mark.parametrize("names", [("only",), ("one", "two")])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("detected", [False, True])
@pytest.mark.parametrize("num_objects", [0, 1])
def test_little_or_nothing_to_show(names: tuple[str, ...], ignored: bool, detected: bool, num_objects: int) -> None:
    box = (5.0, 5.0, 30.0, 30.0)
    store = store_of([box] * num_objects, ignored, names)
    detections = ([box], [0], [0.5]) if detected else ((), (), ())
    store.update("a", found(store.categories, *detections))
    page = Page(render([subject(store)]))
    assert f"{1 if detected else 0} detections" in page.text
    if not num_objects or ignored:
        assert "There is no object that counts, so there are no curves." in page.text
    assert "nan" not in page.html.lower().replace("isnan", "")


def test_five_thousand_images_and_eighty_classes_stay_small() -> None:
    one = subject(random_store(5_000, [f"class {number}" for number in range(80)]))
    started = time.perf_counter()
    html = render([one])
    seconds = time.perf_counter() - started
    assert len(html.encode()) < 5e6
    assert seconds < 20
    print(f"{len(html) / 1e6:.2f} MB in {seconds:.1f} s")


def test_the_pictures_of_two_detectors_stay_below_fifteen_megabytes(tmp_path: Path) -> None:
    """Noise makes the largest JPEGs: 400 of them would be more than 50 MB."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (360, 480, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=95)
    stores = [random_store(400, seed=seed, scale=3) for seed in (0, 1)]
    for number in range(400):
        (tmp_path / f"{number}.jpg").hardlink_to(tmp_path / "noise.jpg")
    for store in stores:
        store.paths = tuple(str(tmp_path / f"{number}.jpg") for number in range(400))
    gains = np.random.default_rng(0).integers(-2, 3, 400)
    two = [subject(store, name) for store, name in zip(stores, "ab", strict=True)]
    page = Page(render(two, comparison(gains.tolist(), {"cat": Interval(0.1, -0.1, 0.3)})))
    assert 8e6 < len(page.html) < 12e6
    shown = [re.findall(r"Here are (\d+) of ([\d,]+)", page.text)[number] for number in (0, 1)]
    assert all(int(some) < int(everything.replace(",", "")) for some, everything in shown)
    first, second = (int(some) for some, _ in shown)
    assert second > 0.7 * first, "the first leaves room to the second"


def test_every_protocol_has_a_title() -> None:
    assert tuple(PROTOCOL_TITLES) == PROTOCOLS
