"""The list of changes: its order, when an entry happens, presets, and how it is written in a configuration."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from detkit.config import ConfigError, dump_config, load_config, override, parse_config
from detkit.data.transforms import Augment, open_augment, parse_augment
from detkit.data.transforms.presets import PRESETS, Preset
from detkit.engine.config_schema import config_schema
from detkit.engine.settings import RunConfig, RunSettings
from detkit.engine.upgrade import upgrade_config
from tests.data.transforms.samples import assert_same, only, three_rectangles

ROOT = Path(__file__).resolve().parents[3]
SSD = ROOT / "configs/bccd/ssd.yaml"
FLIP = ROOT / "configs/ssd.yaml"


def names(*settings: str, file: Path = FLIP) -> list[str]:
    return [entry.name for entry in load_config(file, RunConfig, settings).augment]


def test_entries_come_in_their_order() -> None:
    """A window of the mirrored picture is not the mirror of the same window."""
    crop, flip = {"name": "crop", "probability": None}, {"name": "horizontal_flip", "probability": None}
    sample = three_rectangles()
    one, two = (Augment(parse_augment(entries))(sample, 3) for entries in ([crop, flip], [flip, crop]))
    alone = only("crop", probability=None)(sample, 3)
    np.testing.assert_array_equal(one.image, alone.image[:, ::-1])
    assert two.image.tobytes() != one.image.tobytes()


@pytest.mark.parametrize(
    ("until_epoch", "on"),
    [(None, [0, 1, 2, 3]), (2, [0, 1]), (-1, [0, 1, 2]), (-4, []), (-9, []), (0, []), (7, [0, 1, 2, 3])],
)
def test_an_entry_is_on_until_its_epoch(until_epoch: int | None, on: list[int]) -> None:
    entries = parse_augment([{"name": "horizontal_flip", "probability": None, "until_epoch": until_epoch}])
    augment, sample = Augment(entries, epochs=4), three_rectangles()
    flipped = [epoch for epoch in range(4) if augment(sample, 0, epoch).objects.boxes[0, 0] != 10]
    assert flipped == on


def test_the_end_of_a_training_of_unknown_length_is_unknown() -> None:
    with pytest.raises(ValueError, match="Augment needs the number of epochs"):
        Augment(parse_augment("yolox"))


def test_interpolation_follows_its_entry() -> None:
    entries = parse_augment([{"name": "random_interpolation", "probability": 0.5, "until_epoch": 1}])
    drawn = [Augment(entries).interpolation(seed) for seed in range(300)]
    assert 150 < drawn.count(1) < 210, "bilinear: half, and one in five of the other half"
    assert {Augment(entries).interpolation(seed, epoch=1) for seed in range(50)} == {1}


def test_an_entry_without_a_probability_draws_no_number() -> None:
    """What comes after it gets other numbers if one is drawn, and the same if the entry is off."""
    sample = three_rectangles()

    def cropped(first: dict[str, Any], epoch: int = 0) -> tuple[int, ...]:
        crop = {"name": "crop", "probability": None}
        return Augment(parse_augment([first, crop]))(sample, 5, epoch).image.shape

    plain = only("crop", probability=None)(sample, 5).image.shape
    assert cropped({"name": "random_interpolation"}) == plain
    assert cropped({"name": "random_interpolation", "probability": 1}) != plain
    assert cropped({"name": "random_interpolation", "probability": 1, "until_epoch": 1}, epoch=1) == plain


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_list(name: str) -> None:
    config = load_config(FLIP, RunConfig, [f"augment={name}"])
    assert config.augment == parse_augment(PRESETS[name]) == parse_augment(name)
    assert names(f"augment=[{name}, {{name: cutout}}]") == [*(entry["name"] for entry in PRESETS[name]), "cutout"]
    python = Augment((Preset(name=name),), epochs=20)  # type: ignore[arg-type]
    assert tuple(python.entries) == config.augment


def test_presets_have_their_published_numbers() -> None:
    """A repetition by hand of what the recipes state, so that no default moves unseen."""
    ssd, yolox = (parse_config({"augment": name, **TRAIN}, RunSettings).augment for name in ("ssd", "yolox"))
    assert [(entry.name, entry.probability) for entry in ssd] == [
        ("horizontal_flip", 0.5),
        ("photometric", None),
        ("expand", 0.5),
        ("iou_crop", None),
        ("random_interpolation", None),
    ]
    plain = [entry.model_dump() for entry in yolox]
    assert [(entry["name"], entry["until_epoch"]) for entry in plain] == [
        ("mosaic", -15),
        ("random_affine", -15),
        ("mixup", -15),
        ("hsv_shift", None),
        ("horizontal_flip", None),
    ]
    assert plain[0]["probability"] == plain[2]["probability"] == 1
    assert [plain[1][key] for key in ("degrees", "translate", "scale", "shear")] == [10, 0.1, (0.1, 2), 2]
    assert plain[2]["scale"] == (0.5, 1.5)


TRAIN = {"train": {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}}}


def test_set_reaches_into_presets_by_name_and_by_position() -> None:
    config = load_config(SSD, RunConfig, ["augment.expand.max_ratio=2.5", "augment.0.probability=0.25"])
    dumped = [entry.model_dump() for entry in config.augment]
    assert dumped[0]["probability"] == 0.25
    assert dumped[2]["max_ratio"] == 2.5
    assert names("augment=yolov3", "augment.hsv.hue=0.2") == ["horizontal_flip", "hsv", "jitter"]
    default = parse_config(override(dict(TRAIN), ["augment.horizontal_flip.probability=0"], RunSettings), RunSettings)
    assert [entry.model_dump()["probability"] for entry in default.augment] == [0]
    assert names("augment=[]") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["augment=sdd"], "augment.0.name: 'sdd' is not known; did you mean 'ssd'?"),
        (["augment=[{name: mosiac}]"], "augment.0.name: 'mosiac' is not known; did you mean 'mosaic'?"),
        (["augment=[flip, {name: hsv, heu: 1}]"], "augment.1.heu: unknown key; did you mean 'hue'?"),
        (["augment=[{name: mosaic, grid: 4}]"], "augment.0.grid: 4 is not known; known: 2, 3"),
        (["augment=[{name: ssd, probability: 1}]"], "augment.0.probability: unknown key"),
        (["augment=[{hue: 1}]"], "augment.0.name: missing; say which: horizontal_flip, vertical_flip, "),
        (["augment=3"], "augment: should be a valid array, found"),
        (["augment=null"], "augment: should be a valid array, found"),
        (["augment=ssd", "augment.hsv.hue=1"], "augment has no entry 'hsv'; known: 0 horizontal_flip, 1 photometric"),
        (
            ["augment={jitter: 0.3}"],
            "write [{name: horizontal_flip, probability: 0.5}, {name: jitter, probability: 1.0",
        ),
    ],
)
def test_a_mistake_in_the_list_is_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(FLIP, RunConfig, settings)


def test_all_mistakes_of_a_list_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(FLIP, RunConfig, ["augment=[{name: mosiac}, ssd, {name: hsv, hue: 2}]", "loader.workers=-1"])
    _, *problems = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in problems] == ["augment.0.name", "augment.6.hue", "loader.workers"]


def test_a_mapping_in_a_file_is_told_as_a_list(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(re.sub("(?m)^augment: .*$", "augment: {horizontal_flip: 0.5, crop: 0.4}", FLIP.read_text()))
    with pytest.raises(ConfigError) as caught:
        load_config(file, RunConfig)
    assert str(caught.value) == (
        f"{file}: augment: a list since 0.3, found a mapping; "
        "write [{name: horizontal_flip, probability: 0.5}, {name: crop, probability: 0.4}]"
    )


def test_a_run_with_a_mapping_goes_on() -> None:
    tree = {"augment": {"horizontal_flip": 0.3, "jitter": 0.2, "jitter_scale": [0.5, 1.0]}, **TRAIN}
    augment = parse_config(upgrade_config(tree), RunSettings).augment
    assert [entry.model_dump(exclude_defaults=True) for entry in augment] == [
        {"probability": 0.3},
        {"max_change": 0.2, "scale": (0.5, 1.0)},
    ]
    assert upgrade_config({"augment": "ssd"}) == {"augment": "ssd"}


def test_the_resolved_list_reads_back_equal(tmp_path: Path) -> None:
    everything = [[{"name": name} for name in every_name()]]
    for value in (*PRESETS, *everything):
        config = parse_config({"augment": value, **TRAIN}, RunSettings)
        (tmp_path / "config.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "config.yaml", RunSettings) == config


def every_name() -> list[str]:
    """The names of all entries, from the message that lists them."""
    with pytest.raises(ConfigError) as caught:
        parse_config({"augment": [{}], **TRAIN}, RunSettings)
    listed = str(caught.value).split("say which: ")[1].split(", ")
    return [name for name in listed if name not in PRESETS]


@pytest.mark.parametrize("name", every_name())
def test_every_entry_works_with_its_defaults_and_has_an_end(name: str) -> None:
    sample = three_rectangles()
    augment = Augment(parse_augment([{"name": name, "until_epoch": -1, "probability": 1}]), epochs=2)
    for seed in range(3):
        result = augment(sample, seed, 0, lambda _, count: [sample] * count)
        height, width = result.image.shape[:2]
        assert (result.objects.boxes >= 0).all()
        assert (result.objects.boxes <= [width, height, width, height]).all()
        assert_same(augment(sample, seed, 1), sample)


def test_editors_are_told_of_presets_and_entries() -> None:
    whole = json.loads(config_schema())
    schema, definitions = whole["properties"]["augment"], whole["$defs"]
    jsonschema.validate([{"name": "mosaic"}, "cutout", "ssd"], {**schema, "$defs": definitions})
    jsonschema.validate("ssd", {**schema, "$defs": definitions})
    for wrong in ("sdd", [{"name": "mosaik"}], {"hsv": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, {**schema, "$defs": definitions})


def test_what_is_no_list_stays_for_the_check() -> None:
    assert open_augment(3) == 3
    assert open_augment([1, {"name": ["ssd"]}]) == [1, {"name": ["ssd"]}]


def test_large_scale_jitter_has_its_size_and_its_range() -> None:
    """A picture of 160 x 100 on 64 px is .1 to 2 times 64 px wide; a larger one is cut, a smaller one lies above."""
    sample, augment = three_rectangles(), only("large_scale_jitter", size=64)
    scales, moved = [], 0
    for seed in range(150):
        result = augment(sample, seed)
        assert result.image.shape == (64, 64, 3)
        for box, label in zip(result.objects.boxes, result.objects.labels, strict=True):
            x1, y1, x2, y2 = box
            if label == 6 and min(x1, y1) > 0 and max(x2, y2) < 64:  # 50 x 60 px of the picture
                scale = (x2 - x1) / 50
                assert (y2 - y1) / 60 == pytest.approx(scale, rel=1e-3)
                scales.append(scale * 160 / 64)
                if scale < 0.4:
                    assert (x1, y1) == pytest.approx((60 * scale, 30 * scale), abs=1e-3)
                else:
                    moved += x1 < 60 * scale - 0.1
    assert 0.1 <= min(scales) < 0.2
    assert 1.5 < max(scales) <= 2
    assert moved > 5


def test_the_affine_map_has_its_ranges() -> None:
    """From where the corners of a box in the middle come to lie, each part alone."""
    image = np.zeros((100, 100, 3), np.uint8)
    image[30:70, 30:70] = 255
    off = {"degrees": 0, "scale": [1, 1], "shear": 0, "translate": 0}
    box = three_rectangles().objects.take(slice(0, 1))
    sample = type(three_rectangles())(image, box.map(np.copy), "id")
    sample.objects.boxes[:] = 30, 30, 70, 70

    def spread(**part: Any) -> np.ndarray:
        augment = only("random_affine", **(off | part))
        return np.array([augment(sample, seed).objects.boxes[0] for seed in range(200)])

    np.testing.assert_allclose(spread()[0], [30, 30, 70, 70], atol=1e-4)
    np.testing.assert_allclose(spread(size=200)[0], [80, 80, 120, 120], atol=1e-4)  # the centres meet, 1 px is 1 px
    moved = spread(translate=0.1)[:, :2] - 30
    assert (moved.min(axis=0) < -9).all()
    assert (moved.max(axis=0) > 9).all()
    assert abs(moved).max() <= 10 + 1e-3
    sides = np.diff(spread(scale=[0.5, 1.2])[:, [0, 2]])[:, 0] / 40
    assert 0.5 <= sides.min() < 0.55
    assert 1.15 < sides.max() <= 1.2 + 1e-5
    turned = np.diff(spread(degrees=45)[:, [0, 2]])[:, 0] / 40  # a square turned by a: cos a + sin a times as wide
    assert turned.min() < 1.05
    assert 1.41 < turned.max() <= 2**0.5 + 1e-5
    slanted = spread(shear=45)
    grown = np.diff(slanted[:, [0, 2]])[:, 0] / 40  # slanted by a: 1 + tan a times as wide
    assert grown.min() < 1.05
    assert 1.9 < grown.max() <= 2
    assert np.abs(np.diff(slanted[:, [0, 2]]) - np.diff(slanted[:, [1, 3]])).max() > 20, "each axis has its own"
