"""Configurations by name, their table, and the schema for editors."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from detkit import cli
from detkit.config import UserError, load_config, read_yaml
from detkit.engine.config_files import PACKAGED, find_config, header, list_configs, packaged_names, summarise_config
from detkit.engine.config_schema import config_schema
from detkit.engine.settings import RunConfig

SCHEMA = json.loads(config_schema())
VALIDATOR = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)  # `jsonschema.validate` checks the schema every time


@pytest.mark.parametrize("name", ["faster_rcnn", "coco/yolov3", "configs/coco/yolov3.yaml", "coco/yolov3.yaml"])
def test_a_packaged_configuration_is_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == PACKAGED / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"


def test_a_file_of_ones_own_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faster_rcnn").write_text("")
    assert find_config("faster_rcnn") == Path("faster_rcnn")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("faster_rcn", r"did you mean faster_rcnn"),
        ("yolo3", "did you mean"),
        ("nothing/at/all", "`detkit configs` lists"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as error:
        find_config(name)
    assert "\n" not in str(error.value)


def test_the_table_has_a_line_for_each_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(list(PACKAGED.rglob("*.yaml")))
    assert lines == [line.rstrip() for line in list_configs().splitlines()]
    assert re.search(
        r"^faster_rcnn +faster_rcnn resnet18 +shapes +voc07 mAP 0\.\d+ +\d+ minutes$", "\n".join(lines), re.M
    )
    assert re.search(
        r"^coco/detr_r50 +detr resnet50 +coco datasets/coco +box AP 42.0 +published$", "\n".join(lines), re.M
    )


@pytest.mark.parametrize("name", packaged_names())
def test_every_header_says_what_was_seen(name: str) -> None:
    """A score with its time, or that it was not trained here."""
    summary = summarise_config(name)
    assert re.fullmatch(r"\d+ (minutes|s)", summary.time) or "Not trained here" in header(PACKAGED / f"{name}.yaml")
    assert summary.score or "/" in name


def test_the_schema_is_one() -> None:
    VALIDATOR.check_schema(SCHEMA)


def test_a_configuration_is_printed_to_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "ssd"]) == 0
    assert capsys.readouterr().out.rstrip() == (PACKAGED / "ssd.yaml").read_text(encoding="utf-8").rstrip()


@pytest.mark.parametrize("name", packaged_names())
def test_every_packaged_configuration_fits_the_schema(name: str) -> None:
    VALIDATOR.validate(read_yaml(PACKAGED / f"{name}.yaml"))
    load_config(PACKAGED / f"{name}.yaml", RunConfig)


@pytest.mark.parametrize(
    "change", [{"epoch": 3}, {"epochs": "three"}, {"epochs": 0}, {"optimizer": {"name": "sdg", "lr": 0.1}}]
)
def test_the_schema_marks_mistakes(change: dict[str, object]) -> None:
    tree = read_yaml(PACKAGED / "faster_rcnn.yaml")
    tree["train"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, SCHEMA)


def test_the_schema_says_what_a_setting_is() -> None:
    """From the docstring of its class, from that of a base class, and from the comment beside it."""
    definitions = SCHEMA["$defs"]
    assert definitions["COCOConfig"]["properties"]["train_annotations"]["description"].startswith("JSON file")
    assert definitions["COCOConfig"]["properties"]["on_bad_label"]["description"].startswith("`raise` lists")
    assert definitions["TrainConfig"]["properties"]["clip_norm"]["description"] == "largest norm of the whole gradient"


def test_the_schema_beside_the_configurations_is_current() -> None:
    """`make schema` writes it."""
    assert json.loads((PACKAGED / "detkit.schema.json").read_text(encoding="utf-8")) == SCHEMA


@pytest.mark.parametrize("name", packaged_names())
def test_editors_find_the_schema(name: str) -> None:
    path = PACKAGED / f"{name}.yaml"
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if "yaml-language-server" in line)
    assert (
        path.parent / line.removeprefix("# yaml-language-server: $schema=")
    ).resolve() == PACKAGED / "detkit.schema.json"
