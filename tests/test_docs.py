"""The written pages: links lead somewhere, commands and settings are understood, the picture is there."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import yaml

import detkit
from detkit.config import load_config
from detkit.engine.config_files import load_named
from detkit.engine.settings import RunConfig
from tests import docs

FASTER, FAST = (docs.ROOT / f"configs/{name}.yaml" for name in ("faster_rcnn", "fast_rcnn"))
ALL_COMMANDS = sorted({(docs.name_of(page), command) for page in docs.PAGES for command in docs.commands(page)})
PLACEHOLDERS = ("configs/NAME.yaml", "configs/dense_box.yaml")  # the latter comes with docs/new_detector.diff
OWN = ("my.yaml", "tuned.yaml")  # what `detkit init` writes
TARGETS = re.findall(r"^([\w-]+):", (docs.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", docs.PAGES, ids=docs.name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in docs.links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in docs.anchors(target), link


def test_every_page_is_linked_from_readme() -> None:
    linked = {(docs.ROOT / link.partition("#")[0]).resolve() for link in docs.links(docs.ROOT / "README.md")}
    assert set(docs.PAGES) - {docs.ROOT / "README.md"} <= linked


@pytest.mark.parametrize(("page", "command"), ALL_COMMANDS, ids=map(": ".join, ALL_COMMANDS))
def test_commands_are_understood(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their own parsers; the configuration that they name is there, and takes their settings."""
    monkeypatch.chdir(docs.ROOT)
    words = docs.split(command)
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS)
    elif words[0] == "pytest" or words[1].startswith("examples/"):  # those are run by tests/test_examples.py
        assert (docs.ROOT / words[1].partition("::")[0]).exists()
    elif words[:2] != ["pip", "install"]:
        options = docs.parse(words, monkeypatch)
        config = getattr(options, "config", None)
        settings = getattr(options, "set", [])
        if config or settings:
            load_named(FASTER if config is None or Path(config).name in OWN else config, settings)


@pytest.mark.parametrize("page", docs.PAGES, ids=docs.name_of)
def test_settings_are_understood(page: Path) -> None:
    """A line of a block of YAML is a section of a configuration; `--set` in a sentence belongs to any."""
    for line in "".join(docs.blocks(page, "yaml")).splitlines():
        name = line.partition(":")[0]
        file, key = {
            "augment": (FASTER, "augment"),
            "data": (FASTER, "data"),
            "proposals": (FAST, "model.proposals"),
        }[name]
        value = yaml.safe_dump(yaml.safe_load(line)[name], default_flow_style=True, width=1000).removesuffix("...\n")
        load_config(file, RunConfig, [f"{key}={value}"])
    for setting in re.findall(r"`--set ([^`]+)`", docs.prose(page)):
        if "=value" not in setting:
            load_config(FASTER, RunConfig, [setting])


def test_pages_name_only_configurations_that_there_are() -> None:
    for page in docs.PAGES:
        for file in re.findall(r"\bconfigs/[\w/]+\.yaml", docs.prose(page)):
            assert (docs.ROOT / file).exists() or file in PLACEHOLDERS, f"{page}: {file}"


def test_the_picture_is_small_and_described() -> None:
    file = docs.ROOT / "docs/detections.jpg"
    assert re.search(rf"!\[[^\]]{{20,}}\]\({docs.name_of(file)}\)", docs.prose(docs.ROOT / "README.md"))
    assert file.stat().st_size < 150_000
    assert cv2.imread(str(file)).shape == (476, 680, 3)


def test_the_tree_names_every_package() -> None:
    (tree,) = docs.blocks(docs.ROOT / "docs/tree.md", "text")
    packages = {path.parent.name for path in (docs.ROOT / "detkit").rglob("__init__.py")}
    assert packages <= set(re.findall(r"(\w+)/", tree))


def test_the_citation_has_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0: four keys are required, and a type and a licence are of its lists."""
    citation = yaml.safe_load((docs.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert citation["version"] == detkit.__version__
    assert all(author["name"] for author in citation["authors"])
