"""A configuration is right, or every mistake in it is named at once with its path."""

import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from detkit.config import (
    Config,
    ConfigError,
    PathText,
    UserError,
    dump_config,
    load_config,
    override,
    parse_config,
    parse_yaml,
)
from detkit.data.coco import COCOConfig
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
        ({"high": 1e39}, "high: expected at most 3.4e+38, as PyTorch's float32 can hold, found 1e+39"),
        ({"margins": [0.0, -1e300]}, "margins: expected at most 3.4e+38, as PyTorch's float32 can hold, found -1e+300"),
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


@pytest.mark.parametrize("text", ["[1]: 2", "? {a: 1}\n: 3", "{" * 200 + "a" + "}" * 200])
def test_a_key_is_a_text(text: str) -> None:
    """A mapping in a mapping as a key would be written out as text, and twice as long each time."""
    with pytest.raises(ConfigError, match=r"expected a text as a key, found a list or a mapping"):
        parse_yaml(text, "page.yaml")


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
        ("- 1\n", "expected a mapping of sections at the top, found a list"),
        ("", "expected a mapping of sections at the top, found None"),
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
        ("shapes.2.side=1", "--set shapes.2.side=1: shapes has no entry '2'; known: 0 circle, 1 square"),
        ("shapes.cube.side=1", "--set shapes.cube.side=1: shapes has no entry 'cube'; known: 0 circle, 1 square"),
        ("twins.square.side=1", "twins has several entries 'square'; known: 0 square, 1 square"),
        ("none.0=1", "none has no entry '0'; known: none, the list is empty"),
        ("levels.0.a=1", "levels.0 is a value, not a section"),
    ],
)
def test_an_override_that_cannot_be(item: str, message: str) -> None:
    square = {"name": "square"}
    tree = {"a": 1, "shapes": [{"name": "circle"}, square], "twins": [square, square], "none": [], "levels": [2]}
    with pytest.raises(ConfigError) as caught:
        override(tree, [item])
    assert message in str(caught.value)


def test_an_override_of_an_entry_of_a_list() -> None:
    before = {"shapes": [{"name": "circle", "radius": 1.0}, {"name": "square"}], "levels": [2, 3]}
    items = ["shapes.0.radius=2", "shapes.square.side=3", "levels.1=2", "shapes.circle.name=disc"]
    assert override(before, items) == {
        "shapes": [{"name": "disc", "radius": 2}, {"name": "square", "side": 3}],
        "levels": [2, 2],
    }
    assert before["levels"] == [2, 3]
    assert override(before, ["shapes.1={name: circle}"])["shapes"][1] == {"name": "circle"}


class Texts(Config):
    one: str = ""
    path: PathText = "data"
    optional: str | None = None
    several: tuple[str, ...] = ()
    choice: tuple[str, ...] | Literal["auto"] | None = None
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    number: float = 0.0


# what YAML, of version 1.1 or 1.2, takes for a number, a truth value, nothing, a date, a time or a part of its grammar
NOT_ONLY_TEXT = [
    "1e3", "1E-4", "007", "010", "0o7", "0x1F", "0b1", "1_000", "2007_12", "12:30:45", ".inf", "-.INF", ".nan", "1.50",
    "+1", "true", "True", "FALSE", "yes", "no", "On", "null", "Null", "NULL", "2023", "2023-01-01",
    "2023-01-01 10:00:00", "=",
]  # fmt: skip
GRAMMAR = ["~", "~/x", "<<", "-", "?", "a: b", "a:b", "[x", "[a, b]", "{x", "{a: b}", "&a", "*a", "!a", "!!int 3",
           "@x", "`x", "%x", "|", ">", "set #1", "#1", "'", "it's", '"', "- a", "---", "...", ", a", "a\tb",
           "0b_"]  # fmt: skip


@pytest.mark.parametrize("text", NOT_ONLY_TEXT)
def test_a_text_in_a_file_is_what_stands_there(tmp_path: Path, text: str) -> None:
    lines = [f"one: {text}", f"several: [{text}, b]", f"choice:\n- {text}", f"groups: {{{text}: [{text}]}}"]
    texts = load_config(write(tmp_path, "\n".join(lines)), Texts)
    assert texts == Texts(one=text, several=(text, "b"), choice=(text,), groups={text: (text,)})


@pytest.mark.parametrize("text", [*NOT_ONLY_TEXT, *GRAMMAR, "", "x=y", "ü"])
def test_a_text_on_the_command_line_is_what_was_typed(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "one: before\nseveral: [before]\n")
    assert load_config(path, Texts, [f"one={text}"]).one == text
    assert load_config(path, Texts, [f"several.0= {text} "]).several == (text,)


def test_what_is_not_text_in_the_schema_keeps_its_value(tmp_path: Path) -> None:
    path = write(tmp_path, "number: 1e3\noptional: null\nchoice: null\n")
    assert load_config(path, Texts) == Texts(number=1000.0)
    assert load_config(path, Texts, ["optional=~", "choice=null", "number=.5"]) == Texts(number=0.5)
    assert load_config(path, Texts, ["optional='null'", 'one="~"']) == Texts(number=1000.0, optional="null", one="~")
    assert load_config(path, Texts, ["several=[007, 1e3 ]"]).several == ("007", "1e3")
    assert load_config(path, Texts, ["several=[a, b]", "several.1="]).several == ("a", "")
    with pytest.raises(ConfigError, match=r"number: should be a valid number, found '\[1'"):
        load_config(path, Texts, ["number=[1"])
    with pytest.raises(ConfigError, match=r"one: should be a valid string, found None"):
        load_config(write(tmp_path, "one:\n"), Texts)


INVISIBLE = ["\x85", "a\u2028b", "\u2029", "\ufeff", "\0", "\r\n", "a \n b", "\x7f", "\xad"]
ANY = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from([*NOT_ONLY_TEXT, *GRAMMAR, *INVISIBLE])


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.builds(
        Texts,
        one=ANY,
        path=ANY,
        optional=st.none() | ANY,
        several=st.tuples(ANY, ANY),
        choice=st.sampled_from([None, "auto"]) | st.tuples(ANY),
        groups=st.dictionaries(ANY, st.tuples(ANY)),
    )
)
def test_any_text_is_dumped_and_read_back(texts: Texts) -> None:
    assert parse_config(parse_yaml(dump_config(texts), "dump"), Texts) == texts


def test_other_readers_of_a_dump_find_text_too() -> None:
    lines = dump_config(Texts(one="1e3", several=("no", "007"))).splitlines()
    assert {"one: '1e3'", "- 'no'", "- '007'"} <= set(lines)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(ANY.map(str.strip))
def test_any_text_is_set(text: str) -> None:
    quoted = text[:1] in ("'", '"')  # as in YAML, quotes around a value are not part of it
    assert parse_config(override({}, [f"one={json.dumps(text)}"]), Texts).one == text
    if not quoted:
        assert parse_config(override({}, [f"one={text}"]), Texts).one == text


def test_the_home_folder_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    texts = parse_config(override({}, ["path=~/x", "one=~/x"]), Texts)
    assert (texts.path, texts.one) == ("/home/ada/x", "~/x")


def test_numbers_of_an_earlier_dump_are_texts_again(tmp_path: Path) -> None:
    """detkit 0.2 wrote the class 1e3 without quotes and could not read it back; `upgrade_config` copies such trees."""
    tree = copy.deepcopy(dict(parse_yaml("several:\n- 1e3\n- 5e-1\n", "config.yaml")))
    assert parse_config(tree, Texts).several == ("1e3", "5e-1")


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


def test_a_name_that_is_not_utf_8_is_one_line() -> None:
    """The configuration of a run is a file of UTF-8, which could not hold it."""
    tree = {"name": "coco", "root": "lat\udce9dir"}
    with pytest.raises(ConfigError, match=r"'lat\\udce9dir' is not UTF-8, as a configuration is; rename it"):
        parse_config(tree, COCOConfig)
