"""Changes of nested plain values, so that the file that they are written to stays one of its format."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1000, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**63) - 1, 2**64, 10**30),
    *(0.0, -0.0, 0.5, -0.5, 1.5, 1e-9, 1e9, 1e20, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "1", "-1", "7.0", "nan", "inf", "x", "a b", "a\nb", "a\rb", "\u2028", "\ud800", "\0", "٣", "²"),
    *("9" * 400, "9" * 5000, "x" * 3000, "\ufeff", "null", "~", [], {}, [[]], [None], [0], ["x"]),
    *([1, 2], [1, 2, 3, 4], [-1, -1, 0, 0], [1e308] * 4, {"name": "x"}, {"0": "x"}, {"": None}, list(range(200))),
)


def change_tree(rng: Random, tree: Any, words: Sequence[str] = ()) -> Any:
    """A copy of `tree`, dicts and lists, with 1 to 4 changes: of a value, of a key, of the order or the number."""
    top = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        node, key = _draw(rng, top)
        rng.choice((_set, _set, _set, _delete, _copy, _repeat, _rename))(rng, node, key, top, words)
    return top[0] if top else None


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or positions."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [pair for key in keys for pair in ((value, key), *_nodes(value[key]))]


def _draw(rng: Random, top: list[Any]) -> tuple[Any, Any]:
    """Deep places as likely as shallow ones: a walk that may end anywhere."""
    if not top:
        top.append(None)
    if rng.random() < 0.5:
        return rng.choice(_nodes(top))
    node, key = top, 0
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
        node = node[key]
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    return node, key


def _set(rng: Random, node: Any, key: Any, top: list[Any], words: Sequence[str]) -> None:
    values = rng.choice((VALUES, VALUES, words or VALUES))
    node[key] = copy.deepcopy(rng.choice(values))


def _delete(rng: Random, node: Any, key: Any, top: list[Any], words: Sequence[str]) -> None:
    del node[key]


def _copy(rng: Random, node: Any, key: Any, top: list[Any], words: Sequence[str]) -> None:
    other, place = _draw(rng, top)
    other[place] = copy.deepcopy(node[key])


def _repeat(rng: Random, node: Any, key: Any, top: list[Any], words: Sequence[str]) -> None:
    times = rng.choice((1, 1, 2, 50))
    if isinstance(node, list):
        node[key:key] = [copy.deepcopy(node[key]) for _ in range(times)]


def _rename(rng: Random, node: Any, key: Any, top: list[Any], words: Sequence[str]) -> None:
    if isinstance(node, dict):
        name = rng.choice([value for value in VALUES if isinstance(value, str)] + list(words))
        node[name] = node.pop(key)


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def as_yaml(tree: Any) -> bytes:
    """In JSON's form, which is YAML, or with anchors and blocks."""
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")
    except (yaml.YAMLError, TypeError):
        return as_json(tree)


def from_trees(
    trees: Sequence[Any], write: Callable[[Any], bytes], words: Sequence[bytes] = ()
) -> Callable[[Random, bytes], bytes]:
    """The `repair` of a target: a file of one of `trees` with changes."""
    names = [word.decode() for word in words]
    return lambda rng, _: write(change_tree(rng, rng.choice(trees), names))
