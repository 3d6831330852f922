"""`--set` where a trained detector is used: what needs no new weights changes, and the rest is refused.

Which fields those are stands in `at_test` of each `Config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import create_model

from detkit.config import Config, ConfigError, UserError, override, parse_config

ModelT = TypeVar("ModelT", bound=Config)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of `model`, which are for the detector, and the others."""
    of_model = [item for item in overrides if _section(item) == "model"]
    return of_model, [item for item in overrides if _section(item) != "model"]


def change_model(model: ModelT, overrides: Sequence[str], source: object) -> ModelT:
    """`model`, the configuration of a trained detector, after changes that need no new weights.

    Raises UserError, which begins with `source`, for another change, and for a setting of another section.
    """
    others = split_overrides(overrides)[1]
    if malformed := [item for item in overrides if "=" not in item]:
        raise UserError(f"--set {malformed[0]}: expected a.b=value")
    if others:
        raise UserError(f"--set {others[0]}: {source} is only loaded, so {_what_can(model)}")
    if not overrides:
        return model
    tree = override({"model": model.model_dump(mode="json")}, overrides)
    try:
        parsed: Any = parse_config(tree, _schema_of(type(model)), where=" ".join(f"--set {item}" for item in overrides))
    except ConfigError as error:
        raise ConfigError(f"{error}\n  {_what_can(model)}") from error
    changed: ModelT = parsed.model
    for path, allowed in _changes(model, changed, "model"):
        if not allowed:
            raise UserError(
                f"--set {path}: {source} is trained, and this needs other weights or matters only in training; "
                f"{_what_can(model)}"
            )
    return changed


@cache
def _schema_of(model: type[Config]) -> type[Config]:
    """Of `{model: ...}`, whose messages name the setting as the user does."""
    return create_model("Changed", __base__=Config, model=(model, ...))


def check_settings(settings: Config, overrides: Sequence[str], sections: Sequence[str]) -> None:
    """Raises UserError for one of `overrides`, none of `model`, that has no effect where a detector is used.

    settings  after the overrides
    sections  that are read, or single settings of them, as `eval.max_detections`
    """
    for item in overrides:
        for path in _paths(override({}, [item])):
            if not _has_effect(settings, path, sections):
                raise UserError(
                    f"--set {'.'.join(path)}: has no effect here, where nothing is trained; what has is "
                    f"{'; '.join(_read_of(settings, name) for name in sections)}"
                )


def describe_overrides(overrides: Sequence[str]) -> list[str]:
    """A sentence for the user, beside the numbers."""
    return [f"changed: {', '.join(overrides)}"] if overrides else []


def _has_effect(settings: Config, path: Sequence[str], sections: Sequence[str]) -> bool:
    if not any(f"{'.'.join(path)}.".startswith(f"{section}.") for section in sections):
        return False
    node: Any = settings
    for name in path:
        if not isinstance(node, Config):
            break
        if node.at_test and name not in (*node.fields_at_test(), "name"):
            return False
        node = getattr(node, name)
    return True


def _read_of(settings: Config, section: str) -> str:
    part = getattr(settings, section, None)
    if not isinstance(part, Config):
        return section
    return (
        f"{section}: {', '.join(part.fields_at_test() or (name for name in type(part).model_fields if name != 'name'))}"
    )


def _changes(before: Config, after: Config, path: str) -> Iterator[tuple[str, bool]]:
    """The path of each value that differs, and whether it may."""
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, Config) and type(old) is type(new):
            yield from _changes(old, new, f"{path}.{name}")
        elif old != new:
            yield f"{path}.{name}", name in before.fields_at_test()


def _what_can(model: Config) -> str:
    return f"what can change is {'; '.join(_at_test_below(model, 'model')) or 'nothing'}"


def _at_test_below(config: Config, path: str) -> Iterator[str]:
    own = [name for name in config.fields_at_test() if not isinstance(getattr(config, name), Config)]
    if own:
        yield f"{path}: {', '.join(own)}"
    for name in type(config).model_fields:
        if isinstance(value := getattr(config, name), Config):
            yield from _at_test_below(value, f"{path}.{name}")


def _section(item: str) -> str:
    return item.partition("=")[0].strip().partition(".")[0]


def _paths(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, (*above, name))
        else:
            yield (*above, name)
