"""Single values changed in the text of a YAML file."""

import pytest

from detkit.config import parse_yaml
from detkit.engine.yaml_text import set_value

TEXT = """\
# a comment
model:
  name: ssd
  head:
    sizes: [1, 2] # of the boxes
    # of the ratios
    ratios:
      - [2]
      - [2, 3]

  # of the input
  input: {resize: {name: stretch, size: 300}, std: [1, 1, 1]}
data: {name: shapes}
"""


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("model.name", "yolov3", "  name: yolov3\n"),
        ("model.head.sizes", "[3.5]", "    sizes: [3.5] # of the boxes\n"),
        ("model.input.resize.size", "320", "  input: {resize: {name: stretch, size: 320}, std: [1, 1, 1]}\n"),
        ("model.head.ratios", "[[9]]", "    ratios:\n      [[9]]\n\n  # of the input\n"),
        ("model.head.new.deep", "1", "    new: {deep: 1}\n    sizes: [1, 2] # of the boxes\n"),
        ("data.root", "a b", "data: {root: a b, name: shapes}\n"),
        ("train.epochs", "3", "train: {epochs: 3}\nmodel:\n"),
    ],
)
def test_one_value_changes_and_everything_else_stays(path: str, value: str, line: str) -> None:
    changed = set_value(TEXT, path.split("."), value)
    assert line in changed
    expected, *names = parse_yaml(TEXT, "text"), *path.split(".")
    node = expected
    for name in names[:-1]:
        node = node.setdefault(name, {})
    node[names[-1]] = parse_yaml(value, "value")
    assert parse_yaml(changed, "changed") == expected
    assert [text for text in TEXT.splitlines() if "#" in text] == [t for t in changed.splitlines() if "#" in t] or (
        path == "model.head.sizes"
    )


def test_a_value_inside_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.name"):
        set_value(TEXT, ["model", "name", "x"], "1")
