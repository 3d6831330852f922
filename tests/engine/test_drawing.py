"""Boxes and names on pictures: where labels lie, which colours, which letters."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from detkit.config import UserError
from detkit.engine import lettering
from detkit.engine.drawing import (
    BLACK,
    GREY,
    OPACITY,
    WHITE,
    DrawingStyle,
    Trails,
    colour_of,
    contrast,
    draw,
    draw_keypoints,
    draw_masks,
    letter_height,
    thickness_for,
)
from detkit.engine.label_layout import LabelLayout, Rectangle
from detkit.engine.lettering import default_font, font_for, notes_on_fonts, render
from detkit.nn.selection import KEYPOINT_SCORES
from detkit.structures import Categories, Detections, KeypointCategories, MaskCrops, Objects

NAMES = ("cat", "dog")
LABEL = (8, 20)  # (h, w) px


def detections(
    boxes: list[Rectangle], labels: list[int], tracks: list[int] | None = None, names: tuple[str, ...] = NAMES
) -> Detections:
    scores = torch.linspace(0.9, 0.5, len(boxes)) if boxes else torch.zeros(0)
    objects = Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        scores=scores,
        track_ids=None if tracks is None else torch.tensor(tracks, dtype=torch.int64),
    )
    return Detections(objects, Categories.of_names(names))


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 30, 50, 60), (10, 22, 30, 30)),  # above, at the left corner
        ((10, 3, 50, 60), (10, 61, 30, 69)),  # no room above: below
        ((90, 30, 99, 60), (80, 22, 100, 30)),  # shifted onto the picture
        ((10, 3, 50, 97), (10, 3, 30, 11)),  # neither above nor below: inside
    ],
)
def test_a_label_lies_at_its_box(box: Rectangle, expected: Rectangle) -> None:
    spot = LabelLayout((100, 100)).place(box, LABEL)
    assert spot is not None
    assert (spot.rectangle, spot.away) == (expected, False)


def test_labels_of_one_box_give_way_to_each_other_and_end_when_there_is_no_room() -> None:
    """A picture of 24 x 40 px has room for three rows of two labels of 8 x 20."""
    layout, taken = LabelLayout((24, 40)), np.zeros((24, 40), np.int64)
    spots = [layout.place((0, 8, 39, 15), LABEL) for _ in range(7)]
    assert [spot is None for spot in spots] == [False] * 6 + [True]
    for spot in spots[:6]:
        assert spot is not None
        x1, y1, x2, y2 = spot.rectangle
        taken[y1:y2, x1:x2] += 1
    assert taken.min() == taken.max() == 1


def test_a_label_away_from_its_box_has_a_line_to_it() -> None:
    layout = LabelLayout((200, 200))
    spots = [layout.place((100, 100, 104, 104), LABEL) for _ in range(30)]
    away = [spot.away for spot in spots if spot is not None]
    assert not away[0]
    assert away[-1]
    assert away == sorted(away)  # the nearest first


@pytest.mark.parametrize("seed", range(3))
def test_no_label_covers_another_in_a_crowd(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout, taken = LabelLayout((400, 600)), np.zeros((400, 600), np.int64)
    for _ in range(150):
        x, y = int(rng.integers(0, 580)), int(rng.integers(0, 380))
        label = (int(rng.integers(10, 20)), int(rng.integers(20, 90)))
        spot = layout.place((x, y, min(599, x + 60), min(399, y + 40)), label)
        if spot is not None:
            x1, y1, x2, y2 = spot.rectangle
            assert 0 <= x1 < x2 <= 600
            assert 0 <= y1 < y2 <= 400
            assert (y2 - y1, x2 - x1) == label
            taken[y1:y2, x1:x2] += 1
    assert taken.max() == 1


def test_colours_of_classes_differ() -> None:
    """In CIELAB, where about 2.3 is a just noticeable difference, and lines a few px wide need several times that."""
    colours = np.array([colour_of(index) for index in range(160)], np.uint8)
    lab = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances[:80, :80].min() > 15
    assert distances.min() > 10
    assert colour_of(5) == colour_of(5 + 160)


@pytest.mark.parametrize(("colour", "expected"), [(BLACK, WHITE), (WHITE, BLACK), ((255, 255, 0), BLACK)])
def test_text_can_be_read_on_its_colour(colour: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    assert contrast(colour) == expected


def test_thickness_and_letters_grow_with_the_picture() -> None:
    sizes = [(48, 64), (480, 640), (1080, 1920), (3000, 4000)]
    assert [thickness_for(size) for size in sizes] == sorted({thickness_for(size) for size in sizes})
    assert [letter_height(size) for size in sizes] == sorted({letter_height(size) for size in sizes})


def test_the_best_is_on_top_and_the_picture_stays_as_it_is() -> None:
    image = gray(200, 300)
    drawing = draw(image, detections([(50, 60, 200, 160), (50, 60, 200, 160)], [1, 0]), DrawingStyle(thickness=1))
    assert np.array_equal(image, gray(200, 300))
    assert tuple(drawing[159, 120]) == colour_of(1)
    assert tuple(drawing[120, 50]) == tuple(drawing[120, 199]) == colour_of(1)
    assert tuple(drawing[120, 49]) == tuple(drawing[120, 200]) == (90, 90, 90)  # where the box begins and ends
    assert tuple(drawing[120, 120]) == (90, 90, 90)


def test_a_line_has_an_edge_that_contrasts() -> None:
    """On a picture of its own colour it would not be seen."""
    image = np.full((100, 100, 3), colour_of(0), np.uint8)
    drawing = draw(image, detections([(20, 40, 80, 90)], [0]), DrawingStyle(thickness=2))
    assert (drawing[60:85, 10:30] == contrast(colour_of(0))).all(axis=2).any()


def test_scores_and_names() -> None:
    box = [(10, 40, 150, 90)]
    with_score = draw(gray(100, 200), detections(box, [0]))
    without = draw(gray(100, 200), detections(box, [0]), DrawingStyle(show_scores=False))
    width = {True: render("cat 0.90", 10, WHITE, BLACK).shape[1], False: render("cat", 10, WHITE, BLACK).shape[1]}
    for drawing, shown in ((with_score, True), (without, False)):
        row = (drawing[30, 10:] == colour_of(0)).all(axis=1)  # within the label, above its letters or between them
        assert letter_height((100, 200)) == 10
        assert np.flatnonzero(row).max() + 1 == width[shown]


def test_tracks_have_colours_numbers_and_trails() -> None:
    """The middle of one track goes from (30, 80) to (110, 80); the other has no number yet."""
    style, trails = DrawingStyle(by="track", thickness=1), Trails()
    for x in range(10, 91, 20):
        frame = detections([(x, 60, x + 40, 100), (150, 60, 190, 100)], [0, 0], [7, -1])
        drawing = draw(gray(150, 250), frame, style, trails)
    assert tuple(drawing[99, 120]) == colour_of(7)
    assert tuple(drawing[99, 170]) == GREY
    assert np.abs(drawing[80, 35:85].astype(int) - colour_of(7)).max() < 40  # smooth lines are blended
    assert (drawing[80, 135:145] == 90).all()
    plain = draw(gray(150, 250), frame, style)
    assert (plain[80, 35:85] == 90).all()


def test_a_trail_ends() -> None:
    trails = Trails(length=3)
    for x in range(5):
        trails.follow(detections([(x, 0, x + 2, 2)], [0], [4]))
    assert list(trails.points[4]) == [(3, 1), (4, 1), (5, 1)]
    trails.follow(detections([], [], []))
    assert trails.points == {}
    trails.follow(detections([(0, 0, 2, 2)], [0], [-1]))
    trails.follow(detections([(0, 0, 2, 2)], [0]))
    assert trails.points == {}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (48, 64), (700, 8)])
def test_pictures_of_any_size(height: int, width: int) -> None:
    frame = detections([(0, 0, width, height), (0, 0, max(1, width // 2), height)], [0, 1], names=("x" * 100, "y"))
    assert draw(gray(height, width), frame).shape == (height, width, 3)
    assert np.array_equal(draw(gray(height, width), detections([], [])), gray(height, width))


# ---- masks and keypoints

RED, BLUE = (250, 0, 0), (0, 0, 250)
POINTS = KeypointCategories(("left", "right", "top"), ((0, 1),), ((0, 2), (1, 2)))
PERSON = np.array([[[20.5, 60.5, 2], [80.5, 60.5, 2], [50.5, 20.5, 2]]], np.float32)


def ring_and_square() -> MaskCrops[np.ndarray]:
    """Of a picture of 100 x 120: 30 x 40 px from (10, 20) with a hole of 10 x 10 in it, and 20 x 20 over its end."""
    ring = np.ones((30, 40), np.bool_)
    ring[10:20, 10:20] = False
    return MaskCrops.of([ring, np.ones((20, 20), np.bool_)], [(10, 20, 50, 50), (40, 30, 60, 50)])


def blend(*colours: tuple[int, int, int]) -> list[float]:
    """Grey under these colours, one over the other."""
    value = np.full(3, 90.0)
    for colour in colours:
        value = value * (1 - OPACITY) + np.array(colour) * OPACITY
    return value.tolist()


@pytest.mark.parametrize("encoded", [False, True])
def test_a_mask_is_translucent_within_its_outline(encoded: bool) -> None:
    image, masks = gray(100, 120), ring_and_square()
    drawing = draw_masks(image, masks.encode((100, 120)) if encoded else masks, [RED, BLUE])
    assert np.array_equal(image, gray(100, 120))
    assert drawing[25, 15].tolist() == pytest.approx(blend(RED), abs=1)
    assert drawing[40, 55].tolist() == pytest.approx(blend(BLUE), abs=1)
    assert drawing[40, 45].tolist() == pytest.approx(blend(BLUE, RED), abs=1), "the first is on top"
    assert drawing[35, 25].tolist() == [90] * 3, "in the hole"
    for row, column in ((20, 30), (49, 12), (30, 10), (29, 25)):  # borders, the last one of the hole
        assert tuple(drawing[row, column]) == RED
    assert tuple(drawing[40, 59]) == BLUE
    changed = (drawing != 90).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (10, 20, 60, 50)


def test_a_mask_without_a_pixel_is_not_drawn() -> None:
    nothing = MaskCrops.of([np.zeros((0, 0), np.bool_)], [(0, 0, 0, 0)])
    for masks in (nothing, nothing.encode((50, 60))):
        assert np.array_equal(draw_masks(gray(50, 60), masks, [RED]), gray(50, 60))


def colour_near(drawing: np.ndarray, x: int, y: int) -> bool:
    """Whether something was drawn around a pixel."""
    return bool((drawing[y - 1 : y + 2, x - 1 : x + 2] != 90).any())


def test_keypoints_are_dots_that_the_skeleton_joins() -> None:
    image = gray(100, 120)
    drawing = draw_keypoints(image, PERSON, POINTS.skeleton, [RED])
    assert np.array_equal(image, gray(100, 120))
    for x, y in ((20, 60), (80, 60), (50, 20)):
        assert tuple(drawing[y, x]) == RED
    assert colour_near(drawing, 35, 40)
    assert colour_near(drawing, 65, 40)
    assert not colour_near(drawing, 50, 60), "no line joins left and right"


def test_a_keypoint_that_is_not_labelled_is_left_out_with_its_lines() -> None:
    points = PERSON.copy()
    points[0, 1] = 0
    drawing = draw_keypoints(gray(100, 120), points, POINTS.skeleton, [RED])
    assert tuple(drawing[60, 20]) == RED
    assert colour_near(drawing, 35, 40)
    assert not colour_near(drawing, 65, 40)
    assert not colour_near(drawing, 1, 1)


def test_a_hidden_keypoint_is_a_ring() -> None:
    hidden = PERSON.copy()
    hidden[..., 2] = 1
    rings, dots = (draw_keypoints(gray(700, 700), points, (), [RED]) for points in (hidden, PERSON))
    assert [tuple(drawing[20, 50]) for drawing in (rings, dots)] == [contrast(RED), RED]


def test_dots_grow_with_the_picture() -> None:
    drawings = [draw_keypoints(gray(side, side), PERSON, (), [RED]) for side in (100, 700, 2000)]
    sizes = [int((drawing == RED).all(axis=2).sum()) for drawing in drawings]
    assert sizes == sorted(set(sizes))


def test_detections_are_drawn_with_masks_and_likely_keypoints() -> None:
    """The second keypoint has a logit of -1. All lie below the boxes and their labels."""
    plain = detections([(10, 20, 50, 50), (40, 30, 60, 50)], [0, 1])
    columns = {
        **plain.objects.columns(),
        "masks": ring_and_square().encode((200, 120)),
        "keypoints": torch.from_numpy(PERSON).repeat(2, 1, 1) + torch.tensor([0, 100, 0]),
        KEYPOINT_SCORES: torch.tensor([[3.0, -1.0, 2.0]] * 2),
    }
    full = Detections(Objects.from_columns(columns), Categories(NAMES, (1, 2), POINTS))
    drawing = draw(gray(200, 120), full)
    assert drawing[25, 15].tolist() == pytest.approx(blend(colour_of(0)), abs=1)
    assert tuple(drawing[160, 20]) == colour_of(0)
    assert colour_near(drawing, 35, 140)
    assert not colour_near(drawing, 80, 160)
    without = draw(gray(200, 120), full, DrawingStyle(masks=False, keypoints=False))
    assert np.array_equal(without, draw(gray(200, 120), plain))


def ink(text: str, font: Path | None = None) -> np.ndarray:
    return render(text, 30, WHITE, BLACK, font)


@pytest.mark.parametrize("text", ["cat", "Größe", "собака", "γάτα", "كلب"])
def test_the_font_that_is_always_there_has_these_alphabets(text: str) -> None:
    assert font_for(text) == default_font()
    assert notes_on_fonts([text]) == []
    assert not np.array_equal(ink(text), ink("?" * len(text)))


def test_arabic_letters_are_joined() -> None:
    """Each letter alone is wider than in the word, and the word is not its letters from left to right."""
    assert ink("كلب").shape[1] < sum(ink(letter).shape[1] for letter in "كلب") - 4
    assert not np.array_equal(ink("كلب"), ink("بلك"))


@pytest.fixture
def cat_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed font, which has 猫, as a full square, and digits."""
    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", "cat", "mark", *(f"digit{digit}" for digit in range(10))]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    characters = {ord("猫"): "cat", ord("?"): "mark", **{ord(str(digit)): f"digit{digit}" for digit in range(10)}}
    builder.setupCharacterMap(characters)
    empty = TTGlyphPen(None).glyph()
    builder.setupGlyf({name: square if name == "cat" else empty for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "Cats.ttf"
    builder.save(path)
    broken = tmp_path / "A.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(lettering, "_installed_fonts", lambda: (broken, path))
    for cached in (font_for, render, lettering._characters):
        cached.cache_clear()
    return path


def test_an_installed_font_is_taken_for_what_the_other_lacks(cat_font: Path) -> None:
    assert font_for("猫1") == cat_font
    assert font_for("cat1") == default_font()
    assert (ink("猫") == 255).all(axis=2).sum() > 700  # the square of 30 px
    assert notes_on_fonts(["猫", "cat"]) == []


def test_what_no_font_has_is_noted(cat_font: Path) -> None:
    (note,) = notes_on_fonts(["cat", "हिन्दी", "猫", "สุนัข"])
    assert "no installed font has the characters of हिन्दी, สุนัข" in note
    assert "--font FILE" in note
    assert np.array_equal(ink("हि"), ink("??"))


def test_a_font_of_the_user(cat_font: Path) -> None:
    (note,) = notes_on_fonts(["猫", "dog"], cat_font)
    assert f"{cat_font} lacks the characters of dog" in note
    frame = detections([(10, 50, 80, 90)], [0], names=("猫",))
    assert not np.array_equal(
        draw(gray(100, 100), frame, DrawingStyle(font=default_font())),
        draw(gray(100, 100), frame, DrawingStyle(font=cat_font)),
    )


@pytest.mark.parametrize("content", [None, b"no font"])
def test_a_font_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.ttf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"--font .*x.ttf: no font that can be read"):
        notes_on_fonts(["cat"], path)


def test_the_fonts_of_the_system_are_looked_at_only_if_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at each takes milliseconds, and there may be thousands."""
    monkeypatch.setattr(lettering, "_installed_fonts", lambda: pytest.fail("not needed"))
    font_for.cache_clear()
    assert font_for("собака 0.93") == default_font()
