"""A configuration is right, or every mistake in it is named at once with its path."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from detkit.config import Config, ConfigError, UserError, dump_config, load_config, override, parse_config
from detkit.engine.settings import RunConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


class Circle(Config):
    name: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)


class Square(Config):
    name: Literal["square"] = "square"
    side: int = 2
    fill: Literal["solid", "dotted"] = "solid"


Shape = Annotated[Circle | Square, Field(discriminator="name")]


class Page(Config):
    title: str
    shape: Shape = Circle()
    shapes: tuple[Shape, ...] = ()
    margins: tuple[float, float] = (0.0, 0.0)
    levels: tuple[Literal[2, 3], ...] = ()
    note: Circle | None = None
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> "Page":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def problems_of(data: dict[str, Any]) -> list[str]:
    """The lines after the first of the message about `data`."""
    with pytest.raises(ConfigError) as caught:
        parse_config(data, Page)
    first, *problems = str(caught.value).splitlines()
    assert first == f"configuration: {len(problems)} error{'s' * (len(problems) > 1)}"
    return [line.strip() for line in problems]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"titel": "x"}, "titel: unknown key; did you mean 'title'?"),
        (
            {"zzzzzzzz": 1},
            "zzzzzzzz: unknown key; known: high, levels, low, margins, note, shape, shapes, title",
        ),
        ({"shape": {"name": "circle", "radios": 2.0}}, "shape.radios: unknown key; did you mean 'radius'?"),
        ({"shapes": [{"name": "square"}, {"name": "square", "sied": 1}]}, "shapes.1.sied: unknown key; did you mean"),
        ({"shape": {"name": "sqare"}}, "shape.name: 'sqare' is not known; did you mean 'square'?"),
        ({"shape": {"name": "xxxxxxx"}}, "shape.name: 'xxxxxxx' is not known; known: circle, square"),
        ({"shape": {"radius": 2.0}}, "shape.name: missing"),
        ({"shape": {"name": "circle", "radius": -1}}, "shape.radius: should be greater than 0, found -1"),
        ({"shape": {"name": "square", "side": 1.5}}, "shape.side: should be a valid integer"),
        ({"shape": {"name": "square", "side": "1"}}, "shape.side: should be a valid integer, found '1'"),
        ({"shape": {"name": "square", "side": True}}, "shape.side: should be a valid integer, found True"),
        ({"shape": {"name": "square", "fill": "solit"}}, "shape.fill: 'solit' is not known; did you mean 'solid'?"),
        ({"levels": [2, 7]}, "levels.1: 7 is not known"),
        ({"margins": [1.0]}, "margins.1: missing"),
        ({"margins": [1.0, "wide"]}, "margins.1: should be a valid number, found 'wide'"),
        ({"note": {"name": "circle", "radius": 0}}, "note.radius: should be greater than 0, found 0"),
        ({"high": float("nan")}, "high: should be a finite number"),
        ({"low": 2.0}, "(top): low 2.0 is above high 1.0"),
    ],
)
def test_a_mistake_is_named_with_its_path(changes: dict[str, Any], problem: str) -> None:
    found = problems_of({"title": "t", **changes})
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_all_mistakes_at_once() -> None:
    found = problems_of({"shape": {"name": "circle", "radius": "big", "colour": 1}, "hihg": 2})
    assert [line.split(":")[0] for line in found] == ["title", "shape.radius", "shape.colour", "hihg"]
    assert found[0] == "title: missing; it has no default"


def test_a_real_configuration_is_checked_to_its_leaves() -> None:
    changes = ["model.rpn.nms_treshold=0.5", "model.backbone.name=resnet51", "train.optimizer.lr=fast", "data.name=vok"]
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs" / "faster_rcnn.yaml", RunConfig, changes)
    first, *found = str(caught.value).splitlines()
    assert "faster_rcnn.yaml" in first
    assert first.endswith(": 4 errors")
    assert [line.strip() for line in found] == [
        "model.backbone.name: 'resnet51' is not known; did you mean 'resnet50'?",
        "model.rpn.nms_treshold: unknown key; did you mean 'nms_threshold'?",
        "data.name: 'vok' is not known; did you mean 'voc'?",
        "train.optimizer.lr: should be a valid number, found 'fast'",
    ]


def write(folder: Path, text: str) -> Path:
    path = folder / "page.yaml"
    path.write_text(text)
    return path


def test_a_key_stands_once(tmp_path: Path) -> None:
    path = write(tmp_path, "title: a\nshape:\n  name: circle\n  name: square\n")
    with pytest.raises(ConfigError, match=r"page.yaml:4:3: key 'name' stands twice"):
        load_config(path, Page)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "100e-6", ".1e-3"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    page = load_config(write(tmp_path, f"title: a\nlow: {text}\n"), Page)
    assert page.low == pytest.approx(1e-4, rel=1e-12)
    assert load_config(write(tmp_path, "title: a\n"), Page, [f"low={text}"]) == page


def test_words_that_only_look_like_numbers_stay_words(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "title: 1e-4x\n"), Page).title == "1e-4x"
    assert load_config(write(tmp_path, "title: '1e-4'\n"), Page).title == "1e-4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "expected a mapping of sections at the top, found list"),
        ("", "expected a mapping of sections at the top, found NoneType"),
        ("title: [1\n", r"page.yaml:2:1: "),
        ("title: !!python/object:os.system {}\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text), Page)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.yaml: cannot read .*No such file"):
        load_config(tmp_path / "missing.yaml", Page)
    (tmp_path / "page.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"page.yaml: not UTF-8 text"):
        load_config(tmp_path / "page.yaml", Page)
    assert issubclass(ConfigError, UserError)


def test_overrides_are_yaml_values_at_a_path() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    after = override(before, ["a.b=1e-4", "d=[2, 3]", "a.c=null", "e.f.g=true", "h=x=y", " a.i =word"])
    assert after == {
        "a": {"b": 1e-4, "c": None, "i": "word"},
        "d": [2, 3],
        "e": {"f": {"g": True}},
        "h": "x=y",
    }
    assert before == {"a": {"b": 1, "c": 2}, "d": [1]}
    assert override({"a": 1}, ["a=2", "a=3"]) == {"a": 3}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a", "--set a: expected a.b=value"),
        ("=1", "--set =1: expected a.b=value"),
        ("a..b=1", "--set a..b=1: expected a.b=value"),
        ("a.b=1", "--set a.b=1: a is a value, not a section"),
        ("b=[1", r"--set b:1:3: "),
    ],
)
def test_an_override_that_cannot_be(item: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({"a": 1}, [item])
    assert message in str(caught.value)


def test_overrides_pass_the_same_gate(tmp_path: Path) -> None:
    path = write(tmp_path, "title: a\n")
    assert load_config(path, Page, ["shape={name: square, side: 3}"]).shape == Square(side=3)
    with pytest.raises(ConfigError, match=r"shape.sied: unknown key; did you mean 'side'\?"):
        load_config(path, Page, ["shape.name=square", "shape.sied=3"])


def test_dump_holds_every_default_and_reads_back_equal(tmp_path: Path) -> None:
    page = Page(title="ü: #1", shapes=(Circle(radius=1e-7), Square()), note=None, levels=(3, 2), low=-1e30)
    text = dump_config(page)
    assert "high: 1.0" in text
    assert load_config(write(tmp_path, text), Page) == page


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path, RunConfig)
    assert load_config(write(tmp_path, dump_config(config)), RunConfig) == config


def test_configurations_are_frozen() -> None:
    page = Page(title="a")
    with pytest.raises(ValidationError, match="frozen"):
        page.title = "b"  # type: ignore[misc]
