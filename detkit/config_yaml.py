"""YAML as the configurations have it: safe, each key once, and numbers that remember how they were written.

The dicts and lists here are plain ones with `texts`: the text of each value that YAML reads as something else, by key
or position. `parse_config` takes it where the schema wants text, so that the class `007` stays `007`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

# PyYAML lets the others through: for values that are not of the type that their tag states (`!!int ''`, `!!bool 7`,
# `!!timestamp x`), for numbers such as `0b_`, and for brackets in brackets without end.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
MANY_VALUES, MANY_COPIES = 100_000, 10  # values of a file and its aliases, and how many times as many as it writes out


class TextDict(dict[str, Any]):
    def __init__(self, values: Mapping[str, Any] | None = None, texts: Mapping[Any, str] | None = None) -> None:
        super().__init__(values or {})
        self.texts = dict(texts or {})


class TextList(list[Any]):
    def __init__(self, values: Iterable[Any] = (), texts: Mapping[Any, str] | None = None) -> None:
        super().__init__(values)
        self.texts = dict(texts or {})


class Loader(yaml.SafeLoader):
    """Only true and false are booleans, `1e-4` is a number, and every key is text.

    Aliases of aliases can stand for more values than any memory holds, and such a file is refused.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        counts: dict[int, int] = {}
        if node is not None and _count_values(node, counts) > max(MANY_VALUES, MANY_COPIES * len(counts)):
            raise yaml.MarkedYAMLError(
                problem=f"its aliases (*name) stand for {counts[id(node)]} values; write out what they stand for",
                problem_mark=node.start_mark,
            )
        return node


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """The values below a node, those of an alias wherever it stands; `counts` are those of each node by its id."""
    if id(node) not in counts:
        counts[id(node)] = 1  # of a node within itself, which is refused later
        nodes = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        if not isinstance(node, yaml.ScalarNode):
            counts[id(node)] += sum(_count_values(each, counts) for each in nodes)
    return counts[id(node)]


class TextLoader(Loader):
    """Takes every value as the text that stands there."""


class Dumper(yaml.SafeDumper):
    """Quotes every text that some reader of YAML, this one or another, takes for something else."""


def _construct_dict(loader: Loader, node: yaml.MappingNode) -> TextDict:
    loader.flatten_mapping(node)
    values = TextDict()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="expected a text as a key, found a list or a mapping", problem_mark=key_node.start_mark
            )
        key = str(key_node.value)
        if key in values:
            raise yaml.MarkedYAMLError(
                problem=f"key {key!r} stands twice in one mapping", problem_mark=key_node.start_mark
            )
        values[key] = loader.construct_object(value_node, deep=True)
        _remember(values.texts, key, value_node, values[key])
    return values


def _construct_list(loader: Loader, node: yaml.SequenceNode) -> TextList:
    values = TextList(loader.construct_object(child, deep=True) for child in node.value)
    for index, (child, value) in enumerate(zip(node.value, values, strict=True)):
        _remember(values.texts, index, child, value)
    return values


def _remember(texts: dict[Any, str], key: Any, node: yaml.Node, value: Any) -> None:
    if isinstance(node, yaml.ScalarNode) and node.value and not isinstance(value, str):
        texts[key] = node.value


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """In double quotes, where line ends and the like have escapes: in others PyYAML loses U+0085 and U+2028."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


def _configure() -> None:
    # YAML 1.1 reads `on` and `no` as booleans, `2023-01-01` as a date, and `=` as something of its own: here these are
    # words.
    words = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "timestamp", "value")}
    numbers = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] not in words] for first, rules in resolvers.items()
    }
    TextLoader.yaml_implicit_resolvers = {
        "<": [rule for rule in resolvers["<"] if rule[0] == "tag:yaml.org,2002:merge"]
    }
    booleans = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", booleans, list("tTfF"))
    for one in (Loader, Dumper):
        one.add_implicit_resolver("tag:yaml.org,2002:float", numbers, list("-+0123456789."))
    Dumper.add_representer(str, _represent_text)
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_dict)
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG, _construct_list)


_configure()
TextLoader.yaml_constructors = Loader.yaml_constructors


def copy_tree(value: Any) -> Any:
    """Nested dicts and lists as those that remember texts."""
    if isinstance(value, Mapping):
        return TextDict({key: copy_tree(item) for key, item in value.items()}, getattr(value, "texts", None))
    if isinstance(value, list | tuple):
        return TextList(map(copy_tree, value), getattr(value, "texts", None))
    return value


def has_step(value: Any, step: int | str) -> bool:
    """Whether `step` is a key or a position in `value`."""
    if isinstance(value, TextList):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, TextDict) and step in value


def read_value(text: str) -> tuple[Any, str]:
    """The value of `text` on a command line, and what it is as text: the same without quotes around it.

    What is no YAML, or has a comment, is text.
    """
    try:
        node, value = yaml.compose(text, Loader=Loader), yaml.load(text, Loader=Loader)
    except YAML_ERRORS:
        return text, text
    if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"'):
        return node.value, node.value
    return (text, text) if isinstance(value, str) else (value, text)
