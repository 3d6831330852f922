"""Typed configuration: one YAML file in, one frozen tree out, or every error at once.

A component with knobs has one `Config` directly above the class that takes it. Choices are unions discriminated by the
field `name`. Nothing here knows a component.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(Exception):
    """A mistake the user can mend: the tools print the message and leave with status 2, without a stack trace."""


class ConfigError(UserError):
    """Every problem of a configuration, a line each, with its path."""


class Config(BaseModel):
    """Base of all configuration: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once and `1e-4` is a number."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in mapping:
            raise yaml.MarkedYAMLError(
                problem=f"key {key!r} stands twice in one mapping", problem_mark=key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


# YAML 1.1 reads `off`, `on`, `yes`, `no` as booleans; here they are words, and only true and false are booleans
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values from safe YAML; keys are text. Raises ConfigError naming `where`, the line and the column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise ConfigError(f"{place}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError naming the file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration: {error.strerror}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of sections at the top, found {type(data).__name__}")
    return data


def load_config(path: str | Path, schema: type[ConfigT], overrides: Iterable[str] = ()) -> ConfigT:
    """Reads a YAML file, applies `a.b=value` overrides and validates.

    Raises ConfigError naming the file and listing every problem with its path and, where there is one, the nearest
    known name.
    """
    overrides = list(overrides)
    where = " ".join([str(path), *(f"--set {item}" for item in overrides)])
    return parse_config(override(read_yaml(path), overrides), schema, where=where)


def parse_config(data: dict[str, Any], schema: type[ConfigT], where: str = "configuration") -> ConfigT:
    """Validates a nested dict of plain values. Raises ConfigError with every problem in it."""
    try:
        return schema.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = [_describe(problem, data, schema) for problem in error.errors(include_url=False)]
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise ConfigError("\n  ".join([f"{where}: {count}", *problems])) from error


def override(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=value` set; values are YAML, so `[1, 2]`, `1e-4` and `null` are meant."""
    data = json.loads(json.dumps(data, default=str))
    for item in overrides:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {item}: expected a.b=value")
        node = data
        for depth, part in enumerate(parts[:-1]):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {item}: {'.'.join(parts[: depth + 1])} is a value, not a section")
        node[parts[-1]] = parse_yaml(text, f"--set {key}")
    return data


def dump_config(config: Config) -> str:
    """The resolved tree as YAML, every default included; `load_config` reads it back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _describe(problem: Any, data: Any, schema: type[Config]) -> str:
    """One line for one pydantic error: path, what was found, what is possible."""
    path, known, annotation = _locate(problem["loc"], data, schema)
    names = [str(name) for model in _models(annotation) for name in _name_values(model)]
    kind, found = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_nearest(path.rsplit('.', 1)[-1], known)}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{path}.name: missing; say which: {', '.join(names)}"
    if kind == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        return f"{path}.name: {tag!r} is not known{_nearest(tag, names)}"
    if kind == "literal_error":
        options = [option.strip("'") for option in re.split(", | or ", str(problem["ctx"]["expected"]))]
        return f"{path}: {found!r} is not known{_nearest(str(found), options)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{path}: should be a section, found {found!r}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{path}: {message}, found {found!r}" if kind != "value_error" else f"{path}: {message}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _locate(loc: tuple[int | str, ...], data: Any, schema: Any) -> tuple[str, list[str], Any]:
    """The dotted path of an error as the user wrote it (pydantic puts union tags between), the keys known there, and
    the annotation of what stands there."""
    parts: list[str] = []
    known: list[str] = []
    for step in loc:
        models = _models(schema)
        if isinstance(data, dict) and step == data.get("name") and all(step not in m.model_fields for m in models):
            schema = next((m for m in models if step in _name_values(m)), schema)  # a union tag, not a key
            continue
        known = sorted({field for m in models for field in m.model_fields})
        parts.append(str(step))
        schema = next((m.model_fields[step].annotation for m in models if step in m.model_fields), schema)
        if isinstance(data, dict):
            data = data.get(str(step))
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
    return ".".join(parts) or "(top)", known, schema


def _models(annotation: Any) -> list[type[Config]]:
    """The Config classes inside an annotation such as `Annotated[A | B, ...]` or `tuple[A, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (Annotated, typing.Union, types.UnionType, tuple, list):
        return [model for argument in typing.get_args(annotation) for model in _models(argument)]
    return []


def _name_values(model: type[Config]) -> tuple[Any, ...]:
    field = model.model_fields.get("name")
    return typing.get_args(field.annotation) if field else ()
