"""Changes single values in the text of a YAML file, so that its comments and its form stay."""

from __future__ import annotations

from collections.abc import Sequence

import yaml


def set_value(text: str, path: Sequence[str], value: str) -> str:
    """The text with `value`, which is YAML on one line, at `path`; sections that are missing are added.

    The mappings on the way may be of either form, `{a: 1}` or a line a key.
    """
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, name in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{'.'.join(path[:depth])}: expected a mapping, found {node and node.tag}")
        child = next((value_node for key, value_node in node.value if key.value == name), None)
        if child is None:
            rest = path[depth + 1 :]
            added = "".join(f"{{{key}: " for key in rest) + value + "}" * len(rest)
            return _insert(text, node, f"{name}: {added}")
        node = child
    if node is None:
        raise ValueError("expected YAML, found an empty text")
    return text[: node.start_mark.index] + value + text[_end(text, node) :]


def _insert(text: str, node: yaml.MappingNode, entry: str) -> str:
    """The text with one more entry at the beginning of a mapping, which has at least one."""
    start = node.start_mark.index
    if node.flow_style:
        comma = ", " if node.value else ""
        return f"{text[: start + 1]}{entry}{comma}{text[start + 1 :]}"
    return f"{text[:start]}{entry}\n{' ' * node.start_mark.column}{text[start:]}"


def _end(text: str, node: yaml.Node) -> int:
    """Where the value ends: PyYAML counts the comments and the line ends behind a block to it."""
    lines = text[node.start_mark.index : node.end_mark.index].splitlines(keepends=True)
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return node.start_mark.index + len("".join(lines).rstrip())
