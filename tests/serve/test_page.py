"""The page in a browser: nothing fails, and everything that can be pressed does what it says."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.data.shapes_drawing import CLASS_NAMES, draw_picture
from detkit.structures import Detections
from tests.serve.support import Detector, Running, detections, encode, picture, running, wait_until, with_parts

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

PICTURE, OBJECTS = draw_picture(np.random.default_rng(3))  # of the built-in set
SCORES = [0.9 - 0.8 * number / len(OBJECTS) for number in range(len(OBJECTS))]


def find(image: np.ndarray) -> Detections:
    """The objects that were drawn, and in any other picture one star around all that is dark; in one that is twice as
    wide as high it has a mask and keypoints."""
    if image.shape == PICTURE.shape:
        boxes, labels = [list(it.box) for it in OBJECTS], [it.label for it in OBJECTS]
        return detections(boxes, labels, SCORES, CLASS_NAMES)
    rows, columns = np.nonzero(image.min(axis=2) < 100)
    boxes = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else []
    star = detections(boxes, [CLASS_NAMES.index("star")] * len(boxes), [0.75] * len(boxes), CLASS_NAMES)
    size = (image.shape[0], image.shape[1])
    return with_parts(star, size) if size[1] == 2 * size[0] else star


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(Detector(find, CLASS_NAMES), max_megapixels=1) as it:
        yield it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For pictures to choose, and what is downloaded."""
    folder = tmp_path_factory.mktemp("page")
    Image.fromarray(PICTURE).save(folder / "some.shapes.png")
    return folder


@pytest.fixture(scope="module")
def window(folder: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", *camera):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(window: webdriver.Chrome, served: Running) -> Iterator[webdriver.Chrome]:
    """Nothing may stand on the console but the statuses of requests that were refused, which browsers write there."""
    window.get(f"http://127.0.0.1:{served.port}/")
    wait_until(lambda: "classes" in text(window, "about"))
    yield window
    entries = [
        entry for entry in window.get_log("browser") if "/predict - Failed to load resource" not in entry["message"]
    ]
    assert entries == []


def text(page: webdriver.Chrome, name: str) -> str:
    return page.find_element("id", name).text


def choose(page: webdriver.Chrome, path: Path) -> None:
    page.find_element("id", "file").send_keys(str(path))
    wait_until(lambda: not page.find_element("id", "busy").is_displayed())


def slide(page: webdriver.Chrome, value: float) -> None:
    script = (
        "const it = document.getElementById('score'); it.value = arguments[0]; it.dispatchEvent(new Event('input'))"
    )
    page.execute_script(script, value)


def pixel(page: webdriver.Chrome, x: float, y: float, width: int) -> list[int]:
    """RGB of the canvas in the middle of a pixel of the picture, which is so wide."""
    script = """const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const canvas = document.getElementById('canvas'), zoom = canvas.width / arguments[2];
        copy.drawImage(canvas, -(arguments[0] + 0.5) * zoom, -(arguments[1] + 0.5) * zoom);
        return [...copy.getImageData(0, 0, 1, 1).data]"""
    return page.execute_script(script, x, y, width)[:3]


def picture_size(page: webdriver.Chrome) -> list[int]:
    return page.execute_script("return picture && [picture.width, picture.height]")


def test_a_picture_of_the_built_in_set(page: webdriver.Chrome, folder: Path) -> None:
    assert text(page, "source") == "stand-in"
    assert text(page, "about") == "6 classes on cpu; detections from a score of 0.05 on"
    assert text(page, "hint") == "No picture yet"
    choose(page, folder / "some.shapes.png")
    assert picture_size(page) == list(PICTURE.shape[1::-1])
    assert not page.find_element("id", "hint").is_displayed()
    assert not page.find_element("id", "problem").is_displayed()
    slide(page, 0.05)
    assert text(page, "count") == f"{len(OBJECTS)} of {len(OBJECTS)} detections"
    titles = {title.text for title in page.find_elements("css selector", "#list h2")}
    names = [CLASS_NAMES[it.label] for it in OBJECTS]
    assert titles == {f"{name}: {names.count(name)}" for name in names}


def test_the_picture_and_its_boxes_lie_where_they_should(page: webdriver.Chrome, folder: Path) -> None:
    choose(page, folder / "some.shapes.png")
    slide(page, 1)
    for x, y in ((3, 5), (40, 30), (200, 100)):  # enlarged, a pixel lies between its neighbours
        around = PICTURE[y - 1 : y + 2, x - 1 : x + 2].reshape(9, 3)
        drawn = np.array(pixel(page, x, y, PICTURE.shape[1]))
        assert (drawn >= around.min(axis=0) - 1).all()
        assert (drawn <= around.max(axis=0) + 1).all()
    slide(page, 0.05)
    x1, _, x2, y2 = OBJECTS[0].box
    corners = [pixel(page, x - 0.5, y2 - 3, PICTURE.shape[1]) for x in (x1, x2)]
    assert corners[0] == corners[1], "both sides of the first box have the colour of its class"
    assert not np.array_equal(corners[0], PICTURE[y2 - 3, x1])


def test_the_slider_hides_what_scores_less(page: webdriver.Chrome, folder: Path) -> None:
    choose(page, folder / "some.shapes.png")
    for threshold in (0.05, 0.5, 0.88, 1):
        slide(page, threshold)
        expected = sum(score >= threshold for score in SCORES)
        assert text(page, "threshold") == f"{threshold:.2f}"
        assert text(page, "count") == f"{expected} of {len(OBJECTS)} detections"
        assert len(page.find_elements("css selector", ".rows button")) == expected


def test_a_row_points_at_its_box(page: webdriver.Chrome, folder: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    choose(page, folder / "some.shapes.png")
    slide(page, 0.05)
    picture_of = "return document.getElementById('canvas').toDataURL()"
    before = page.execute_script(picture_of)
    row = page.find_element("css selector", ".rows button")
    ActionChains(page).move_to_element(row).perform()
    assert page.execute_script(picture_of) != before
    ActionChains(page).move_to_element(page.find_element("id", "count")).perform()
    assert page.execute_script(picture_of) == before


def download(page: webdriver.Chrome, button: str, path: Path) -> str:
    path.unlink(missing_ok=True)
    page.find_element("id", button).click()
    wait_until(path.is_file)
    return path.read_text(encoding="utf-8")


def test_the_downloads_hold_what_is_above_the_slider(page: webdriver.Chrome, folder: Path) -> None:
    assert not page.find_element("id", "coco").is_enabled()
    choose(page, folder / "some.shapes.png")
    slide(page, 0.5)
    shown = [(it, score) for it, score in zip(OBJECTS, SCORES, strict=True) if score >= 0.5]
    assert 0 < len(shown) < len(OBJECTS)
    height, width = PICTURE.shape[:2]

    coco = json.loads(download(page, "coco", folder / "some.shapes.json"))
    assert coco["images"] == [{"id": 1, "file_name": "some.shapes.png", "width": width, "height": height}]
    assert coco["categories"] == [{"id": number + 1, "name": name} for number, name in enumerate(CLASS_NAMES)]
    assert [it["id"] for it in coco["annotations"]] == list(range(1, len(shown) + 1))
    for annotation, (drawn, score) in zip(coco["annotations"], shown, strict=True):
        x1, y1, x2, y2 = drawn.box
        assert annotation["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
        assert annotation["area"] == pytest.approx((x2 - x1) * (y2 - y1))
        assert annotation["score"] == pytest.approx(score)
        assert (annotation["category_id"], annotation["image_id"], annotation["iscrowd"]) == (drawn.label + 1, 1, 0)

    lines = download(page, "yolo", folder / "some.shapes.txt").splitlines()
    for line, (drawn, _) in zip(lines, shown, strict=True):
        label, x, y, w, h = map(float, line.split())
        x1, y1, x2, y2 = drawn.box
        assert label == drawn.label
        assert [(x - w / 2) * width, (y - h / 2) * height] == pytest.approx([x1, y1], abs=1e-3)
        assert [(x + w / 2) * width, (y + h / 2) * height] == pytest.approx([x2, y2], abs=1e-3)


def test_masks_and_keypoints_lie_where_they_should(page: webdriver.Chrome, folder: Path) -> None:
    """A rectangle (40, 40, 60, 50) in white: its left half is the mask, its first corner the likely keypoint.

    The last column of the mask is shorter than those before, and ends where they do.
    """
    Image.fromarray(picture((0, 0, 0), (100, 200), corner=40)).save(folder / "parts.png")
    choose(page, folder / "parts.png")
    slide(page, 0.5)
    masked, beside, beyond = (pixel(page, x, 45, 200) for x in (46, 54, 70))
    assert min(beyond) == 255
    assert min(min(pixel(page, 49, y, 200)) for y in (55, 65, 75)) == 255
    assert max(beside) < 20
    assert max(masked) > 60, "the colour of the class over black"
    corner, unlikely = (pixel(page, x, y, 200) for x, y in ((39, 39), (60.5, 50.5)))
    assert min(corner) < 220, "a dot of the colour of the class"
    assert min(unlikely) > 200
    coco = json.loads(download(page, "coco", folder / "parts.json"))
    (annotation,) = coco["annotations"]
    assert annotation["segmentation"]["size"] == [100, 200]
    assert annotation["keypoints"] == [39.5, 39.5, 2, 0, 0, 0]
    assert coco["categories"][0]["keypoints"] == ["first", "last"]


def turned(path: Path, orientation: int) -> Path:
    """A photo that EXIF turns upright: 160 x 96 px (w x h), white, dark in (24, 24, 44, 34)."""
    upright = Image.fromarray(picture((0, 0, 0), (96, 160), corner=24))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that EXIF's turns are undone by
    lying = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying.save(path, exif=exif, quality=100)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_line_up(page: webdriver.Chrome, folder: Path, orientation: int, suffix: str) -> None:
    """The dark rectangle, as the browser draws the photo, lies in the box that the server has for it."""
    choose(page, turned(folder / f"turned.{suffix}", orientation))
    assert picture_size(page) == [160, 96]
    assert text(page, "count") == "1 of 1 detection"
    assert page.find_element("css selector", ".rows button").get_attribute("title") == "24, 24, 44, 34"
    assert not page.find_element("id", "note").is_displayed()
    slide(page, 1)
    inside, outside = [(26, 26), (42, 32)], [(20, 20), (48, 38), (26, 40), (120, 70)]
    assert all(max(pixel(page, *place, 160)) < 60 for place in inside)
    assert all(min(pixel(page, *place, 160)) > 200 for place in outside)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_the_browser_does_not_turn_is_not_shown_wrong(
    page: webdriver.Chrome, folder: Path, orientation: int
) -> None:
    """Chromium shows a WebP as it lies in its file."""
    choose(page, turned(folder / "turned.webp", orientation))
    assert picture_size(page) == [160, 96]
    assert page.find_element("css selector", ".rows button").get_attribute("title") == "24, 24, 44, 34"
    note = page.find_element("id", "note")
    assert note.is_displayed() == (orientation > 1)
    assert note.text.startswith("This browser does not turn this picture" if orientation > 1 else "")
    slide(page, 1)
    assert (pixel(page, 120, 70, 160) == [0, 0, 0]) == (orientation > 1), "nothing is drawn there"


def test_a_kind_that_the_browser_cannot_show(page: webdriver.Chrome, folder: Path) -> None:
    Image.fromarray(picture((0, 0, 0))).save(folder / "a.tif")
    choose(page, folder / "a.tif")
    assert text(page, "note").startswith("This browser cannot show pictures of this kind")
    assert picture_size(page) == [64, 48]
    assert text(page, "count") == "1 of 1 detection"


def test_errors_are_in_plain_words(page: webdriver.Chrome, folder: Path) -> None:
    (folder / "letter.jpg").write_bytes(b"Dear sir")
    choose(page, folder / "letter.jpg")
    assert text(page, "problem").startswith("This picture cannot be read. The server says: ")
    Image.fromarray(np.zeros((1001, 1000, 3), np.uint8)).save(folder / "large.png")
    choose(page, folder / "large.png")
    assert text(page, "problem").startswith("This picture is too large. The server says: expected at most 1 megapixels")
    choose(page, folder / "some.shapes.png")
    assert not page.find_element("id", "problem").is_displayed()


def test_a_picture_is_dropped_or_pasted(page: webdriver.Chrome) -> None:
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (it) => it.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.body.dispatchEvent(arguments[1] === "drop"
            ? new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: carried, bubbles: true }))"""
    for way, size in (("drop", (50, 70)), ("paste", (60, 80))):
        data = base64.b64encode(encode(picture((0, 0, 0), size))).decode()
        page.execute_script(script, data, way)
        wait_until(lambda size=size: picture_size(page) == [size[1], size[0]])
        assert text(page, "count") == "1 of 1 detection"


def test_the_camera(page: webdriver.Chrome, served: Running, folder: Path) -> None:
    """Chromium's stand-in for a camera; frame after frame, until a file is chosen or the button pressed again."""
    camera = page.find_element("id", "camera")
    before = served.service.batcher.pictures
    camera.click()
    wait_until(lambda: served.service.batcher.pictures >= before + 5)
    assert camera.get_attribute("aria-pressed") == "true"
    assert picture_size(page) == [640, 480]
    camera.click()
    assert camera.get_attribute("aria-pressed") == "false"
    wait_until(lambda: served.service.in_flight == 0)
    camera.click()
    wait_until(lambda: camera.get_attribute("aria-pressed") == "true")
    choose(page, folder / "some.shapes.png")
    assert camera.get_attribute("aria-pressed") == "false"
    wait_until(lambda: served.service.in_flight == 0)
    assert picture_size(page) == list(PICTURE.shape[1::-1])


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_runs_over_the_side(page: webdriver.Chrome, folder: Path, width: int) -> None:
    size: dict[str, Any] = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        choose(page, folder / "some.shapes.png")
        wide = page.execute_script("const it = document.documentElement; return [it.scrollWidth, it.clientWidth]")
        assert wide[0] == wide[1] <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_loads_nothing_from_elsewhere(page: webdriver.Chrome, served: Running) -> None:
    _, _, headers = served.call("GET", "/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((it) => it.name)")
    assert loaded
    assert all(url.startswith((f"http://127.0.0.1:{served.port}/", "data:")) for url in loaded)
    refused = page.execute_async_script(
        "const done = arguments[0]; fetch('http://localhost:9/').then(() => done('loaded'), () => done('refused'))"
    )
    assert refused == "refused"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))
