"""The page in a browser: nothing fails, and everything that can be pressed does what it says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from detkit.evaluation.comparison import Comparison, Interval
from detkit.inspect.report.page import render
from tests.inspect.report.scenes import random_store, subject

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two detectors on twelve images with pictures."""
    folder = tmp_path_factory.mktemp("page")
    two = [subject(random_store(12, folder=folder / "pictures", seed=0), "A&A"), subject(random_store(12, seed=0), "B")]
    per_class = {"cat": Interval(0.1, 0.02, 0.2), "dog": Interval(-0.05, -0.1, 0.02)}
    compared = Comparison(0.4, 0.5, per_class["cat"], per_class, "COCO AP", 100, 0, np.array([1, -1] + [0] * 10))
    path = folder / "report.html"
    path.write_text(render(two, compared), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def window() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(window: webdriver.Chrome, page_file: Path) -> Iterator[webdriver.Chrome]:
    window.get(page_file.as_uri())
    yield window
    assert window.get_log("browser") == [], "an error on the console"


def shown_cards(page: webdriver.Chrome, attribute: str) -> list[str]:
    """The attribute of each card of the first detector that is shown, in the order of the page."""
    script = """return [...document.querySelectorAll('.gallery:not([hidden]) .card')]
        .filter((card) => !card.hidden).map((card) => card.getAttribute('data-' + arguments[0]))"""
    return page.execute_script(script, attribute)


def choose(page: webdriver.Chrome, selector: str, value: str) -> None:
    script = """const it = document.querySelector('.panel:not([hidden]) ' + arguments[0]); it.value = arguments[1];
        it.dispatchEvent(new Event(it.type === 'range' ? 'input' : 'change'))"""
    page.execute_script(script, selector, value)


def click(page: webdriver.Chrome, selector: str) -> None:
    element = page.find_element("css selector", selector)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def press(page: webdriver.Chrome, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(key).perform()


def test_the_slider_hides_what_scores_less(page: webdriver.Chrome) -> None:
    visible = """return [...document.querySelectorAll('.store [id^=scene-0-] [data-score]')].map(
        (box) => [Number(box.dataset.score), getComputedStyle(box).display !== 'none'])"""
    for threshold in (0.0, 0.5, 0.9):
        choose(page, ".by-score", str(threshold))
        boxes = page.execute_script(visible)
        assert len(boxes) > 20
        assert all(shown == (score >= threshold) for score, shown in boxes)
        scores = [float(score) for score in shown_cards(page, "score") if score]
        assert all(score >= threshold for score in scores)
    assert "missed" in shown_cards(page, "kind"), "an object that is missed has no score and stays"
    assert page.find_element("css selector", ".panel:not([hidden]) output").text == "0.90"


def test_the_slider_starts_where_f1_is_best(page: webdriver.Chrome) -> None:
    slider = page.find_element("css selector", ".gallery .by-score")
    assert float(slider.get_attribute("value")) == pytest.approx(float(slider.get_attribute("data-best")), abs=0.006)


def test_each_detector_has_its_own_threshold(page: webdriver.Chrome) -> None:
    """The pictures that changed show each with the detections that count for it."""
    hidden = """return [0, 1].map((number) => document.querySelectorAll(
        `.store [id^=scene-${number}-] [data-score].off`).length)"""
    before = page.execute_script(hidden)
    choose(page, ".by-score", "1")
    after = page.execute_script(hidden)
    assert after[0] > before[0]
    assert after[1] == before[1] > 0


def test_a_class_and_a_kind_can_be_chosen(page: webdriver.Chrome) -> None:
    choose(page, ".by-score", "0")
    assert set(shown_cards(page, "class")) == {"cat", "dog"}
    choose(page, ".by-class", "dog")
    assert set(shown_cards(page, "class")) == {"dog"}
    choose(page, ".by-kind", "missed")
    assert set(shown_cards(page, "kind")) == {"missed"}
    assert set(shown_cards(page, "class")) == {"dog"}
    choose(page, ".by-class", "")
    choose(page, ".by-kind", "")
    assert set(shown_cards(page, "class")) == {"cat", "dog"}


def test_pictures_can_be_sorted(page: webdriver.Chrome) -> None:
    choose(page, ".by-score", "0")
    choose(page, ".by-order", "score")
    scores = [float(score) if score else -1.0 for score in shown_cards(page, "score")]
    assert scores == sorted(scores, reverse=True)
    choose(page, ".by-order", "iou")
    ious = [float(iou) if iou else 2.0 for iou in shown_cards(page, "iou")]
    assert ious == sorted(ious), "what has none is last"
    choose(page, ".by-order", "class")
    classes = shown_cards(page, "class")
    assert classes == sorted(classes)
    choose(page, ".by-order", "name")
    numbers = [int(name.split()[0]) for name in shown_cards(page, "name")]
    assert numbers == sorted(numbers), "10 comes after 9"


def test_a_table_is_sorted_by_a_click_and_back_by_another(page: webdriver.Chrome) -> None:
    def column(number: int) -> list[str]:
        script = """return [...document.querySelectorAll('#comparison tbody tr')]
            .map((row) => row.cells[arguments[0]].textContent.trim())"""
        return page.execute_script(script, number)

    assert column(0) == ["cat", "dog"]
    head = "#comparison thead th:nth-child(2)"
    click(page, f"{head} button")
    assert page.find_element("css selector", head).get_attribute("aria-sort") == "descending"
    assert column(0) == ["cat", "dog"]
    click(page, f"{head} button")
    assert page.find_element("css selector", head).get_attribute("aria-sort") == "ascending"
    assert column(0) == ["dog", "cat"]
    click(page, "#comparison thead th:nth-child(1) button")
    assert column(0) == ["cat", "dog"], "a column of names rises first"


def test_a_click_enlarges_arrows_go_on_and_escape_closes(page: webdriver.Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    choose(page, ".by-score", "0")
    label = "return document.querySelector('dialog[open] svg')?.getAttribute('aria-label') ?? null"
    assert page.execute_script(label) is None
    click(page, ".gallery:not([hidden]) .card")
    first = page.execute_script(label)
    assert first is not None
    width = "return document.querySelector(arguments[0]).getBoundingClientRect().width"
    large, small = (page.execute_script(width, where) for where in ("dialog svg", ".gallery .card svg"))
    assert large > 2 * small
    press(page, Keys.ARROW_RIGHT)
    second = page.execute_script(label)
    assert second not in (None, first)
    press(page, Keys.ARROW_LEFT)
    assert page.execute_script(label) == first
    press(page, Keys.ESCAPE)
    assert page.execute_script(label) is None
    click(page, ".pairs .card")
    assert page.execute_script("return document.querySelectorAll('dialog[open] svg').length") == 2
    click(page, "dialog .close")
    assert page.execute_script(label) is None


def test_a_card_opens_from_the_keyboard(page: webdriver.Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.querySelector('.gallery .card:not([hidden])').focus()")
    press(page, Keys.ENTER)
    assert page.execute_script("return document.querySelector('dialog').open")
    press(page, Keys.ESCAPE)
    assert page.execute_script("return document.activeElement.classList.contains('card')"), "the focus comes back"


def test_light_and_dark(page: webdriver.Chrome) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    brightness = []
    for _ in range(3):
        colour = page.execute_script(ground)
        brightness.append(sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")))
        click(page, "#theme")
    assert brightness[0] > 600 > 200 > brightness[1]
    assert brightness[2] == brightness[0]
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.refresh()
    dark = page.execute_script(ground)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert sum(map(int, dark[4:-1].split(","))) == brightness[1], "as the system says"


def test_of_two_detectors_one_is_shown(page: webdriver.Chrome) -> None:
    shown = "return [...document.querySelectorAll('.panel')].filter((it) => !it.hidden).map((it) => it.dataset.panel)"
    assert set(page.execute_script(shown)) == {"d1"}
    click(page, "[data-show='d2']")
    assert set(page.execute_script(shown)) == {"d2"}
    assert shown_cards(page, "kind"), "its pictures are there"


def test_a_class_of_the_curves_is_chosen_with_its_best_threshold(page: webdriver.Chrome) -> None:
    lines = """return [...document.querySelectorAll('.panel:not([hidden]) .curves .line')]
        .filter((line) => !line.classList.contains('dim')).map((line) => line.dataset.name)"""
    dots = """return [...document.querySelectorAll('.panel:not([hidden]) circle.best:not([hidden])')]
        .map((it) => it.cx.baseVal.value)"""
    assert page.execute_script(lines) == ["cat", "dog", "cat", "dog"]
    assert page.execute_script(dots) == []
    choose(page, ".curve-class", "dog")
    assert page.execute_script(lines) == ["dog", "dog"]
    row = page.find_element("css selector", ".panel:not([hidden]) table.best tr[data-class='dog']")
    threshold = float(row.find_element("css selector", "td").get_attribute("data-sort"))
    assert page.execute_script(dots)[1] == pytest.approx(400 * threshold, abs=0.1)


@pytest.mark.parametrize("width", [375, 800, 1280])
def test_nothing_is_wider_than_the_window(page: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_whole_without_scripts(page_file: Path, window: webdriver.Chrome) -> None:
    window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    window.get(page_file.as_uri())
    cards = window.find_elements("css selector", ".gallery .card")
    displayed = [card.is_displayed() for card in cards[:5]]
    window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert displayed == [True] * 5
