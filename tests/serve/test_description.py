"""What the server says of itself: health, metrics, OpenAPI."""

from __future__ import annotations

import jsonschema
import pytest

from detkit.serve.schema import openapi
from detkit.serve.settings import ServeConfig
from tests.serve.support import NAMES, Detector, encode, find_parts, picture, running, wait_until

DATA = encode(picture((200, 0, 0)))


def test_health() -> None:
    with running(score_threshold=0.1) as it:
        it.ask(DATA)
        it.ask(DATA)
        status, health, _ = it.call("GET", "/health")
    assert status == 200
    assert health == {
        "state": "ready",
        "source": "stand-in",
        "classes": list(NAMES),
        "category_ids": [1, 2, 3],
        "device": "cpu",
        "score_threshold": 0.1,
        "max_batch": 8,
        "in_flight": 0,
        "waiting": 0,
        "batches": 2,
        "pictures": 2,
    }


def test_metrics() -> None:
    with running() as it:
        assert [it.ask(data)[0] for data in (DATA, DATA, b"no picture")] == [200, 200, 422]
        it.call("GET", "/nothing/at/all")
        it.hold()
        waiting = [it.in_background(DATA) for _ in range(2)]
        wait_until(lambda: len(it.service.batcher) == 2)
        _, text, headers = it.call("GET", "/metrics")
        it.detector.gate.set()
        assert [answer.result()[0] for answer in waiting] == [200] * 2
    assert headers["Content-Type"].startswith("text/plain; version=")
    lines = set(text.splitlines())
    assert {
        'detkit_requests_total{path="/predict",status="200"} 2.0',
        'detkit_requests_total{path="/predict",status="422"} 1.0',
        'detkit_requests_total{path="other",status="404"} 1.0',
        "detkit_in_flight 3.0",
        "detkit_queue_length 2.0",
        'detkit_batch_size_bucket{le="1.0"} 2.0',
        'detkit_seconds_count{stage="detect"} 2.0',
        'detkit_seconds_count{stage="queue"} 2.0',
        'detkit_seconds_count{stage="read"} 6.0',
    } <= lines
    assert 'detkit_seconds_count{stage="decode"} 5.0' in lines, "what is no picture is not counted"
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_the_document_is_openapi() -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    with running() as it:
        status, document, _ = it.call("GET", "/openapi.json")
    assert status == 200
    assert document["openapi"] == "3.1.0"
    validator.validate(document)


def test_answers_are_as_the_document_says() -> None:
    document = openapi(ServeConfig())

    def check(model: str, value: object) -> None:
        schema = {"$ref": f"#/components/schemas/{model}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)

    with running() as it:
        check("Answer", it.ask(DATA)[1])
        check("Problem", it.ask(b"no picture")[1])
        check("Health", it.call("GET", "/health")[1])
    with running(Detector(find_parts)) as it:
        check("Answer", it.ask(DATA)[1])
    with pytest.raises(jsonschema.ValidationError):
        check("Answer", {"width": 1, "height": 1, "detections": [{"class": "a", "score": 0.5, "box": [1, 2, 3]}]})
    named = {parameter["name"] for parameter in document["paths"]["/predict"]["post"]["parameters"]}
    assert named == {"score_threshold", "max_detections", "classes", "masks"}
