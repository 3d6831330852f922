"""The JSON schema of a configuration, from which an editor completes keys, shows their meaning and marks mistakes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from detkit.config import Config
from detkit.engine.settings import RunConfig

FIELD = r"^(\w+(?:, \w+)*) {2,}(\S.*(?:\n {4,}\S.*)*)"  # `name, name  text`, going on in lines further in
COMMENT = r"^ {4}(\w+): [^#\n]*  # (.+)"  # `name: type = default  # text`


def config_schema() -> str:
    """The schema as JSON. What the docstring of a `Config` or a comment says of a field is the field's description."""
    schema = RunConfig.model_json_schema()
    models = {model.__name__: model for model in _subclasses(Config)}
    for name, definition in [("RunConfig", schema), *schema["$defs"].items()]:
        if name in models:
            _describe(definition, models[name])
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1)


def _subclasses(model: type[Config]) -> Iterator[type[Config]]:
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)


def _describe(definition: dict[str, Any], model: type[Config]) -> None:
    """Gives each property of a model what the source of its class, or of a base of it, says of the field."""
    properties = definition.get("properties", {})
    definition.pop("description", None)
    for owner in model.__mro__[: model.__mro__.index(Config)]:
        text = inspect.cleandoc(owner.__doc__ or "")
        source = inspect.getsource(owner)
        for names, meaning in re.findall(FIELD, text, flags=re.M) + re.findall(COMMENT, source, flags=re.M):
            for name in set(names.split(", ")) & properties.keys():
                properties[name].setdefault("description", " ".join(meaning.split()))
        definition.setdefault("description", " ".join(text.split("\n\n")[0].split()))
