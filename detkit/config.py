"""Typed configuration: one YAML file in, one frozen tree out, or every error at once.

A component with knobs has one `Config` directly above the class that takes it. Choices are unions discriminated by the
field `name`. Nothing here knows a component.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator

from detkit.config_yaml import (
    YAML_ERRORS,
    Dumper,
    Loader,
    TextDict,
    TextList,
    TextLoader,
    copy_tree,
    has_step,
    read_value,
)

# What a terminal obeys, what ends a line outside of a list, and what no terminal can be sent.
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\n(?!  )")
LONGEST_LINE = 2000  # characters of a line of a message; of a longer one the middle is left out


class UserError(Exception):
    """A mistake the user can mend: the tools print the message and leave with status 2, without a stack trace.

    The message is one line, or one and a list whose lines begin with two blanks. It quotes what stands in files, which
    may be anything: other ends of lines and control characters are written as escapes, and lines are cut to
    `LONGEST_LINE`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(message: str) -> str:
    """A message in the form of a `UserError`, whatever it quotes."""
    text = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], message)
    return "\n".join(_shortened(line) for line in text.split("\n"))


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2 - 3
    return f"{line[:half]} ... {line[-half:]}"


LARGEST = 3.4e38  # of the numbers in a configuration


class ConfigError(UserError):
    """Every problem of a configuration, a line each, with its path."""


class Config(BaseModel):
    """Base of all configuration: frozen, strictly typed, unknown keys refused.

    renamed  keys of earlier versions, and what to write instead
    at_test  fields that may change after training, as a detector with the same weights takes them whenever it is used;
             `*` stands for all but `name`, also those that a subclass adds
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    at_test: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _fits_float32(cls, value: Any) -> Any:
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, float) and abs(number) > LARGEST:
                raise ValueError(f"expected at most {LARGEST:.2g}, as PyTorch's float32 can hold, found {number}")
        return value

    @classmethod
    def fields_at_test(cls) -> tuple[str, ...]:
        """The names in `at_test`."""
        return tuple(name for name in cls.model_fields if name != "name") if "*" in cls.at_test else cls.at_test

    @classmethod
    def open(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """A copy of `tree`, plain values of this class, with short forms written out: `--set` reaches into those.

        Raises ValueError for a form that is no longer understood.
        """
        return tree


ConfigT = TypeVar("ConfigT", bound=Config)
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # of a file or folder; `~` is the user's home


def parse_yaml(text: str, where: str, *, as_text: bool = False) -> Any:
    """Plain values from safe YAML; keys are text. Raises ConfigError naming `where`, the line and the column.

    as_text  every value is the text that stands there, so that `007`, `no` and `1e3` are names; nothing is empty text
    """
    try:
        return yaml.load(text, Loader=TextLoader if as_text else Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise ConfigError(f"{place}: {error.problem}") from error
    except YAML_ERRORS as error:
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
        found = "a list" if isinstance(data, list) else repr(data)
        raise ConfigError(f"{path}: expected a mapping of sections at the top, found {found}")
    return data


def load_config(path: str | Path, schema: type[ConfigT], overrides: Iterable[str] = ()) -> ConfigT:
    """Reads a YAML file, applies `a.b=value` overrides and validates.

    Raises ConfigError naming the file and listing every problem with its path and, where there is one, the nearest
    known name.
    """
    overrides = list(overrides)
    where = " ".join([str(path), *(f"--set {item}" for item in overrides)])
    tree = _open(read_yaml(path), schema, where)
    return parse_config(override(tree, overrides, schema), schema, where=where)


def parse_config(data: Mapping[str, Any], schema: type[ConfigT], where: str = "configuration") -> ConfigT:
    """Validates a nested dict of plain values. Raises ConfigError with every problem in it."""
    data = _open(data, schema, where)
    _check_utf8(data, where)
    try:
        return schema.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        data = _with_text(data, error)
    try:
        return schema.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = [_describe(problem, data, schema) for problem in error.errors(include_url=False)]
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise ConfigError("\n  ".join([f"{where}: {count}", *problems])) from error


def _check_utf8(value: Any, where: str) -> None:
    """Raises ConfigError for a text that no file can hold: the name of a file that is not UTF-8."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where}: {value!a} is not UTF-8, as a configuration is; rename it") from error
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        _check_utf8(item, where)


def _open(tree: Mapping[str, Any], schema: type[Config], where: str) -> dict[str, Any]:
    try:
        return schema.open(copy_tree(tree))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _with_text(data: Mapping[str, Any], error: ValidationError) -> Any:
    """A copy of `data` in which values that should be text are the text that was written, where that is known."""
    top = copy_tree(data)
    for problem in error.errors(include_url=False):
        if problem["type"] not in ("string_type", "tuple_type"):  # a validator may take one text for a list of one
            continue
        place, key, value = None, None, top
        for step in problem["loc"]:  # some name a member of a union instead
            if has_step(value, step):
                place, key, value = value, step, value[step]
        if place is not None and key in place.texts:
            place[key] = place.texts[key]
    return top


def override(data: Mapping[str, Any], overrides: Iterable[str], schema: type[Config] = Config) -> dict[str, Any]:
    """A copy of `data` with each `a.b=value` set.

    Values are YAML, so `[1, 2]`, `1e-4` and `null` are meant. Where the schema wants text, the value is what was typed,
    without quotes around it. An entry of a list is named by its position, `anchors.0=8`, or by its `name`:
    `augment.mosaic.probability=0.5`. Short forms of `schema` are written out before each.
    """
    top: dict[str, Any] = copy_tree(data)
    for item in overrides:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {item}: expected a.b=value")
        node: Any = (top := copy_tree(_open(top, schema, f"--set {item}")))
        for depth, part in enumerate(parts):
            step = _step(node, part, f"--set {item}: {'.'.join(parts[:depth])}")
            if depth == len(parts) - 1:
                node[step], node.texts[step] = read_value(text.strip())
            elif not has_step(node, step):
                node[step] = TextDict()
            node = node[step]
    return top


def _step(node: Any, part: str, where: str) -> int | str:
    """The key that `part` of a path is in `node`; in a list the position, or that of the one entry of this name."""
    if isinstance(node, TextDict):
        return part
    if not isinstance(node, TextList):
        raise ConfigError(f"{where} is a value, not a section")
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if names.count(part) == 1:
        return names.index(part)
    known = ", ".join(f"{index} {name or ''}".strip() for index, name in enumerate(names))
    problem = "has several entries" if part in names else "has no entry"
    raise ConfigError(f"{where} {problem} {part!r}; known: {known or 'none, the list is empty'}")


def dump_config(config: Config) -> str:
    """The resolved tree as YAML, every default included; `load_config` reads it back to an equal tree."""
    return to_yaml(config.model_dump(mode="json"))


def to_yaml(value: Any, *, flow: bool | None = False, width: int = 120) -> str:
    """Plain values as YAML that `parse_yaml` reads back. flow: in brackets, all (True) or the innermost (None)."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=flow)


def _describe(problem: Any, data: Any, schema: type[Config]) -> str:
    """One line for one pydantic error: path, what was found, what is possible."""
    path, known, annotation = _locate(problem["loc"], data, schema)
    names = [str(name) for model in _models(annotation) for name in _name_values(model)]
    kind, found = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        key = str(problem["loc"][-1])
        parents = _models(_locate(problem["loc"][:-1], data, schema)[2])
        instead = [model.renamed[key] for model in parents if key in model.renamed]
        return f"{path}: now {instead[0]}" if instead else f"{path}: unknown key{nearest(key, known)}"
    if kind == "missing":
        return f"{path}: missing; it has no default"
    if kind == "union_tag_not_found":
        return f"{path}.name: missing; say which: {', '.join(names)}"
    if kind == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        return f"{path}.name: {tag!r} is not known{nearest(tag, names)}"
    if kind == "literal_error":
        options = [option.strip("'") for option in re.split(", | or ", str(problem["ctx"]["expected"]))]
        return f"{path}: {found!r} is not known{nearest(str(found), options)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{path}: should be a section, found {found!r}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{path}: {message}, found {found!r}" if kind != "value_error" else f"{path}: {message}"


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the most similar one, or all that there are."""
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
