"""What goes in and out over HTTP, and its description as OpenAPI 3.1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.datastructures import QueryParams

import detkit
from detkit.config import UserError, nearest
from detkit.engine.prediction.choice import Choice, build_choice
from detkit.engine.prediction.settings import PredictionConfig
from detkit.serve.refusal import Refusal
from detkit.serve.settings import ServeConfig
from detkit.structures import Categories, Detections

JSON = "application/json"


class Query(BaseModel):
    """What one request may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score_threshold: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    max_detections: int | None = Field(None, ge=1)
    classes: str | None = None  # names with commas between
    masks: bool = True


class Mask(BaseModel):
    """COCO's compressed run lengths."""

    model_config = ConfigDict(extra="forbid")

    size: tuple[int, int] = Field(description="height and width of the upright picture")
    counts: str = Field(description="as pycocotools reads it")


class Keypoint(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    x: float = Field(description="in pixels of the upright picture")
    y: float = Field(description="in pixels of the upright picture")
    score: float = Field(description="a logit: unlikely to be there below 0")


class Detection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    class_: str = Field(alias="class", description="name of the class")
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the upright picture")
    mask: Mask | None = Field(None, description="only of a detector that gives masks")
    keypoints: list[Keypoint] | None = Field(None, description="only of a detector that gives keypoints")


class Answer(BaseModel):
    """The detections of a picture, best first."""

    model_config = ConfigDict(extra="forbid")

    width: int = Field(ge=1, description="of the upright picture, in pixels")
    height: int = Field(ge=1, description="of the upright picture, in pixels")
    detections: list[Detection]


class Health(BaseModel):
    """
    classes       names, in the order of the labels
    category_ids  the ids that the data set of the training has for them
    """

    model_config = ConfigDict(extra="forbid")

    state: str = Field(description="ready, stopping, or what ended the detector")
    source: str
    classes: list[str]
    category_ids: list[int | str]
    device: str
    score_threshold: float
    max_batch: int
    in_flight: int = Field(description="predictions that were asked for and are not answered")
    waiting: int = Field(description="decoded pictures that wait for the detector")
    batches: int = Field(description="since the start")
    pictures: int = Field(description="detected since the start")


class Problem(BaseModel):
    model_config = ConfigDict(extra="forbid")

    error: str


PROBLEMS = {
    408: "the picture did not arrive in time",
    413: "too many bytes, or too many pixels",
    415: "a form; send the bytes of the picture alone",
    422: "no picture, a picture that is cut short, or an unknown query",
    500: "the detector failed on this picture",
    503: "too many requests, or the server is stopping",
    504: "no answer in time",
}


def parse_query(params: QueryParams, categories: Categories, config: ServeConfig) -> Choice:
    """Which detections one request asks for.

    Raises Refusal for an unknown name, a wrong value, an unknown class, or what this server cannot give.
    """
    given = dict(params.multi_items())
    if len(given) < len(params.multi_items()):
        raise Refusal(422, f"query: each name may stand once, found {params}")
    try:
        query = Query.model_validate(given)
    except ValidationError as error:
        raise Refusal(422, f"query: {_line(error)}") from error
    threshold = config.score_threshold if query.score_threshold is None else query.score_threshold
    if threshold < config.score_threshold:
        raise Refusal(
            422,
            f"query: score_threshold: this server detects from {config.score_threshold:g} on, found {threshold:g}; "
            "start it with a lower --score-threshold",
        )
    classes = tuple(name.strip() for name in query.classes.split(",")) if query.classes is not None else ()
    chosen = PredictionConfig(score_threshold=threshold, classes=classes, max_detections=query.max_detections)
    try:
        choose = build_choice(chosen, categories)
    except UserError as error:
        raise Refusal(422, f"query: {error}") from error
    return choose if query.masks else lambda detections: _without_masks(choose(detections))


def _without_masks(detections: Detections) -> Detections:
    return replace(detections, objects=replace(detections.objects, masks=None))


def _line(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][-1])
    if problem["type"] == "extra_forbidden":
        return f"{name!r} is not known{nearest(name, list(Query.model_fields))}"
    return f"{name}: {problem['msg'].removeprefix('Input ')}, found {problem['input']!r}"


def openapi(config: ServeConfig) -> dict[str, Any]:
    """The document at `/openapi.json`."""
    models: tuple[type[BaseModel], ...] = (Answer, Health, Problem)
    schemas = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )[1]["$defs"]
    problems = {str(status): _response(text, "Problem") for status, text in PROBLEMS.items()}
    predict = {
        "operationId": "predict",
        "summary": "Detect on one picture",
        "parameters": _parameters(),
        "requestBody": {
            "required": True,
            "description": f"the file of a picture, at most {config.max_body_mb:g} MB; {_curl(config)}",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        "responses": {"200": _response("the detections", "Answer"), **problems},
    }
    health = {
        "operationId": "health",
        "summary": "Whether the server can answer, and what it serves",
        "responses": {"200": _response("ready", "Health"), "503": _response("it cannot answer", "Health")},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "detkit serve", "version": detkit.__version__},
        "paths": {"/predict": {"post": predict}, "/health": {"get": health}, "/metrics": {"get": _metrics()}},
        "components": {"schemas": schemas},
    }


def _curl(config: ServeConfig) -> str:
    return f"curl --data-binary @photo.jpg http://{config.host}:{config.port}/predict"


def _metrics() -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "metrics",
        "summary": "What Prometheus reads",
        "responses": {"200": {"description": "its text format", "content": content}},
    }


def _response(description: str, model: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _parameters() -> list[dict[str, Any]]:
    texts = {
        "score_threshold": "leave out what scores less",
        "max_detections": "the best ones only",
        "classes": "names of classes with commas between; others are left out",
        "masks": "0 leaves masks out, which make an answer long",
    }
    properties = Query.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": properties[name]}
        for name, text in texts.items()
    ]
